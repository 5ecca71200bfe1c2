//! `capstead import`: reads objects from a file, even while the server serves.

use std::fmt::Write;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::operator::{self, Data, Failure};
use super::transfer::{self, GrantCounts, Looked};
use crate::schema::admin_capnp::{Existing, ImportedGrants, admin};
use crate::storage::Access;

pub(super) const AFTER_HELP: &str = "\
The whole file is looked at before anything is changed. Without --replace nothing is changed if one of \
its objects exists. An object that is awake ends, and those who hold it restore their references. If an \
import is cut short, the objects before are there, and of a large one that was under way not everything: \
that one says so when it is called, until it is imported again. Importing the same file again ends such an \
import: it takes no --replace, and leaves what came before as it is now. Grants of what is here stay as they are: \
what was revoked since the export stays so. With --grants replace they become those of the file, and the \
others are revoked.";

/// The archive to import, and the data to import it into.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    data: Data,
    /// A file that export or backup made; - for standard input
    file: PathBuf,
    /// Remove all that an object has before it is imported
    #[arg(long)]
    replace: bool,
    /// The grants that existing objects and namespaces have afterwards
    #[arg(long, value_name = "WHOSE", value_enum, default_value_t)]
    grants: Grants,
}

/// The source of the grants that stay.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Grants {
    /// Those of this cluster: a revoked grant doesn't come back
    #[default]
    Keep,
    /// Those of the file, as they were when it was made; requires --replace
    Replace,
}

/// Returns once all objects are there, or with the reason why they aren't.
pub(super) fn run(options: &Options) -> u8 {
    operator::end(operator::block_on(import(options)), None)
}

async fn import(options: &Options) -> Result<String, Failure> {
    let path = &options.file;
    let grants = match options.grants {
        Grants::Keep => ImportedGrants::Keep,
        Grants::Replace if options.replace => ImportedGrants::Replace,
        Grants::Replace => {
            return Err(Failure::Cannot("--grants replace takes --replace".to_owned()));
        }
    };
    let mut file = operator::open(path)?;
    let opened = options.data.open(Access::Full).await?;
    let imported = async {
        let admin = opened.admin();
        let claimed = admin.claim_import_request().send().promise.await?;
        // Held until the import has ended.
        let _claim = claimed.get()?.get_claim()?;
        let described = admin.describe_request().send().promise.await?;
        let at = (admin, described.get()?.get_hosts());
        let cluster = described.get()?.get_cluster()?.to_vec();
        let length = file.metadata().map_err(operator::refused("read", path))?.len();
        let bar = operator::bar("checking", Some(length));
        let looked = transfer::look(&mut file, path, Some(at), &bar).await?;
        let existing = match options.replace {
            true => Existing::Replace,
            false if is_under_way(admin, &looked).await? => Existing::Skip,
            false => Existing::Refuse,
        };
        if looked.present > 0 && existing == Existing::Refuse {
            return Err(refuse(&looked));
        }
        if existing == Existing::Refuse {
            remember(admin, &looked.hash, Progress::UnderWay).await?;
        }
        let bar = operator::bar("importing", Some(length));
        let counts = transfer::bring_in(&mut file, path, at, (existing, grants), &bar).await?;
        // All of it is here now, even if an earlier import was cut short.
        remember(admin, &looked.hash, Progress::Ended).await?;
        bar.finish_and_clear();
        let is_foreign = looked.cluster != cluster;
        Ok((looked, counts, is_foreign))
    };
    let imported = imported.await;
    opened.close().await?;
    let (looked, counts, is_foreign) = imported?;
    let replaced = match looked.present {
        0 => String::new(),
        present if options.replace => format!("; {present} of them existed, and were replaced"),
        present => {
            format!(
                "; {present} of them came with the import that was cut short, and stay as they are"
            )
        }
    };
    let foreign = if is_foreign {
        "; the file is another cluster's, whose references are not good here"
    } else {
        ""
    };
    let amount = operator::amount(looked.totals);
    Ok(format!("imported {amount}{replaced}; {}{foreign}", said(counts)))
}

/// Tells whether an import of the same archive, without --replace, was cut short.
async fn is_under_way(admin: &admin::Client, looked: &Looked) -> Result<bool, Failure> {
    let mut request = admin.import_under_way_request();
    request.get().set_archive(&looked.hash);
    Ok(request.send().promise.await?.get()?.get_is_under_way())
}

/// The progress of an import, as the server remembers it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    UnderWay,
    Ended,
}

async fn remember(
    admin: &admin::Client,
    archive: &[u8],
    progress: Progress,
) -> Result<(), Failure> {
    let mut request = admin.set_import_under_way_request();
    request.get().set_archive(archive);
    request.get().set_is_under_way(progress == Progress::UnderWay);
    request.send().promise.await?;
    Ok(())
}

fn said(counts: GrantCounts) -> String {
    let GrantCounts { kept, brought, left_out, revoked } = counts;
    let mut said = format!("grants: {kept} kept, {brought} brought");
    if left_out > 0 {
        let _ = write!(said, ", {left_out} left out that are not in force here");
    }
    if revoked > 0 {
        let _ = write!(said, ", {revoked} revoked");
    }
    said
}

fn refuse(looked: &Looked) -> Failure {
    let more = if looked.present > looked.named.len() { ", and more" } else { "" };
    let (present, named) = (looked.present, looked.named.join(", "));
    Failure::Cannot(format!(
        "{present} of the objects exist already: {named}{more}. Nothing was changed; --replace \
         replaces them"
    ))
}
