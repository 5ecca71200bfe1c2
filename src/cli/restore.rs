//! `capstead restore`: makes a new data directory from a backup.
//!
//! The directory is made in place, and no server serves it before everything is there. The next
//! `capstead restore` into it removes the remains of one that was cut short.

use std::path::PathBuf;

use clap::Args;

use super::operator::{self, Failure, Space, refused};
use super::transfer;
use crate::schema::admin_capnp::{Existing, ImportedGrants};
use crate::server::Restoring;
use crate::storage::Access;

pub(super) const AFTER_HELP: &str = "\
The new directory is the same cluster: references that were given out before are good again, also those \
that were revoked after the backup. What was written after the backup is not in it. Never serve it beside the old one: both would take the same \
references, and know nothing of each other.";

/// The backup, and the directory to make.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// A file that backup made; - for standard input
    file: PathBuf,
    /// The data directory to make; it must not exist yet, be empty, or hold the remains of a
    /// restore that was cut short
    dir: PathBuf,
    #[command(flatten)]
    space: Space,
}

/// Returns once the directory can be served, or there is none.
pub(super) fn run(options: &Options) -> u8 {
    operator::end(operator::block_on(restore(options)), None)
}

async fn restore(options: &Options) -> Result<String, Failure> {
    let path = &options.file;
    if operator::is_stream(&options.dir) {
        let reason = "a backup is restored into a directory, and - is none: name one, or ./- if it is called so";
        return Err(Failure::Cannot(reason.to_owned()));
    }
    Restoring::check(&options.dir)?;
    let mut file = operator::open(path)?;
    let length = file.metadata().map_err(refused("read", path))?.len();
    let bar = operator::bar("checking", Some(length));
    let looked = transfer::look(&mut file, path, None, &bar).await?;
    if looked.secrets.is_empty() {
        let reason =
            "is an export and no backup: it lacks the keys; serve a new directory, and import it";
        return Err(Failure::Cannot(format!("{} {reason}", path.display())));
    }
    let log = options.space.options(Access::Full);
    let restoring = Restoring::begin(&options.dir, looked.hosts, &looked.secrets, log)?;
    let bar = operator::bar("restoring", Some(length));
    let at = (restoring.admin(), looked.hosts);
    let policy = (Existing::Replace, ImportedGrants::Replace);
    let counts = match transfer::bring_in(&mut file, path, at, policy, &bar).await {
        Ok(counts) => counts,
        Err(error) => {
            restoring.give_up().await;
            return Err(error);
        }
    };
    restoring.finish().await?;
    bar.finish_and_clear();
    let (amount, brought) = (operator::amount(looked.totals), counts.brought);
    Ok(format!(
        "restored {amount} to {}; grants: {brought} brought, also those that were revoked after the backup",
        options.dir.display()
    ))
}
