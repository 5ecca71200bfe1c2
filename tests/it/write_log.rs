//! Tests how the crash lab reads strace, and the images of disks that it makes from it.

#[path = "../crash_lab/images.rs"]
mod images;
#[path = "../crash_lab/trace.rs"]
mod trace;
#[path = "../crash_lab/wrong.rs"]
mod wrong;

use std::collections::BTreeSet;
use std::path::Path;

use self::images::{Disk, Files, Loss};
use self::trace::{Step, parse};
use self::wrong::Mistake;
use crate::support::random::Random;

/// `/f`, the folder, and in hexadecimal it and its files `/f/d`, `/f/s` and `/f/new`, and `/e`
/// elsewhere.
const FOLDER: &str = "/f";
const F: &str = r"\x2f\x66";
const D: &str = r"\x2f\x66\x2f\x64";
const S: &str = r"\x2f\x66\x2f\x73";
const NEW: &str = r"\x2f\x66\x2f\x6e\x65\x77";
const LOCK: &str = r"\x2f\x66\x2f\x6c\x6f\x63\x6b\x2e\x6d\x64\x62";
const E: &str = r"\x2f\x65";

fn steps(lines: &[String]) -> Result<Vec<Step>, String> {
    parse(&lines.join("\n"), Path::new(FOLDER), &["d".to_owned(), "s".to_owned()])
}

/// The file `d` opened twice, as LMDB does: descriptor 5 is for data, and 6 for its meta pages. The
/// file `s` is descriptor 8.
fn opened() -> Vec<String> {
    let open = |path: &str, flags: &str, result: &str| {
        format!(r#"1 openat(AT_FDCWD<{E}>, "{path}", O_RDWR|{flags}, 0600) = {result}<{path}>"#)
    };
    vec![open(D, "O_CREAT|O_CLOEXEC", "5"), open(D, "O_DSYNC", "6"), open(S, "O_CLOEXEC", "8")]
}

fn with(more: &[String]) -> Result<Vec<Step>, String> {
    steps(&[&opened()[..], more].concat())
}

fn write(file: usize, at: u64, bytes: &[u8]) -> Step {
    Step::Write { file, at, bytes: bytes.to_vec() }
}

fn named(changes: &[(&str, Option<usize>)]) -> Step {
    Step::Named(changes.iter().map(|(name, file)| ((*name).to_owned(), *file)).collect())
}

#[test]
fn a_commit_and_its_acknowledgement_are_read_in_order() {
    let commit = [
        format!(r"2 lseek(5<{D}>, 4096, SEEK_SET) = 4096"),
        format!(
            r#"2 writev(5<{D}>, [{{iov_base="\x01\x02", iov_len=2}}, {{iov_base="\x03", iov_len=1}}], 2) = 3"#
        ),
        format!(r#"2 write(5<{D}>, "\x04", 1) = 1"#),
        format!(r#"3 pwrite64(8<{S}>, "\x22\x2c", 2, 7) = 2"#),
        format!(r"3 fdatasync(8<{S}> <unfinished ...>"),
        format!(r"2 fdatasync(5<{D}>) = 0"),
        format!(r#"1 write(1<{E}>, "\x61\x63\x6b\x20\x31\x0a", 6 <unfinished ...>"#),
        r"3 <... fdatasync resumed>) = 0".to_owned(),
        r"1 <... write resumed>) = 6".to_owned(),
        format!(r#"2 pwrite64(6<{D}>, "\x05", 1, 0) = 1"#),
        format!(r#"2 write(4<{E}>, "\x05", 1) = 1"#),
        "2 +++ exited with 0 +++".to_owned(),
    ];
    let expected = [
        write(0, 4096, &[1, 2, 3]),
        write(0, 4099, &[4]),
        write(1, 7, b"\","),
        Step::Synced { file: 0, before: 3 },
        Step::Acknowledged(1),
        Step::Synced { file: 1, before: 3 },
        write(0, 0, &[5]),
        Step::Written(6),
    ];
    assert_eq!(with(&commit).unwrap(), expected);
}

#[test]
fn names_that_files_get_and_lose_are_read_with_the_syncs_of_the_folder() {
    let lines = [
        format!(r#"2 openat(AT_FDCWD<{E}>, "{NEW}", O_RDWR|O_CREAT|O_EXCL, 0600) = 9<{NEW}>"#),
        format!(r#"2 pwrite64(9<{NEW}>, "\x01", 1, 0) = 1"#),
        format!(r#"2 openat(AT_FDCWD<{E}>, "{F}", O_RDONLY|O_CLOEXEC) = 10<{F}>"#),
        format!(r"2 fsync(10<{F}> <unfinished ...>"),
        format!(r#"3 rename("{NEW}", "{S}") = 0"#),
        r"2 <... fsync resumed>) = 0".to_owned(),
        // The same file, under its other name.
        format!(r#"2 pwrite64(9<{S}>, "\x02", 1, 1) = 1"#),
        format!(r#"3 unlinkat(AT_FDCWD<{E}>, "{D}", 0) = 0"#),
        format!(r#"3 openat(AT_FDCWD<{E}>, "{LOCK}", O_RDWR|O_CREAT, 0600) = 11<{LOCK}>"#),
        format!(r"3 ftruncate(11<{LOCK}>, 0) = 0"),
    ];
    let expected = [
        named(&[("new", Some(2))]),
        write(2, 0, &[1]),
        named(&[("new", None), ("s", Some(2))]),
        Step::FolderSynced { before: 2 },
        write(2, 1, &[2]),
        named(&[("d", None)]),
    ];
    assert_eq!(with(&lines).unwrap(), expected);
}

#[test]
fn what_is_not_understood_about_the_folder_is_refused() {
    let bad = [
        ("a call", format!(r"2 ftruncate(5<{D}>, 0) = 0"), "isn't known"),
        ("another", format!(r#"2 pwritev(5<{D}>, [{{"\x01"}}], 1, 0) = 1"#), "isn't known"),
        ("a mapping", r"2 msync(0x7f00, 1, MS_SYNC) = 0".to_owned(), "nobody knows"),
        ("a short write", format!(r#"2 pwrite64(5<{D}>, "\x01\x02", 2, 0) = 1"#), "not all"),
        ("an error", format!(r#"2 pwrite64(5<{D}>, "\x01", 1, 0) = -1 EIO (x)"#), "failed with"),
        ("a failed sync", format!(r"2 fdatasync(8<{S}>) = -1 EIO (x)"), "failed with"),
        ("a cut string", format!(r#"2 pwrite64(5<{D}>, "\x01"..., 2, 0) = 2"#), "cut short"),
        ("plain text", format!(r#"2 pwrite64(5<{D}>, "ab", 2, 0) = 2"#), "hexadecimal"),
        ("half a string", format!(r#"2 pwrite64(5<{D}>, "\x01, 2, 0) = 2"#), "no whole string"),
        ("a strange word", format!(r#"2 write(1<{E}>, "\x61", 1) = 1"#), "no acknowledgement"),
        ("an unopened file", format!(r#"2 write(9<{D}>, "\x61", 1) = 1"#), "never opened"),
        ("an old call", format!(r#"2 open("{D}", O_RDWR) = 7<{D}>"#), "isn't known"),
        ("an end", "2 <... fdatasync resumed>) = 0".to_owned(), "hasn't begun"),
        ("no result", format!(r"2 fdatasync(5<{D}>)"), "no result"),
        ("rubbish", "2 rubbish".to_owned(), "no call"),
        ("emptying", format!(r#"2 openat(3<{E}>, "{D}", O_RDWR|O_TRUNC) = 7<{D}>"#), "emptied"),
        ("a link", format!(r#"2 link("{D}", "{NEW}") = 0"#), "isn't known"),
        ("a file from elsewhere", format!(r#"2 rename("{E}", "{NEW}") = 0"#), "isn't known"),
        ("an unknown name", format!(r#"2 unlink("{NEW}") = 0"#), "not known"),
        ("a lost unlink", format!(r#"2 unlink("{S}") = -1 EIO (x)"#), "failed with"),
        ("a lost file", format!(r#"2 openat(3<{E}>, "{NEW}", O_CREAT) = -1 EIO (x)"#), "failed"),
        (
            "a file from nowhere",
            format!(r#"2 openat(3<{E}>, "{NEW}", O_RDWR) = 7<{NEW}>"#),
            "wasn't",
        ),
        ("a short path", format!(r#"2 openat(3<{F}>, "\x64", O_RDWR) = 7<{D}>"#), "opened oddly"),
    ];
    for (what, line, reason) in bad {
        let error = with(&[line]).expect_err(what);
        assert!(error.starts_with("line 4: ") && error.contains(reason), "{what}: {error}");
    }
    let others = [
        format!(r"2 ftruncate(5<{E}>, 0) = 0"),
        format!(r#"2 open("{E}", O_RDWR) = 7<{E}>"#),
        format!(r#"2 rename("{E}", "{E}") = 0"#),
        format!(r#"2 openat(3<{E}>, "{NEW}", O_RDONLY) = -1 ENOENT (x)"#),
    ];
    assert_eq!(with(&others).unwrap(), []);
}

/// Two writes, a sync, a meta write, an acknowledgement, and a write that is never made durable.
fn commit() -> Vec<Step> {
    vec![
        write(0, 512, &[1; 1024]),
        write(0, 1536, &[2; 512]),
        Step::Synced { file: 0, before: 2 },
        write(0, 0, &[3; 8]),
        Step::Written(3),
        Step::Acknowledged(1),
        write(0, 2048, &[4; 512]),
    ]
}

fn before() -> Files {
    Files::from([("d".to_owned(), vec![0; 512])])
}

/// All images after this number of steps that random choices yield.
fn all_images(steps: &[Step], after: usize) -> BTreeSet<Files> {
    let files = before();
    let mut disk = Disk::new(steps, &files);
    let mut random = Random::from_seed(1);
    (0..after).for_each(|_| assert!(disk.step().is_some()));
    (0..2_000).map(|_| disk.crash(Loss::Chance, &mut random).files).collect()
}

/// Those of one file.
fn images(steps: &[Step], after: usize) -> BTreeSet<Vec<u8>> {
    all_images(steps, after).into_iter().map(|mut files| files.remove("d").unwrap()).collect()
}

#[test]
fn each_unsynced_sector_is_there_or_not_and_each_synced_one_is_there() {
    let steps = commit();
    // Three sectors; a lost one at the end may have left its length.
    let unsynced = images(&steps, 2);
    let without_length = [[0; 512].to_vec(), [[0; 512], [1; 512]].concat()];
    assert!(without_length.iter().all(|image| unsynced.contains(image)));
    let contents: BTreeSet<Vec<u8>> = unsynced
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
    let steps = [&commit()[..1], &[named(&[("e", Some(1))])]].concat();
    let files = before();
    let mut disk = Disk::new(&steps, &files);
    let mut random = Random::from_seed(1);
    assert!(!disk.is_at_risk());
    while disk.step().is_some() {}
    assert!(disk.is_at_risk());
    assert_eq!(disk.crash(Loss::Everything, &mut random).files, files);
    let kept = disk.crash(Loss::Nothing, &mut random).files;
    assert_eq!(kept["d"], [vec![0; 512], vec![1; 1024]].concat());
    assert!(kept["e"].is_empty());
}

#[test]
fn a_sync_saves_the_writes_of_its_file_alone_and_no_name() {
    let steps = [
        named(&[("s", Some(1))]),
        write(1, 0, &[1; 8]),
        write(0, 0, &[2; 8]),
        Step::Synced { file: 1, before: 3 },
        Step::FolderSynced { before: 3 },
    ];
    let seen = |after: usize| -> BTreeSet<(Option<u8>, u8)> {
        let images = all_images(&steps, after).into_iter();
        images
            .map(|files| (files.get("s").map(|bytes| *bytes.first().unwrap_or(&0)), files["d"][0]))
            .collect()
    };
    assert_eq!(seen(4), [(None, 0), (None, 2), (Some(1), 0), (Some(1), 2)].into());
    assert_eq!(seen(5), [(Some(1), 0), (Some(1), 2)].into());
}

#[test]
fn a_renamed_file_has_its_old_name_or_its_new_one_until_the_folder_is_synced() {
    let steps = [named(&[("d", None), ("s", Some(0))]), Step::FolderSynced { before: 1 }];
    let names = |after| -> BTreeSet<Vec<String>> {
        all_images(&steps, after).into_iter().map(|files| files.into_keys().collect()).collect()
    };
    assert_eq!(names(1), [vec!["d".to_owned()], vec!["s".to_owned()]].into());
    assert_eq!(names(2), [vec!["s".to_owned()]].into());
}

#[test]
fn a_mistake_puts_the_meta_write_before_the_sync() {
    // A write of the log lies between.
    let mut steps = commit();
    steps.insert(2, write(1, 0, &[5; 8]));
    steps[4] = write(0, 0, &[3; 8]);
    steps[5] = Step::Written(4);
    let wrong = Mistake::MetaBeforeSync.made(&steps, 0);
    let sync = Step::Synced { file: 0, before: 2 };
    assert_eq!(wrong[3..6], [write(0, 0, &[3; 8]), Step::Written(3), sync]);
    assert!(images(&wrong, 5).iter().all(|image| image[0] == 3));
    assert!(images(&wrong, 5).len() > 8);
}

#[test]
fn mistakes_leave_syncs_out_and_move_names() {
    let steps = [
        write(1, 0, &[1; 8]),
        Step::Synced { file: 1, before: 1 },
        Step::FolderSynced { before: 2 },
        write(0, 0, &[2; 8]),
        Step::Written(3),
        Step::Acknowledged(1),
        named(&[("segment-1", None), ("spare-1", Some(1))]),
        Step::FolderSynced { before: 7 },
    ];
    let lost = |file| Step::Synced { file, before: 0 };
    let wrong = Mistake::LogUnsynced.made(&steps, 0);
    assert_eq!((&wrong[1], &wrong[2..]), (&lost(1), &steps[2..]));
    let wrong = Mistake::AppliedBeforeSync.made(&steps, 0);
    assert_eq!((&wrong[1], &wrong[5]), (&lost(1), &lost(0)));
    let wrong = Mistake::FolderUnsynced.made(&steps, 0);
    let unsynced = Step::FolderSynced { before: 0 };
    assert_eq!([&wrong[2], &wrong[7]], [&unsynced; 2]);
    let wrong = Mistake::GivenUpEarly.made(&steps, 0);
    assert_eq!(wrong[3..5], [steps[6].clone(), steps[3].clone()]);
    assert_eq!(wrong[5..8], [Step::Written(4), Step::Acknowledged(1), steps[7].clone()]);
}

#[test]
fn each_mistake_changes_a_record() {
    let steps = [
        named(&[("segment-2", Some(2))]),
        Step::FolderSynced { before: 1 },
        write(1, 0, &[1; 8]),
        Step::Synced { file: 1, before: 3 },
        write(0, 512, &[2; 8]),
        Step::Synced { file: 0, before: 5 },
        write(0, 0, &[3; 8]),
        Step::Written(6),
        Step::Acknowledged(1),
        named(&[("segment-1", None)]),
    ];
    for mistake in Mistake::ALL {
        assert_ne!(mistake.made(&steps, 0), steps, "{mistake:?}");
    }
}
