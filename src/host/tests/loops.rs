//! Loops over an object's keys that write meanwhile: the work grows with the keys, and no faster.

use std::rc::Rc;

use super::storage::turn;
use super::trial::{World, run};
use crate::host::state::instance::Instance;
use crate::host::{List, Storage};
use crate::storage::store::page::VISITED;

/// Keys that a step may pass by, all in all: its own, twice what was read ahead, and some hidden
/// ones.
const VISITED_PER_KEY: usize = 12;

/// A key and its value, if there is one.
type Found = crate::error::Result<Option<(Vec<u8>, Vec<u8>)>>;

fn key(n: usize) -> String {
    format!("k{n:08}")
}

async fn filled(keys: usize) -> (World, Rc<Instance>) {
    let world = World::new();
    let instance = world.instance("x");
    turn(&instance, |storage| (0..keys).for_each(|n| storage.put(key(n), "0").unwrap()));
    world.vat.flush().await.unwrap();
    tokio::task::yield_now().await;
    (world, instance)
}

/// Runs a loop over so many keys in one turn, and looks how many keys were passed by.
fn is_linear(work: impl Fn(&Storage, usize) -> usize) {
    for keys in [1_000, 10_000] {
        run(async {
            let (_world, instance) = filled(keys).await;
            let before = VISITED.get();
            let steps = turn(&instance, |storage| work(storage, keys));
            let visited = VISITED.get() - before;
            assert!(steps >= keys / 2, "{steps} steps");
            assert!(visited <= VISITED_PER_KEY * keys, "{visited} visited of {keys} keys");
        });
    }
}

/// Goes through all keys, and does `step` at each.
fn each(list: &List, step: impl Fn(&Storage, usize)) -> impl Fn(&Storage, usize) -> usize {
    move |storage, _| {
        let mut steps = 0;
        for entry in storage.list(list.clone()).unwrap() {
            let (found, _) = entry.unwrap();
            let number = std::str::from_utf8(&found[1..9]).unwrap().parse().unwrap();
            step(storage, number);
            steps += 1;
        }
        steps
    }
}

#[test]
fn a_list_is_linear_whatever_is_written_meanwhile() {
    for list in [List::all(), List::all().reverse()] {
        is_linear(each(&list, |storage, n| storage.put(key(n), "1").unwrap()));
        is_linear(each(&list, |storage, _| storage.put(key(0), "1").unwrap()));
        is_linear(each(&list, |storage, n| {
            if storage.contains(key(n + 1)).unwrap() {
                storage.put(key(n + 1), "1").unwrap();
            }
        }));
        is_linear(each(&list, |storage, n| storage.put(key(n).to_uppercase(), "1").unwrap()));
        is_linear(each(&list, |storage, n| _ = storage.delete(key(n)).unwrap()));
        is_linear(each(&list, |storage, n| _ = storage.delete(key(n + 2)).unwrap()));
        is_linear(each(&list, |storage, n| _ = storage.delete(key(n / 2)).unwrap()));
    }
}

#[test]
fn taking_the_first_or_the_last_key_away_is_linear() {
    let take = |next: fn(&Storage) -> Found| {
        move |storage: &Storage, _: usize| {
            let mut taken = 0;
            while let Some((key, _)) = next(storage).unwrap() {
                assert!(storage.delete(key).unwrap());
                taken += 1;
            }
            assert_eq!(storage.count(), 0);
            taken
        }
    };
    is_linear(take(Storage::first));
    is_linear(take(Storage::last));
    is_linear(take(
        |storage| if storage.count() % 2 == 0 { storage.first() } else { storage.last() },
    ));
}

/// The memory of deleted keys hides none that came again.
#[test]
fn a_key_that_comes_again_is_found() {
    run(async {
        let (_world, instance) = filled(100).await;
        turn(&instance, |storage| {
            let first = || storage.first().unwrap().unwrap().0;
            let last = || storage.last().unwrap().unwrap().0;
            (0..50).for_each(|n| _ = storage.delete(key(n)).unwrap());
            (60..100).for_each(|n| _ = storage.delete(key(n)).unwrap());
            assert_eq!((first(), last()), (key(50).into(), key(59).into()));
            let undone = storage.transaction(|| {
                storage.put(key(20), "2")?;
                assert_eq!(first(), key(20).into_bytes());
                storage.delete(key(50))?;
                storage.delete(key(20))?;
                storage.put(key(95), "2")?;
                assert_eq!(first(), key(51).into_bytes());
                Err::<(), _>(crate::error::failed("undone"))
            });
            assert!(undone.is_err());
            assert_eq!(first(), key(50).into_bytes());
            storage.put(key(10), "1").unwrap();
            assert_eq!((first(), last()), (key(10).into(), key(59).into()));
            storage.put(key(80), "1").unwrap();
            assert_eq!(last(), key(80).into_bytes());
            let rest = storage.list(List::all().start(key(11)).end(key(70))).unwrap().count();
            assert_eq!(rest, 10);
        });
    });
}
