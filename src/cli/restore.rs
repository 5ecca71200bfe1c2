//! `capstead restore`: a new data directory out of a backup.
//!
//! It is made beside its place and gets its name when it is whole: what is cut short is no data
//! directory, and is removed by the next attempt.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::operator::{self, Failure, refused};
use super::transfer;
use crate::schema::admin_capnp::{Existing, ImportedGrants};
use crate::server::{Operated, remake};

pub(super) const AFTER_HELP: &str = "\
The new directory is the same cluster: references that were given out before are good again, also those \
that were revoked after the backup. What was written after the backup is not in it. Never serve it beside the old one: both would take the same \
references, and know nothing of each other.";

/// Which backup, and where to.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// A file that backup made; - for standard input
    file: PathBuf,
    /// The data directory to make; it must not be there yet, or be empty
    dir: PathBuf,
}

/// Returns when the directory can be served, or there is none.
pub(super) fn run(options: &Options) -> ExitCode {
    operator::end(operator::block_on(restore(options)), None)
}

async fn restore(options: &Options) -> Result<String, Failure> {
    let path = &options.file;
    // Without a slash at the end, which would hide the last name.
    let dir: PathBuf = options.dir.components().collect();
    check_empty(&dir)?;
    let mut file = operator::open(path)?;
    let length = file.metadata().map_err(refused("read", path))?.len();
    let bar = operator::bar("checking", Some(length));
    let looked = transfer::look(&mut file, path, None, &bar).await?;
    if looked.secrets.is_empty() {
        let reason =
            "is an export and no backup: it lacks the keys; serve a new directory, and import it";
        return Err(Failure::Cannot(format!("{} {reason}", path.display())));
    }
    let beside = beside(&dir);
    remove_leftover(&beside)?;
    remake(&beside, looked.hosts, looked.secrets)?;
    let operated = Operated::open(&beside).await?;
    let bar = operator::bar("restoring", Some(length));
    let at = (operated.admin(), looked.hosts);
    let policy = (Existing::Replace, ImportedGrants::Replace);
    let restored = transfer::bring_in(&mut file, path, at, policy, &bar).await;
    operated.close().await?;
    let counts = restored?;
    bar.finish_and_clear();
    fs::rename(&beside, &dir).map_err(refused("give the restored directory the name", &dir))?;
    operator::sync(operator::folder(&dir))?;
    let (amount, brought) = (operator::amount(looked.totals), counts.brought);
    Ok(format!(
        "restored {amount} to {}; grants: {brought} brought, also those that were revoked after the backup",
        dir.display()
    ))
}

fn check_empty(dir: &Path) -> Result<(), Failure> {
    let is_empty = match fs::read_dir(dir) {
        Ok(mut names) => names.next().is_none(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => return Err(refused("look into", dir)(error)),
    };
    if is_empty {
        return Ok(());
    }
    Err(Failure::Cannot(format!("{} is not empty; choose a new directory", dir.display())))
}

fn beside(dir: &Path) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push(".restoring");
    PathBuf::from(name)
}

/// Removes what an attempt left that was cut short, and nothing else.
fn remove_leftover(beside: &Path) -> Result<(), Failure> {
    if beside.symlink_metadata().is_err() {
        return Ok(());
    }
    // A directory that is whole, or in use, is somebody's data under an unlucky name.
    let lock = File::open(beside.join("lock"));
    let is_free = lock.as_ref().is_ok_and(|lock| lock.try_lock().is_ok());
    let is_ours = (is_free && !beside.join("format").exists())
        || fs::read_dir(beside).is_ok_and(|mut names| names.next().is_none());
    if !is_ours {
        let name = beside.display();
        return Err(Failure::Cannot(format!("{name} is in the way; move it elsewhere")));
    }
    fs::remove_dir_all(beside).map_err(refused("remove", beside))
}
