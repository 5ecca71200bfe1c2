//! `capstead export`: writes objects into a file, even while the server serves.

use std::io::BufWriter;
use std::path::PathBuf;

use clap::Args;

use super::operator::{self, Data, Failure};
use super::output::Output;
use super::transfer::{self, Selection};
use crate::clock::Clock;
use crate::id::{ObjectId, Pool};
use crate::server::OpenedData;
use crate::storage::Access;
use crate::storage::archive::{ArchiveWriter, Frame, Head, Totals};

pub(super) const AFTER_HELP: &str = "\
The file has the state of each host at one moment, with every call that was answered before. It is \
made beside its place, and gets its name when it is whole. An object that is being imported meanwhile \
is left out until it is whole.

  capstead export everything.archive --all
  capstead export rooms.archive --class Room
  capstead export - --class Room --name lobby | ssh other capstead import -";

/// The objects to export, and the file to write.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    data: Data,
    /// The file to make, which must not be there yet; - for standard output
    file: PathBuf,
    #[command(flatten)]
    which: Which,
}

#[derive(Args, Clone, Debug)]
#[group(required = true, args = ["all", "class", "id"])]
struct Which {
    /// Every object, and the grants of the namespaces
    #[arg(long, conflicts_with_all = ["class", "name", "id"])]
    all: bool,
    /// The objects of one class
    #[arg(long, value_name = "CLASS", conflicts_with = "id")]
    class: Option<String>,
    /// Of that class, the object of this name
    #[arg(long, value_name = "NAME", requires = "class")]
    name: Option<String>,
    /// One object, by its id: 32 hexadecimal digits
    #[arg(long, value_name = "HEX", value_parser = object_id)]
    id: Option<ObjectId>,
}

/// An id from its 32 digits.
pub(super) fn object_id(text: &str) -> Result<ObjectId, String> {
    let wrong = || "an object's id has 32 hexadecimal digits".to_owned();
    let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len() == 2 * ObjectId::LEN).ok_or_else(wrong)?;
    let mut id = [0; ObjectId::LEN];
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = (pair[0] << 4 | pair[1]) as u8;
    }
    Ok(ObjectId::from_bytes(id))
}

impl Which {
    /// The selected objects, in words for people.
    fn said(&self) -> String {
        match (&self.class, &self.name, &self.id) {
            (Some(class), Some(name), _) => format!("the {class} named {name:?}"),
            (Some(class), None, _) => format!("objects of the class {class}"),
            (None, _, Some(id)) => format!("the object {id:?}"),
            (None, _, None) => "everything".to_owned(),
        }
    }

    fn selection(&self) -> Selection {
        match (&self.class, &self.name, &self.id) {
            (Some(class), Some(name), _) => {
                Selection::Object(ObjectId::named(Pool::default(), class, name))
            }
            (Some(class), None, _) => Selection::Class(class.clone()),
            (None, _, Some(id)) => Selection::Object(*id),
            (None, _, None) => Selection::All,
        }
    }
}

/// Returns once the file is whole, or there is none.
pub(super) fn run(options: &Options) -> u8 {
    let exported = operator::block_on(async {
        let said = options.which.said();
        let what = What { said: &said, selection: options.which.selection(), secrets: Secrets::No };
        let totals = write(&options.data, &options.file, what, |totals| {
            if totals.objects == 0 && !options.which.all {
                return Err(Failure::Cannot(format!("there are no such objects: {said}")));
            }
            Ok(())
        });
        let (file, totals) = (options.file.display(), totals.await?);
        Ok(format!("exported {} to {file}", operator::amount(totals)))
    });
    operator::end(exported, Some(&options.file))
}

/// Tells whether the cluster's keys are included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Secrets {
    Yes,
    No,
}

/// The content of an archive.
#[derive(Debug)]
pub(super) struct What<'a> {
    pub(super) said: &'a str,
    pub(super) selection: Selection,
    pub(super) secrets: Secrets,
}

/// Writes an archive and keeps it if `check` passes at the end.
pub(super) async fn write(
    data: &Data,
    path: &std::path::Path,
    what: What<'_>,
    check: impl FnOnce(Totals) -> Result<(), Failure>,
) -> Result<Totals, Failure> {
    let mut output = Output::begin(path)?;
    let opened = data.open(Access::Read).await?;
    let totals = write_to(&opened, &mut output, path, what).await;
    opened.close().await?;
    let totals = totals?;
    check(totals)?;
    output.keep()?;
    Ok(totals)
}

async fn write_to(
    opened: &OpenedData,
    output: &mut Output,
    path: &std::path::Path,
    what: What<'_>,
) -> Result<Totals, Failure> {
    let admin = opened.admin();
    let described = admin.describe_request().send().promise.await?;
    let (described, created_ms) = (described.get()?, Clock::real().now_ms());
    let cluster = described.get_cluster()?.try_into();
    let cluster = cluster.map_err(|_| Failure::Cannot("the cluster has no identity".to_owned()))?;
    let head = Head { created_ms, cluster, hosts: described.get_hosts(), asked: what.said };
    let failed = operator::archive(path);
    let mut writer = ArchiveWriter::begin(BufWriter::new(output), &head).map_err(&failed)?;
    if what.secrets == Secrets::Yes {
        let secrets = admin.secrets_request().send().promise.await?;
        for secret in secrets.get()?.get_secrets()? {
            let name = secret.get_name()?.to_str().map_err(capnp::Error::from)?;
            writer.frame(&Frame::Secret { name, text: secret.get_text()? }).map_err(&failed)?;
        }
    }
    let bar = operator::bar("exporting", None);
    let to = (&mut writer, path);
    transfer::take_out(admin, head.hosts, &what.selection, to, &bar).await?;
    bar.finish_and_clear();
    Ok(writer.finish().map_err(failed)?.0)
}
