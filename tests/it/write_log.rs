//! Tests how the crash lab reads strace, and the images of disks that it makes from it.

#[path = "../crash_lab/images.rs"]
mod images;
#[path = "../crash_lab/trace.rs"]
mod trace;

use std::path::Path;

use self::images::{Disk, Loss, meta_before_sync};
use self::trace::{Step, parse};
use crate::support::random::Random;

const DATA: &str = "/d";
/// `/d` and `/e` in hexadecimal.
const D: &str = r"\x2f\x64";
const E: &str = r"\x2f\x65";

fn steps(lines: &[String]) -> Result<Vec<Step>, String> {
    parse(&lines.join("\n"), Path::new(DATA))
}

/// The file opened twice, as LMDB does: descriptor 5 is for data, and 6 for its meta pages.
fn opened() -> Vec<String> {
    let open = |flags: &str, result: &str| {
        format!(r#"1 openat(AT_FDCWD<{E}>, "{D}", O_RDWR|{flags}, 0600) = {result}<{D}>"#)
    };
    vec![open("O_CREAT|O_CLOEXEC", "5"), open("O_DSYNC", "6")]
}

fn with(more: &[String]) -> Result<Vec<Step>, String> {
    steps(&[&opened()[..], more].concat())
}

fn write(at: u64, bytes: &[u8]) -> Step {
    Step::Write { at, bytes: bytes.to_vec() }
}

#[test]
fn a_commit_and_its_acknowledgement_are_read_in_order() {
    let commit = [
        format!(r"2 lseek(5<{D}>, 4096, SEEK_SET) = 4096"),
        format!(
            r#"2 writev(5<{D}>, [{{iov_base="\x01\x02", iov_len=2}}, {{iov_base="\x03", iov_len=1}}], 2) = 3"#
        ),
        format!(r#"2 write(5<{D}>, "\x04", 1) = 1"#),
        format!(r#"2 pwrite64(5<{D}>, "\x22\x2c", 2, 7) = 2"#),
        format!(r"2 fdatasync(5<{D}> <unfinished ...>"),
        format!(r#"1 write(1<{E}>, "\x61\x63\x6b\x20\x31\x0a", 6 <unfinished ...>"#),
        r"2 <... fdatasync resumed>) = 0".to_owned(),
        r"1 <... write resumed>) = 6".to_owned(),
        format!(r#"2 pwrite64(6<{D}>, "\x05", 1, 0) = 1"#),
        format!(r#"2 write(4<{E}>, "\x05", 1) = 1"#),
        "2 +++ exited with 0 +++".to_owned(),
    ];
    let expected = [
        write(4096, &[1, 2, 3]),
        write(4099, &[4]),
        write(7, b"\","),
        Step::Acknowledged(1),
        Step::Synced(3),
        write(0, &[5]),
        Step::Written(5),
    ];
    assert_eq!(with(&commit).unwrap(), expected);
}

#[test]
fn what_is_not_understood_about_the_file_is_refused() {
    let bad = [
        ("a call", format!(r"2 ftruncate(5<{D}>, 0) = 0"), "isn't known"),
        ("another", format!(r#"2 pwritev(5<{D}>, [{{"\x01"}}], 1, 0) = 1"#), "isn't known"),
        ("a mapping", r"2 msync(0x7f00, 1, MS_SYNC) = 0".to_owned(), "nobody knows"),
        ("a short write", format!(r#"2 pwrite64(5<{D}>, "\x01\x02", 2, 0) = 1"#), "not all"),
        ("an error", format!(r#"2 pwrite64(5<{D}>, "\x01", 1, 0) = -1 EIO (x)"#), "failed with"),
        ("a failed sync", format!(r"2 fdatasync(5<{D}>) = -1 EIO (x)"), "failed with"),
        ("a cut string", format!(r#"2 pwrite64(5<{D}>, "\x01"..., 2, 0) = 2"#), "cut short"),
        ("plain text", format!(r#"2 pwrite64(5<{D}>, "ab", 2, 0) = 2"#), "hexadecimal"),
        ("half a string", format!(r#"2 pwrite64(5<{D}>, "\x01, 2, 0) = 2"#), "no whole string"),
        ("a strange word", format!(r#"2 write(1<{E}>, "\x61", 1) = 1"#), "no acknowledgement"),
        ("an unopened file", format!(r#"2 write(9<{D}>, "\x61", 1) = 1"#), "never opened"),
        ("an old call", format!(r#"2 open("{D}", O_RDWR) = 7<{D}>"#), "opened oddly"),
        ("an end", "2 <... fdatasync resumed>) = 0".to_owned(), "hasn't begun"),
        ("no result", format!(r"2 fdatasync(5<{D}>)"), "no result"),
        ("rubbish", "2 rubbish".to_owned(), "no call"),
        ("emptying", format!(r#"2 openat(3<{E}>, "{D}", O_RDWR|O_TRUNC) = 7<{D}>"#), "emptied"),
    ];
    for (what, line, reason) in bad {
        let error = with(&[line]).expect_err(what);
        assert!(error.starts_with("line 3: ") && error.contains(reason), "{what}: {error}");
    }
    let others =
        [format!(r"2 ftruncate(5<{E}>, 0) = 0"), format!(r#"2 open("{E}", O_RDWR) = 7<{E}>"#)];
    assert_eq!(with(&others).unwrap(), []);
}

/// Two writes, a sync, a meta write, an acknowledgement, and a write that is never made durable.
fn commit() -> Vec<Step> {
    vec![
        write(512, &[1; 1024]),
        write(1536, &[2; 512]),
        Step::Synced(2),
        write(0, &[3; 8]),
        Step::Written(3),
        Step::Acknowledged(1),
        write(2048, &[4; 512]),
    ]
}

/// All images after this number of steps that random choices yield.
fn images(steps: &[Step], after: usize) -> Vec<Vec<u8>> {
    let mut disk = Disk::new(steps, vec![0; 512]);
    let mut random = Random::from_seed(1);
    (0..after).for_each(|_| assert!(disk.step().is_some()));
    let mut images: Vec<_> =
        (0..2_000).map(|_| disk.crash(Loss::Chance, &mut random).bytes).collect();
    images.sort();
    images.dedup();
    images
}

#[test]
fn each_unsynced_sector_is_there_or_not_and_each_synced_one_is_there() {
    let steps = commit();
    // Three sectors; a lost one at the end may have left its length.
    let unsynced = images(&steps, 2);
    let without_length = [[0; 512].to_vec(), [[0; 512], [1; 512]].concat()];
    assert!(without_length.iter().all(|image| unsynced.contains(image)));
    let contents: std::collections::BTreeSet<Vec<u8>> = unsynced
        .iter()
        .map(|image| (1..4).map(|at| image.get(at * 512).copied().unwrap_or(0)).collect())
        .collect();
    assert_eq!(contents.len(), 8);
    assert_eq!(images(&steps, 3).len(), 1);
    // The meta write fits one sector: all or nothing.
    assert_eq!(images(&steps, 4).len(), 2);
    assert_eq!(images(&steps, 5).len(), 1);
    // The last write is there, or lost with or without its length.
    assert_eq!(images(&steps, 7).len(), 3);
}

#[test]
fn all_or_nothing_of_what_is_at_risk_can_be_lost() {
    let steps = commit();
    let mut disk = Disk::new(&steps, vec![0; 512]);
    let mut random = Random::from_seed(1);
    assert!(!disk.is_at_risk());
    disk.step();
    assert!(disk.is_at_risk());
    assert_eq!(disk.crash(Loss::Everything, &mut random).bytes, vec![0; 512]);
    let kept = disk.crash(Loss::Nothing, &mut random).bytes;
    assert_eq!(kept, [vec![0; 512], vec![1; 1024]].concat());
}

#[test]
fn a_wrong_order_puts_the_meta_write_before_the_sync() {
    let wrong = meta_before_sync(&commit());
    assert_eq!(wrong[2..5], [write(0, &[3; 8]), Step::Written(2), Step::Synced(2)]);
    assert!(images(&wrong, 4).iter().all(|image| image[0] == 3));
    assert!(images(&wrong, 4).len() > 8);
}
