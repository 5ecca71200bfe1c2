//! `capstead backup`: writes all data into a file, from which `restore` makes the same cluster
//! again.

use std::path::PathBuf;

use clap::Args;

use super::export::{Secrets, What, write};
use super::operator::{self, Data, Failure};
use super::transfer::Selection;

pub(super) const AFTER_HELP: &str = "\
The file holds the keys of the cluster: whoever reads it can make references to everything. It is \
readable for you alone; keep it so. The server may serve meanwhile: the file has the state of each \
host at one moment, with every call that was answered before.

  capstead backup /backups/monday.archive
  capstead restore /backups/monday.archive new.data && capstead serve --data new.data";

/// The data to back up, and the place to put them.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    data: Data,
    /// The file to make, which must not be there yet
    file: PathBuf,
}

/// Returns once the file is whole, or there is none.
pub(super) fn run(options: &Options) -> u8 {
    let backed_up = operator::block_on(async {
        if operator::is_stream(&options.file) {
            let reason = "a backup holds secrets: give it a file of its own";
            return Err(Failure::Cannot(reason.to_owned()));
        }
        let (selection, secrets) = (Selection::All, Secrets::Yes);
        let what = What { said: "a backup", selection, secrets };
        let totals = write(&options.data, &options.file, what, |_| Ok(())).await?;
        let (file, amount) = (options.file.display(), operator::amount(totals));
        Ok(format!("backed up {amount}, and the keys of the cluster, to {file}"))
    });
    operator::end(backed_up, None)
}
