//! Compacting keeps every record, whenever it is killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesOrdered;

use super::file::{Record, counter};
use super::{contents, done, refused, text, value};
use crate::support::calls::{by_name, connect, increment, run};
use crate::support::random::Random;
use crate::support::tree::look;
use crate::support::{Process, capstead, scratch, serve};

/// A data directory with a few thousand counters, imported in random order.
fn many(data: &Path, folder: &Path) -> Vec<Record> {
    let mut served = serve(data);
    run(async {
        let (_connection, counters) = connect(&served).await;
        let mut on_the_way = FuturesOrdered::new();
        for n in 0..3_000 {
            on_the_way.push_back(increment(&by_name(&counters, &format!("counter {n}"))));
            if on_the_way.len() > 200 {
                on_the_way.next().await.expect("one is on its way").expect("it counts");
            }
        }
        while let Some(value) = on_the_way.next().await {
            value.expect("it counts");
        }
    });
    let large = folder.join("large");
    fs::write(&large, counter("large", 1, &large_values())).expect("it is written");
    done(data, &["import", text(&large)]);
    served.kill();
    contents(data)
}

fn large_values() -> Vec<(Vec<u8>, Vec<u8>)> {
    (0..40_u8).map(|n| (vec![b'k', n], vec![n; 1 << 20])).collect()
}

#[test]
fn compacting_keeps_every_record_and_is_refused_while_served() {
    let (folder, data) = scratch();
    let before = many(&data, folder.path());
    let said = done(&data, &["compact"]);
    assert!(said.starts_with("compacted "), "{said}");
    assert_eq!(contents(&data), before);
    let served = serve(&data);
    assert_eq!(value(&served, "counter%207"), "1");
    let said = refused(&data, &["compact"], 1);
    assert!(said.contains("stop that one first"), "{said}");
}

// Compacting is killed at random moments; each time the directory still has all its data, and
// starts.
#[test]
fn compacting_that_is_killed_leaves_a_directory_that_starts() {
    let (folder, data) = scratch();
    let before = many(&data, folder.path());
    let mut random = Random::from_printed_seed();
    let mut cut = 0;
    for _ in 0..12 {
        let mut compact = Process::start(capstead(["compact", "--data", text(&data)]));
        std::thread::sleep(Duration::from_millis(random.below(250)));
        cut += u64::from(compact.ended().is_none());
        compact.kill();
        assert_eq!(contents(&data), before);
    }
    assert!(cut > 0, "none was cut short");
    done(&data, &["compact"]);
    let names: Vec<PathBuf> = look(&data).into_keys().collect();
    assert!(!names.iter().any(|name| text(name).contains("compact")), "{names:?}");
    assert_eq!(contents(&data), before);
    assert_eq!(value(&serve(&data), "counter%207"), "1");
}
