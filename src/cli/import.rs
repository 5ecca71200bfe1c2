//! `capstead import`: objects out of a file, also while the server serves.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::operator::{self, Data, Failure};
use super::transfer::{self, Looked};
use crate::schema::admin_capnp::Existing;
use crate::server::Operated;

pub(super) const AFTER_HELP: &str = "\
The whole file is looked at before anything is changed. Without --replace nothing is changed if one of \
its objects exists. An object that is awake ends, and those who hold it restore their references. If an \
import is cut short, the objects before are there, and of a large one that was under way not everything: \
that one says so when it is called, until it is imported again. Grants of namespaces are left as they \
are without --replace.";

/// What to bring in, and where to.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    data: Data,
    /// A file that export or backup made; - for standard input
    file: PathBuf,
    /// Remove all that an object has before it is imported
    #[arg(long)]
    replace: bool,
}

/// Returns when all objects are there, or why they aren't.
pub(super) fn run(options: &Options) -> ExitCode {
    operator::end(operator::block_on(import(options)), None)
}

async fn import(options: &Options) -> Result<String, Failure> {
    let path = &options.file;
    let mut file = operator::open(path)?;
    let operated = Operated::open(&options.data.path).await?;
    let imported = async {
        let admin = operated.admin();
        let described = admin.describe_request().send().promise.await?;
        let at = (admin, described.get()?.get_hosts());
        let length = file.metadata().map_err(operator::refused("read", path))?.len();
        let bar = operator::bar("checking", Some(length));
        let looked = transfer::look(&mut file, path, Some(at), &bar).await?;
        let existing = if options.replace { Existing::Replace } else { Existing::Refuse };
        if looked.present > 0 && existing == Existing::Refuse {
            return Err(refuse(&looked));
        }
        let bar = operator::bar("importing", Some(length));
        transfer::bring_in(&mut file, path, at, existing, &bar).await?;
        bar.finish_and_clear();
        Ok(looked)
    };
    let imported = imported.await;
    operated.close().await?;
    let looked = imported?;
    let replaced = match looked.present {
        0 => String::new(),
        present => format!("; {present} of them existed, and were replaced"),
    };
    Ok(format!("imported {}{replaced}", operator::amount(looked.totals)))
}

fn refuse(looked: &Looked) -> Failure {
    let more = if looked.present > looked.named.len() { ", and more" } else { "" };
    let (present, named) = (looked.present, looked.named.join(", "));
    Failure::Cannot(format!(
        "{present} of the objects exist already: {named}{more}. Nothing was changed; --replace \
         replaces them"
    ))
}
