//! Root's commands on the data of a user who tries to redirect them to another user's data: by
//! links, by a socket, or by a pipe without a writer; and a group that isn't the directory's.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::support::http::post;
use crate::support::{Process, Served, capstead, refused_start, serve_command, serve_with};

/// The user whose data must stay private, and the one who tries to read them.
const VICTIM: u32 = 65534;
const THIEF: u32 = 65533;

/// The data of both users, and a folder in which the victim's server can run.
struct Both {
    folder: TempDir,
    victim: PathBuf,
    thief: PathBuf,
}

/// A way to redirect a name.
type Lead = fn(&Path, &Path) -> std::io::Result<()>;

/// None unless this process runs as root.
fn both() -> Option<Both> {
    if fs::metadata("/proc/self").expect("this process is there").uid() != 0 {
        eprintln!("skipped what only root can try");
        return None;
    }
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("it is ours");
    let made = |name: &str, user, object: &str| {
        let data = folder.path().join(name);
        let served = serve_with(&data, &["--hosts", "1"]);
        assert_eq!(
            post(&served.announced.http, &format!("/counter/{object}/increment")).status,
            200
        );
        served.stop();
        give(&data, user);
        data
    };
    let (victim, thief) = (made("victim", VICTIM, "hidden"), made("thief", THIEF, "own"));
    Some(Both { folder, victim, thief })
}

/// Gives the path and everything below it to the user.
fn give(path: &Path, user: u32) {
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("it can be read") {
            give(&entry.expect("it can be read").path(), user);
        }
    }
    chown(path, Some(user), Some(user)).expect("root may");
}

/// The exit code and output of a command that root runs on the data; fails if it hangs.
fn told(data: &Path, args: &[&str]) -> (Option<i32>, String) {
    let mut command = capstead(args);
    command.arg("--data").arg(data);
    let mut process = Process::start(command);
    let status = process.wait();
    (status.code(), process.stdout() + &process.stderr())
}

impl Both {
    fn file(&self) -> PathBuf {
        self.folder.path().join("file")
    }

    /// Checks that none of root's commands reads anything: they print these words, and make no
    /// file.
    fn assert_refused(&self, what: &str, says: &[&str]) {
        let file = self.file();
        let path = file.to_str().expect("text");
        for args in [
            &["export", path, "--all"][..],
            &["backup", path],
            &["grants", "Counter/hidden"],
            &["key", "list"],
        ] {
            let (code, said) = told(&self.thief, args);
            assert_eq!(code, Some(1), "{what}: {args:?}: {said}");
            assert!(says.iter().any(|says| said.contains(says)), "{what}: {args:?}: {said}");
            assert!(!file.exists(), "{what}: {args:?}");
        }
    }
}

// All of these commands used to succeed, with the exit code 0.
#[test]
fn no_link_leads_root_to_the_data_of_somebody_else() {
    let Some(both) = both() else { return };
    for name in [
        "host-0",
        "host-0/data.mdb",
        "host-0/CAPSTEAD",
        "host-0/lock.mdb",
        "host-0/spare-1",
        "supervisor",
        "supervisor/data.mdb",
        "keys",
        "keys/cluster",
        "keys/signing-1",
        "format",
        "lock",
    ] {
        let (ours, theirs) = (both.thief.join(name), both.victim.join(name));
        let aside = both.folder.path().join("aside");
        fs::rename(&ours, &aside).expect("root may");
        symlink(&theirs, &ours).expect("root may");
        both.assert_refused(name, &["it is a symbolic link", "is no data directory"]);
        fs::remove_file(&ours).expect("root may");
        if theirs.is_file() {
            fs::hard_link(&theirs, &ours).expect("root may");
            both.assert_refused(name, &["belongs to the user 65534"]);
            fs::remove_file(&ours).expect("root may");
        }
        fs::rename(&aside, &ours).expect("root may");
    }
    // A restore would write where the thief may put links meanwhile.
    let (backup, empty) = (both.folder.path().join("backup"), both.folder.path().join("empty"));
    let backup = backup.to_str().expect("text");
    assert_eq!(told(&both.victim, &["backup", backup]).0, Some(0));
    fs::create_dir(&empty).expect("it is ours");
    give(&empty, THIEF);
    let mut restore = Process::start({
        let mut command = capstead(["restore", backup]);
        command.arg(&empty);
        command
    });
    assert_eq!(restore.wait().code(), Some(1));
    assert!(restore.stderr().contains("sudo -u '#65533'"), "{}", restore.stderr());
    assert_eq!(fs::read_dir(&empty).expect("it can be read").count(), 0);
    let file = both.file();
    let (code, said) = told(&both.thief, &["export", file.to_str().expect("text"), "--all"]);
    assert_eq!(code, Some(0), "nothing is wrong any more: {said}");
}

// Root's commands used to talk to the other server: they took its keys, and gave it new ones.
#[test]
fn no_socket_leads_root_to_the_server_of_somebody_else() {
    let Some(both) = both() else { return };
    let program = both.folder.path().join("capstead");
    // Copied by another process, because a file that this process has open for writing can't be
    // run.
    let copied = Command::new("cp").arg(capstead(["serve"]).get_program()).arg(&program).status();
    assert!(copied.expect("cp runs").success());
    let mut command = Command::new(&program);
    command.args(serve_command(&both.victim, &["--json", "--hosts", "1"]).get_args());
    let served = Served::ready(Process::start({
        command.uid(VICTIM).gid(VICTIM);
        command
    }));
    let keys = |data: &Path| fs::read_dir(data.join("keys")).expect("it can be read").count();
    let lock = File::open(both.thief.join("lock")).expect("root may");
    lock.lock().expect("nobody has it");
    let (theirs, ours) = (both.victim.join("admin.sock"), both.thief.join("admin.sock"));
    let ways: [(&str, Lead, &str); 2] = [
        ("a link", |to, from| symlink(to, from), "it is a symbolic link"),
        ("the same", |to, from| fs::hard_link(to, from), "belongs to the user 65534"),
    ];
    for (what, lead, says) in ways {
        lead(&theirs, &ours).expect("root may");
        both.assert_refused(what, &[says]);
        let (code, said) = told(&both.thief, &["key", "rotate"]);
        assert!(code == Some(1) && said.contains(says), "{said}");
        fs::remove_file(&ours).expect("root may");
    }
    assert_eq!(keys(&both.victim), 2, "no key was made");
    // The victim's own server, at the socket of another directory of the same user.
    give(&both.thief, VICTIM);
    fs::hard_link(&theirs, &ours).expect("root may");
    both.assert_refused("another directory", &["serves another directory"]);
    // Root may command the right server.
    assert_eq!(told(&both.victim, &["key", "rotate"]).0, Some(0));
    assert_eq!(keys(&both.victim), 3);
    served.stop();
}

// Root's commands used to hang on such a pipe.
#[test]
fn no_pipe_keeps_roots_commands_waiting() {
    let Some(both) = both() else { return };
    let (file, path) = (both.file(), both.file());
    let path = path.to_str().expect("text");
    for name in [
        "keys/cluster",
        "keys/signing-1",
        "format",
        "lock",
        "host-0/CAPSTEAD",
        "host-0/data.mdb",
        "host-0/lock.mdb",
        "supervisor/CAPSTEAD",
        "supervisor/data.mdb",
    ] {
        let (pipe, aside) = (both.thief.join(name), both.folder.path().join("aside"));
        fs::rename(&pipe, &aside).expect("root may");
        let made = Command::new("mkfifo").args(["-m", "600"]).arg(&pipe).status();
        assert!(made.expect("mkfifo runs").success());
        chown(&pipe, Some(THIEF), Some(THIEF)).expect("root may");
        for args in [&["backup", path][..], &["key", "list"]] {
            let (code, said) = told(&both.thief, args);
            assert_eq!(code, Some(1), "{name}: {args:?}: {said}");
            let is_named =
                said.contains("no regular file") || said.contains("is no data directory");
            assert!(is_named && !file.exists(), "{name}: {args:?}: {said}");
        }
        fs::remove_file(&pipe).expect("root may");
        fs::rename(&aside, &pipe).expect("root may");
    }
}

// Any group used to be trusted, not only the directory's.
#[test]
fn a_group_that_is_not_the_directorys_is_not_trusted() {
    let Some(both) = both() else { return };
    let data = &both.victim;
    give(data, 0);
    for entry in
        ["keys", "keys/cluster", "keys/signing-1", "host-0", "host-0/data.mdb", "host-0/spare-1"]
    {
        let path = data.join(entry);
        let mode = if path.is_dir() { 0o770 } else { 0o660 };
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("root may");
        let start = || serve_command(data, &["--hosts", "1", "--trust-group"]);
        chown(&path, None, Some(7)).expect("root may");
        let (code, said) = refused_start(start());
        assert!(code == Some(1) && said.contains("chgrp 0"), "{entry}: {said}");
        let (code, said) = told(data, &["grants", "Counter", "--trust-group"]);
        assert!(code == Some(1) && said.contains("chgrp 0"), "{entry}: {said}");
        chown(&path, None, Some(0)).expect("root may");
        assert_eq!(told(data, &["grants", "Counter", "--trust-group"]).0, Some(0), "{entry}");
    }
}
