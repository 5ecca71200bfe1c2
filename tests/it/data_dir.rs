//! The data directory from an operator's view: its making, its sharing, its refusal, and its mode.
//!
//! A data directory that can't be used must stay exactly as it was found, down to the last byte.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::support::random::Random;
use crate::support::{
    Process, Served, capstead, eventually, http, refused_start, scratch, serve, serve_command,
    serve_with, tree,
};

// Two servers on one directory would each consider itself the owner of every object.
#[test]
fn a_directory_in_use_is_refused_and_the_first_server_goes_on() {
    let (_folder, data) = scratch();
    let first = serve(&data);
    let (code, says) = refused_start(serve_command(&data, &[]));
    assert_eq!(code, Some(1));
    assert!(says.contains("in use"), "{says}");
    assert!(says.contains(&data.display().to_string()), "{says}");
    assert_eq!(http::post(&first.announced.http, "/counter/x/increment").body, "1");
}

/// A way to spoil a data directory, and the words that the refusal must contain besides the path.
struct Spoilt {
    name: &'static str,
    /// Spoils the data directory that a server left; returns the directory to start on.
    spoil: fn(&Path) -> PathBuf,
    /// The path at fault, below the directory to start on.
    names: &'static str,
    says: &'static str,
}

const SPOILT: [Spoilt; 24] = [
    Spoilt {
        name: "a key that others can read",
        spoil: |data| chmod(data, "keys/signing-1", 0o640),
        names: "keys/signing-1",
        says: "chmod 600 ",
    },
    Spoilt {
        name: "the cluster's key, that others can write",
        spoil: |data| chmod(data, "keys/cluster", 0o602),
        names: "keys/cluster",
        says: "chmod 600 ",
    },
    Spoilt {
        name: "keys where others can put theirs",
        spoil: |data| chmod(data, "keys", 0o770),
        names: "keys",
        says: "chmod go-w ",
    },
    Spoilt {
        name: "a directory where others can put theirs",
        spoil: |data| chmod(data, "", 0o757),
        names: "",
        says: "chmod go-w ",
    },
    Spoilt {
        name: "a missing parent",
        spoil: |data| data.with_file_name("nowhere").join("capstead.data"),
        names: "",
        says: "No such file",
    },
    Spoilt {
        name: "a directory of somebody else",
        spoil: |data| {
            empty(data, "");
            write(data, "thesis.txt", "years of work")
        },
        names: "",
        says: "not a data directory",
    },
    Spoilt {
        name: "a file",
        spoil: |data| {
            remove(data, "");
            fs::write(data, "years of work").expect("the copy can be spoilt");
            data.to_owned()
        },
        names: "",
        says: "can't read the data directory",
    },
    Spoilt {
        name: "a damaged format",
        spoil: |data| write(data, "format", "capstaed data 1\n"),
        names: "format",
        says: "damaged",
    },
    Spoilt {
        name: "an empty format",
        spoil: |data| write(data, "format", ""),
        names: "format",
        says: "damaged",
    },
    Spoilt {
        name: "a newer format",
        spoil: |data| write(data, "format", "capstead data 2\n"),
        names: "",
        says: "\"capstead data 2\"",
    },
    Spoilt {
        name: "a missing host",
        spoil: |data| remove(data, "host-0"),
        names: "host-0",
        says: "missing",
    },
    Spoilt {
        name: "a damaged cluster key",
        spoil: |data| write(data, "keys/cluster", "g".repeat(64)),
        names: "keys/cluster",
        says: "damaged",
    },
    Spoilt {
        name: "a short signing key",
        spoil: |data| write(data, "keys/signing-1", "0123456789abcdef\n"),
        names: "keys/signing-1",
        says: "damaged",
    },
    Spoilt {
        name: "a signing key that is no text",
        spoil: |data| write(data, "keys/signing-1", [0xff; 65]),
        names: "keys/signing-1",
        says: "damaged",
    },
    Spoilt {
        name: "a missing key",
        spoil: |data| remove(data, "keys/cluster"),
        names: "keys/cluster",
        says: "No such file",
    },
    Spoilt {
        name: "a missing format",
        spoil: |data| remove(data, "format"),
        names: "format",
        says: "missing",
    },
    Spoilt {
        name: "an emptied host",
        spoil: |data| empty(data, "host-0"),
        names: "host-0",
        says: "CAPSTEAD",
    },
    Spoilt {
        name: "an emptied supervisor",
        spoil: |data| empty(data, "supervisor"),
        names: "supervisor",
        says: "CAPSTEAD",
    },
    Spoilt {
        name: "a host without its data",
        spoil: |data| remove(data, "host-0/data.mdb"),
        names: "host-0",
        says: "its data file is gone",
    },
    Spoilt {
        name: "a host with no byte of data",
        spoil: |data| cut(data, 0),
        names: "host-0/data.mdb",
        says: "cut short",
    },
    Spoilt {
        name: "a host with a page of data",
        spoil: |data| cut(data, 4_096),
        names: "host-0/data.mdb",
        says: "cut short",
    },
    Spoilt {
        name: "a host cut within its pages",
        spoil: |data| cut(data, 5_000),
        names: "host-0/data.mdb",
        says: "cut short",
    },
    Spoilt {
        name: "a host with random bytes",
        spoil: |data| {
            let mut random = Random::from_printed_seed();
            let bytes: Vec<u8> = (0..100_000).map(|_| random.below(256) as u8).collect();
            write(data, "host-0/data.mdb", bytes)
        },
        names: "host-0/data.mdb",
        says: "doesn't begin as",
    },
    Spoilt {
        name: "a host of a newer format",
        spoil: |data| write(data, "host-0/CAPSTEAD", "capstead objects format 5\n"),
        names: "host-0",
        says: "format 5",
    },
];

fn remove(data: &Path, name: &str) -> PathBuf {
    let path = data.join(name);
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.expect("the copy can be spoilt");
    data.to_owned()
}

fn empty(data: &Path, folder: &str) -> PathBuf {
    remove(data, folder);
    fs::create_dir(data.join(folder)).expect("the copy can be spoilt");
    data.to_owned()
}

fn cut(data: &Path, length: u64) -> PathBuf {
    let file = fs::File::options().write(true).open(data.join("host-0/data.mdb"));
    file.and_then(|file| file.set_len(length)).expect("the copy can be spoilt");
    data.to_owned()
}

fn write(data: &Path, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
    fs::write(data.join(name), contents).expect("it can be written");
    data.to_owned()
}

fn chmod(data: &Path, name: &str, mode: u32) -> PathBuf {
    let mode = fs::Permissions::from_mode(mode);
    fs::set_permissions(data.join(name), mode).expect("the mode can be set");
    data.to_owned()
}

// An operator who mistypes a path, restores half a backup or goes back a version loses nothing by
// trying.
#[test]
fn a_directory_that_cannot_be_used_is_named_and_left_as_it_was() {
    let (folder, data) = scratch();
    let served = serve(&data);
    assert_eq!(http::post(&served.announced.http, "/counter/x/increment").body, "1");
    assert_eq!(served.stop().0, Some(0));
    for Spoilt { name, spoil, names, says } in SPOILT {
        let place = folder.path().join(name.replace(' ', "-"));
        let copy = place.join("capstead.data");
        tree::copy(&data, &copy);
        let start_on = spoil(&copy);
        let before = tree::look(&place);
        let (code, stderr) = refused_start(serve_command(&start_on, &[]));
        assert_eq!(code, Some(1), "{name}: {stderr}");
        assert!(stderr.contains(says), "{name}: {stderr}");
        let to_blame = if names.is_empty() { start_on } else { start_on.join(names) };
        let to_blame = to_blame.display().to_string();
        // Without a parent, the message names the path that would have been made there.
        let parent = to_blame.trim_end_matches("capstead.data");
        assert!(stderr.contains(&to_blame) || stderr.contains(parent), "{name}: {stderr}");
        assert!(tree::look(&place) == before, "{name}: the directory was changed");
    }
}

/// A snapshot without the placement, because reading it opens it, and it counts its openings.
fn look_at_objects_and_keys(folder: &Path) -> tree::Tree {
    let mut tree = tree::look(folder);
    tree.retain(|path, _| !path.starts_with("supervisor"));
    tree
}

// The number of hosts determines which host has which object: with another number, objects would
// seem to be gone.
#[test]
fn another_number_of_hosts_is_refused_and_changes_nothing() {
    let (_folder, data) = scratch();
    assert_eq!(serve_with(&data, &["--hosts", "2"]).stop().0, Some(0));
    let wrong = [("1", 1, "hosts"), ("3", 1, "host-2"), ("0", 2, "hosts"), ("65", 2, "hosts")];
    for (hosts, exits, says) in wrong {
        let before = look_at_objects_and_keys(&data);
        let (code, stderr) = refused_start(serve_command(&data, &["--hosts", hosts]));
        assert_eq!(code, Some(exits), "--hosts {hosts}: {stderr}");
        assert!(stderr.contains(says), "--hosts {hosts}: {stderr}");
        assert!(
            look_at_objects_and_keys(&data) == before,
            "--hosts {hosts}: the directory was changed"
        );
    }
    assert_eq!(serve_with(&data, &["--hosts", "2"]).stop().0, Some(0));
}

fn counts(served: &Served, value: &str) {
    assert_eq!(http::post(&served.announced.http, "/counter/x/increment").body, value);
}

// A service manager or an operator starts a server several times: one makes the directory and
// serves, and the others leave both alone.
#[test]
fn of_servers_that_start_at_once_on_no_directory_one_serves() {
    const AT_ONCE: usize = 3;
    for round in 0..8 {
        let (_folder, data) = scratch();
        let start = || Process::start(serve_command(&data, &["--json"]));
        let mut starting: Vec<Process> = (0..AT_ONCE).map(|_| start()).collect();
        let mut refused = 0;
        eventually("all but one to end", || {
            starting.retain_mut(|process| match process.ended() {
                Some(status) => {
                    let says = process.stderr();
                    assert_eq!(status.code(), Some(1), "round {round}: {says}");
                    assert!(says.contains("in use"), "round {round}: {says}");
                    refused += 1;
                    false
                }
                None => true,
            });
            (refused == AT_ONCE - 1).then_some(())
        });
        let served = Served::ready(starting.remove(0));
        counts(&served, "1");
        assert_eq!(served.stop().0, Some(0), "round {round}");
        counts(&serve(&data), "2");
    }
}

// A mount point is an empty directory that can't be renamed over; other operators pass a link, or
// `.`.
#[test]
fn an_empty_directory_is_filled_where_it_is() {
    let (folder, data) = scratch();
    fs::create_dir(&data).unwrap();
    let made = fs::metadata(&data).unwrap();
    let same = |path: &Path| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(path).unwrap().ino() == made.ino()
    };
    counts(&serve(&data), "1");
    assert!(same(&data), "it is the directory that was there");
    counts(&serve(&data), "2");

    let link = folder.path().join("link");
    fs::create_dir(folder.path().join("elsewhere")).unwrap();
    symlink("elsewhere", &link).unwrap();
    counts(&serve(&link), "1");
    assert!(link.is_symlink() && folder.path().join("elsewhere/format").is_file());
    counts(&serve(&link), "2");

    let here = folder.path().join("here");
    fs::create_dir(&here).unwrap();
    for value in ["1", "2"] {
        let mut command = serve_command(Path::new("."), &["--json"]);
        command.current_dir(&here);
        counts(&Served::ready(Process::start(command)), value);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4, "nothing lies beside them");
}

// Every new ext4 file system has such a folder, which only root can look into.
#[test]
fn a_new_file_system_is_filled_where_it_is_mounted() {
    let (folder, data) = scratch();
    fs::create_dir_all(data.join("lost+found")).unwrap();
    counts(&serve(&data), "1");
    let archive = folder.path().join("backup");
    let verb = |args: &[&std::ffi::OsStr]| {
        let output = capstead(args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    verb(&["backup".as_ref(), archive.as_ref(), "--data".as_ref(), data.as_ref()]);
    let other = folder.path().join("other");
    fs::create_dir_all(other.join("lost+found")).unwrap();
    verb(&["restore".as_ref(), archive.as_ref(), other.as_ref()]);
    counts(&serve(&other), "2");
    assert!(data.join("lost+found").is_dir() && other.join("lost+found").is_dir());
}

// A crash while the directory is made leaves parts: these are made anew, and nothing else is
// removed.
#[test]
fn parts_that_were_never_finished_are_made_anew() {
    let (_folder, data) = scratch();
    serve(&data).stop();
    let old_key = fs::read(data.join("keys/cluster")).unwrap();
    fs::rename(data.join("format"), data.join("format.new")).unwrap();
    write(&data, "lock", "this data directory of capstead is being made\n");
    let notes = data.join("notes.txt");
    fs::write(&notes, "of somebody else").unwrap();
    let before = tree::look(&data);
    let (code, says) = refused_start(serve_command(&data, &[]));
    assert_eq!(code, Some(1));
    assert!(says.contains("not a data directory"), "{says}");
    assert!(tree::look(&data) == before, "the directory was changed");
    fs::remove_file(notes).unwrap();
    counts(&serve(&data), "1");
    assert!(fs::read(data.join("keys/cluster")).unwrap() != old_key, "the keys are new");
    assert_eq!(fs::read(data.join("lock")).unwrap(), b"");
    assert!(!data.join("format.new").exists());
}

// Keys are secrets of the operator, and data are secrets of the users: no other account reads them.
#[test]
fn only_the_owner_can_read_the_data_directory() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--hosts", "2"]);
    assert_eq!(http::post(&served.announced.http, "/counter/x/increment").body, "1");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let folders = ["", "keys", "supervisor", "host-0", "host-1"];
    for folder in folders {
        assert_eq!(mode(&data.join(folder)), 0o700, "{folder}");
    }
    for file in ["keys/cluster", "keys/signing-1", "host-0/data.mdb", "host-1/data.mdb"] {
        assert_eq!(mode(&data.join(file)), 0o600, "{file}");
    }
    let mut segments = 0;
    for file in ["host-0", "host-1"].iter().flat_map(|host| fs::read_dir(data.join(host)).unwrap())
    {
        let path = file.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with("segment-") {
            segments += 1;
            assert_eq!(mode(&path), 0o600, "{path:?}");
        }
    }
    assert!(segments > 0, "one of the hosts has a log");
    let of_hosts = fs::read_dir(data.join("keys")).unwrap().count();
    assert_eq!(of_hosts, 2, "no other key lies around");
}

// A core dump would contain the keys, and a debugger of the same user could read them.
#[cfg(target_os = "linux")]
#[test]
fn the_memory_of_a_server_is_for_nobody() {
    use std::os::unix::fs::{MetadataExt, chown};
    use std::os::unix::process::CommandExt;

    const NOBODY: u32 = 65534;
    let (folder, data) = scratch();
    let mut command = serve_command(&data, &["--json"]);
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if is_root {
        // The files of a process of root's belong to root in any case, so the server runs as
        // another user. That user can't reach root's folders, so the program is copied.
        let program = folder.path().join("capstead");
        fs::copy(command.get_program(), &program).unwrap();
        chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        let args: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        command = std::process::Command::new(program);
        command.args(args).uid(NOBODY).gid(NOBODY);
    }
    let server = Served::ready(Process::start(command));
    let of_process = Path::new("/proc").join(server.pid().to_string());
    assert_eq!(fs::metadata(of_process.join("environ")).unwrap().uid(), 0, "it isn't dumpable");
    let limits = fs::read_to_string(of_process.join("limits")).unwrap();
    let cores = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    assert_eq!(cores.split_whitespace().take(2).collect::<Vec<_>>(), ["0", "0"]);
}
