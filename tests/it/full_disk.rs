//! A full disk: the error says full and not broken, names the remedy, and no data are lost.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use capstead_client::namespace;
use tempfile::TempDir;

use crate::support::calls::{by_name, increment, run};
use crate::support::http::{Http, get, post};
use crate::support::{Process, capstead, refused_start, scratch, serve_command, serve_with};

/// A small file system for one test, until it is dropped.
pub(crate) struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    /// None if this process may not make one.
    pub(crate) fn make(mib: u32) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let is_root = fs::metadata("/proc/self").expect("this process is there").uid() == 0;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]).arg(folder.path());
        if is_root && mount.status().is_ok_and(|status| status.success()) {
            return Some(Self { folder });
        }
        eprintln!("skipped what needs a small file system of its own");
        None
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A directory with one counter, made elsewhere and copied here.
    fn data(&self) -> PathBuf {
        let (_folder, data) = scratch();
        let served = serve_with(&data, &["--hosts", "1"]);
        assert_eq!(post(&served.announced.http, "/counter/x/increment").status, 200);
        served.stop();
        let here = self.path().join("data");
        let copied = Command::new("cp").arg("-a").arg(&data).arg(&here).status();
        assert!(copied.expect("cp runs").success());
        here
    }

    /// Leaves this number of KiB free.
    pub(crate) fn fill(&self, kib: u64) {
        let filler = self.filler();
        let mut file = File::create(&filler).expect("it is ours");
        let block = [7; 4096];
        while file.write_all(&block).is_ok() {}
        let length = file.metadata().expect("it is there").len() & !4095;
        file.set_len(length - (kib << 10)).expect("it is ours");
    }

    pub(crate) fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.folder.path()).status();
    }
}

fn compact(data: &Path) -> (Option<i32>, String) {
    let mut command = capstead(["compact", "--data"]);
    command.arg(data);
    let mut process = Process::start(command);
    let status = process.wait();
    (status.code(), process.stdout() + &process.stderr())
}

// The disk used to be reported as broken, and a backup as the remedy.
#[test]
fn compacting_on_a_full_disk_says_how_much_it_needs_and_begins_nothing() {
    let Some(disk) = SmallDisk::make(8) else { return };
    let data = disk.data();
    for kib in [0, 4, 16, 64, 600] {
        disk.fill(kib);
        let before = fs::read(data.join("host-0/data.mdb")).unwrap();
        let (code, said) = compact(&data);
        assert_eq!(code, Some(1), "{kib} KiB: {said}");
        assert!(said.contains("no space is left on the file system of"), "{kib} KiB: {said}");
        assert!(said.contains("are needed") && said.contains("host-0"), "{kib} KiB: {said}");
        assert!(!data.join("host-0.compact").exists(), "{kib} KiB");
        assert_eq!(fs::read(data.join("host-0/data.mdb")).unwrap(), before, "{kib} KiB");
    }
    fs::remove_file(disk.filler()).unwrap();
    let (code, said) = compact(&data);
    assert_eq!(code, Some(0), "{said}");
    let served = serve_with(&data, &["--hosts", "1"]);
    assert_eq!(get(&served.announced.http, "/counter/x").body, "1");
    served.stop();
}

#[test]
fn a_server_that_filled_its_disk_says_so() {
    let Some(disk) = SmallDisk::make(64) else { return };
    let data = disk.data();
    let served = serve_with(&data, &["--hosts", "1", "--reserve", "32MiB"]);
    disk.fill(0);
    // Some of the calls find room in free pages.
    let is_over = |n| {
        let Some(mut web) = Http::try_connect(&served.announced.http) else { return true };
        let name = format!("{n}{}", "y".repeat(900));
        let head = format!("POST /counter/{name}/increment HTTP/1.1\r\nHost: localhost\r\n\r\n");
        web.send(head.as_bytes());
        web.is_closed() || web.answer("POST").status != 200
    };
    assert!((0..1000).any(is_over), "a full disk takes no more");
    let (code, _, log) = served.wait();
    assert_eq!(code, Some(3), "{log}");
    let last = log.lines().last().unwrap();
    assert!(last.contains("no space is left on the file system of"), "{log}");
    fs::remove_file(disk.filler()).unwrap();
    let served = serve_with(&data, &["--hosts", "1", "--reserve", "32MiB"]);
    assert_eq!(get(&served.announced.http, "/counter/x").body, "1");
    served.stop();
}

// A stolen key would have stayed good for as long as the disk is full.
#[test]
fn the_signing_key_is_revoked_on_a_full_disk() {
    let Some(disk) = SmallDisk::make(64) else { return };
    let data = disk.data();
    let served = serve_with(&data, &["--hosts", "1", "--reserve", "32MiB"]);
    let stolen = served.counters().to_owned();
    let key = |args: &[&str]| {
        let done = capstead(["key"]).args(args).arg("--data").arg(&data).output().unwrap();
        (done.status.code(), String::from_utf8(done.stdout).unwrap(), done.stderr)
    };
    let id =
        |list: &str| list.lines().nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    let before = id(&key(&["list"]).1);
    disk.fill(0);
    let (code, _, said) = key(&["revoke", &before]);
    assert_eq!(code, Some(0), "{}", String::from_utf8_lossy(&said));
    let after = id(&key(&["list"]).1);
    assert_ne!(after, before);
    let refused = run(async {
        let counters: namespace::Client = capstead_client::restore(&stolen).await?;
        increment(&by_name(&counters, "x")).await
    });
    assert!(refused.unwrap_err().extra.contains("refused"), "what it signed is refused");
    fs::remove_file(disk.filler()).unwrap();
    served.stop();
    let served = serve_with(&data, &["--hosts", "1", "--reserve", "32MiB"]);
    assert_eq!(id(&key(&["list"]).1), after, "the new key is the one in the file");
    assert_eq!(get(&served.announced.http, "/counter/x").body, "1");
    served.stop();
}

// The log needs no new space for them, and gives none back that it needs again.
#[test]
fn writes_that_grow_nothing_go_on_while_the_disk_is_full() {
    let Some(disk) = SmallDisk::make(16) else { return };
    let data = disk.data();
    let mut total = 1;
    for filled in [false, true, true] {
        let served = serve_with(&data, &["--hosts", "1", "--reserve", "1MiB"]);
        let mut web = Http::connect(&served.announced.http);
        let mut increment = |times| {
            for _ in 0..times {
                total += 1;
                web.send(b"POST /counter/x/increment HTTP/1.1\r\nHost: localhost\r\n\r\n");
                assert_eq!(web.answer("POST").body.trim_end(), total.to_string());
            }
        };
        increment(150);
        if !filled {
            disk.fill(0);
        }
        increment(400);
        // The room is measured at the start, and after some writes.
        if filled {
            let new = post(&served.announced.http, "/counter/new/increment");
            assert!(new.status != 200 && new.body.contains("low-space: "), "{}", new.body);
        }
        let (code, _, log) = served.stop();
        assert_eq!(code, Some(0), "{log}");
    }
    fs::remove_file(disk.filler()).unwrap();
    let served = serve_with(&data, &["--hosts", "1"]);
    assert_eq!(get(&served.announced.http, "/counter/x").body, total.to_string());
    served.stop();
}

/// The page of a new file has no place on the disk, which the system reports only by a signal.
#[test]
fn a_page_without_a_place_is_no_broken_disk() {
    let Some(disk) = SmallDisk::make(8) else { return };
    let data = disk.data();
    fs::remove_file(data.join("supervisor/lock.mdb")).unwrap();
    disk.fill(0);
    let (code, said) = refused_start(serve_command(&data, &["--hosts", "1"]));
    assert!(matches!(code, Some(1 | 3)), "{said}");
    assert!(said.contains("no space is left on the file system of"), "{said}");
    fs::remove_file(disk.filler()).unwrap();
    let served = serve_with(&data, &["--hosts", "1"]);
    assert_eq!(get(&served.announced.http, "/counter/x").body, "1");
    served.stop();
}

// With a small reserve, one import used to fill the disk and end the server.
#[test]
fn an_import_leaves_room_however_small_the_reserve_is() {
    let Some(disk) = SmallDisk::make(64) else { return };
    let data = disk.data();
    let served = serve_with(&data, &["--hosts", "1", "--reserve", "1MiB"]);
    let archive = disk.path().join("x");
    let run = |args: &[&str]| {
        let output = capstead(args).arg(&archive).arg("--data").arg(&data).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    };
    let (code, said) = run(&["export", "--class", "Counter", "--name", "x"]);
    assert_eq!(code, Some(0), "{said}");
    disk.fill(20 << 10);
    let (code, said) = run(&["import", "--replace"]);
    assert!(code == Some(1) && said.contains("low-space: "), "{said}");
    assert_eq!(post(&served.announced.http, "/counter/x/increment").body.trim_end(), "2");
    fs::remove_file(disk.filler()).unwrap();
    let (code, said) = run(&["import", "--replace"]);
    assert_eq!(code, Some(0), "{said}");
    served.stop();
}

/// A folder seen where nothing can be written, until it is dropped.
struct ReadOnly(TempDir);

impl ReadOnly {
    fn of(folder: &Path) -> Self {
        let seen = tempfile::tempdir().expect("a folder");
        let mount = |args: &[&Path]| {
            let mounted = Command::new("mount").args(args).arg(seen.path()).status();
            assert!(mounted.expect("it runs").success(), "{args:?}");
        };
        mount(&[Path::new("--bind"), folder]);
        mount(&[Path::new("-o"), Path::new("remount,bind,ro")]);
        assert!(File::create(seen.path().join("x")).is_err());
        Self(seen)
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// A disk is full, or mounted read-only, when it needs to be looked at most.
#[test]
fn what_only_reads_works_on_full_disks_and_on_read_only_ones() {
    let Some(disk) = SmallDisk::make(16) else { return };
    let (data, elsewhere) = (disk.data(), tempfile::tempdir().expect("a folder"));
    let run = |args: &[&str], data: &Path| {
        let output = capstead(args).arg("--data").arg(data).output().expect("it runs");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(output.status.success(), "{args:?} of {}: {said}", data.display());
        said
    };
    let read = |name: &str, data: &Path| {
        let file = |kind| elsewhere.path().join(format!("{kind}-{name}"));
        let (backup, export) = (file("backup"), file("export"));
        run(&["backup", backup.to_str().unwrap()], data);
        run(&["export", export.to_str().unwrap(), "--all"], data);
        assert!(run(&["grants", "Counter"], data).contains("root"));
        assert!(run(&["key", "list"], data).contains("signs"), "it has a key");
        let restored = file("restored");
        let mut restore = capstead(["restore"]);
        let output = restore.arg(&backup).arg(&restored).output().expect("it runs");
        assert!(output.status.success(), "{output:?}");
        let served = serve_with(&restored, &["--hosts", "1"]);
        assert_eq!(get(&served.announced.http, "/counter/x").body, "1");
        served.stop();
    };
    disk.fill(0);
    read("full", &data);
    let seen = ReadOnly::of(disk.path());
    read("read-only", &seen.0.path().join("data"));
}
