//! Moves objects between an archive and a server's operator interface.
//!
//! A few messages are always under way, so the slower side holds up the other one, and memory stays
//! bounded by those messages, whatever the amount of data.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Seek, Write};
use std::path::Path;

use futures::StreamExt;
use futures::stream::FuturesOrdered;
use indicatif::ProgressBar;

use super::operator::{Failure, archive, refused};
use crate::host;
use crate::id::ObjectId;
use crate::schema::admin_capnp::{Existing, ImportedGrants, admin, host_admin, import, selection};
use crate::storage::Space;
use crate::storage::archive::{ArchiveReader, ArchiveWriter, Frame, Totals};
use crate::supervisor::owner_of;

/// Messages under way at a time.
const IN_FLIGHT: usize = 4;
/// The bytes of frames in a message; only a single larger value exceeds it.
const MESSAGE_BYTES: usize = 512 << 10;
/// The number of objects in one question to a host.
const IDS: usize = 2_000;
/// The number of objects that an error names, if there are more.
const NAMED: usize = 10;

/// The objects to export.
#[derive(Clone, Debug)]
pub(super) enum Selection {
    /// All objects, and the grants of namespaces.
    All,
    /// The objects of a class.
    Class(String),
    /// A single object.
    Object(ObjectId),
    /// The grants of all objects, with their headers.
    Grants,
}

impl Selection {
    fn fill(&self, mut selection: selection::Builder<'_>) {
        match self {
            Self::All => selection.set_all(()),
            Self::Class(class) => selection.set_class(class),
            Self::Object(id) => selection.set_id(id.as_bytes()),
            Self::Grants => selection.set_grants(()),
        }
    }
}

/// The data of one host.
pub(super) fn host(admin: &admin::Client, number: u16) -> host_admin::Client {
    let mut request = admin.host_request();
    request.get().set_number(number);
    request.send().pipeline.get_host()
}

/// Adds the selected objects to an archive, host after host.
pub(super) async fn take_out<W: Write>(
    admin: &admin::Client,
    hosts: u16,
    selection: &Selection,
    (writer, path): (&mut ArchiveWriter<W>, &Path),
    bar: &ProgressBar,
) -> Result<(), Failure> {
    for number in 0..hosts {
        writer.frame(&Frame::Host(number)).map_err(archive(path))?;
        let take = |frames: &[u8]| {
            writer.frames(frames).map_err(archive(path))?;
            bar.inc(frames.len() as u64);
            Ok(())
        };
        read_out(&host(admin, number), selection, take).await?;
    }
    Ok(())
}

/// Passes all selected frames of a host to `take`.
pub(super) async fn read_out(
    host: &host_admin::Client,
    selection: &Selection,
    mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut request = host.begin_export_request();
    selection.fill(request.get().init_selection());
    let reply = request.send().promise.await?;
    let export = reply.get()?.get_export()?;
    let mut on_the_way = FuturesOrdered::new();
    loop {
        while on_the_way.len() < IN_FLIGHT {
            on_the_way.push_back(export.next_request().send().promise);
        }
        let Some(reply) = on_the_way.next().await else { return Ok(()) };
        let reply = reply?;
        let frames = reply.get()?.get_frames()?;
        if frames.is_empty() {
            return Ok(());
        }
        take(frames)?;
    }
}

/// The findings of a check of a whole archive.
#[derive(Debug, Default)]
pub(super) struct Looked {
    /// The amounts in the archive.
    pub(super) totals: Totals,
    /// The number of hosts from which it was made.
    pub(super) hosts: u16,
    /// The cluster from which it was made.
    pub(super) cluster: Vec<u8>,
    /// The hash that ends the archive and identifies it.
    pub(super) hash: Vec<u8>,
    /// The cluster's keys, if it is a backup.
    pub(super) secrets: crate::server::Secrets,
    /// The number of objects that exist already, and the names of the first of them.
    pub(super) present: usize,
    pub(super) named: Vec<String>,
}

/// Checks every byte of an archive and, if a server or directory is given, asks it which of the
/// objects exist. Nothing is changed.
pub(super) async fn look(
    file: &mut File,
    path: &Path,
    at: Option<(&admin::Client, u16)>,
    bar: &ProgressBar,
) -> Result<Looked, Failure> {
    let (mut looked, mut asked) = (Looked::default(), Asked::default());
    let mut reader = begin(file, path)?;
    let mut object = None;
    while let Some((frame, _)) = reader.read().map_err(archive(path))? {
        match frame {
            Frame::Head(head) => {
                looked.hosts = head.hosts;
                looked.cluster = head.cluster.to_vec();
            }
            Frame::Secret { name, text } => {
                looked.secrets.push((name.to_owned(), text.to_vec().into()));
            }
            Frame::Object(id) => object = Some(id),
            Frame::Records(records) => {
                if let (Some(id), Some(first)) = (object, records.into_iter().next())
                    && first.space == Space::Header
                {
                    asked.ids.push((id, describe(first.value)));
                }
            }
            Frame::End(_, hash) => looked.hash = hash.to_vec(),
            Frame::Host(_) | Frame::Shard(..) => {}
        }
        bar.set_position(reader.position());
        if let Some((admin, hosts)) = at
            && asked.ids.len() >= IDS
        {
            asked.ask(admin, hosts, &mut looked).await?;
        }
        if at.is_none() {
            asked.ids.clear();
        }
    }
    if let Some((admin, hosts)) = at {
        asked.ask(admin, hosts, &mut looked).await?;
    }
    looked.totals = reader.totals();
    Ok(looked)
}

fn begin<'a>(
    file: &'a mut File,
    path: &Path,
) -> Result<ArchiveReader<BufReader<&'a mut File>>, Failure> {
    const BUFFER_BYTES: usize = 1 << 20;
    file.rewind().map_err(refused("read", path))?;
    ArchiveReader::open(BufReader::with_capacity(BUFFER_BYTES, file)).map_err(archive(path))
}

/// An object in words for people, from its header.
pub(super) fn describe(header: &[u8]) -> String {
    match host::describe(header) {
        Some((class, Some(name))) => format!("{class} {name:?}"),
        Some((class, None)) => format!("a {class} without a name"),
        None => "an object of an unknown kind".to_owned(),
    }
}

/// Objects that may exist already; the hosts are asked in groups.
#[derive(Default)]
struct Asked {
    ids: Vec<(ObjectId, String)>,
}

impl Asked {
    async fn ask(
        &mut self,
        admin: &admin::Client,
        hosts: u16,
        looked: &mut Looked,
    ) -> Result<(), Failure> {
        let mut of_hosts: BTreeMap<u16, Vec<(ObjectId, String)>> = BTreeMap::new();
        for (id, name) in self.ids.drain(..) {
            of_hosts.entry(owner_of(id.home_shard().0, hosts)).or_default().push((id, name));
        }
        for (number, objects) in of_hosts {
            let mut request = host(admin, number).present_request();
            let mut ids = request.get().init_ids(objects.len() as u32);
            for (at, (id, _)) in (0..).zip(&objects) {
                ids.set(at, id.as_bytes());
            }
            let reply = request.send().promise.await?;
            let present = reply.get()?.get_ids()?;
            looked.present += present.len() as usize;
            for id in present.iter().take(NAMED.saturating_sub(looked.named.len())) {
                let id = id?;
                let known = objects.iter().find(|(known, _)| known.as_bytes() == id);
                looked.named.extend(known.map(|(_, name)| name.clone()));
            }
        }
        Ok(())
    }
}

/// Writes all objects of an archive, which was checked before.
pub(super) async fn bring_in(
    file: &mut File,
    path: &Path,
    (admin, hosts): (&admin::Client, u16),
    policy: (Existing, ImportedGrants),
    bar: &ProgressBar,
) -> Result<GrantCounts, Failure> {
    let mut incoming = Incoming::begin(admin, hosts, policy).await?;
    let mut reader = begin(file, path)?;
    let mut to = 0;
    while let Some((frame, bytes)) = reader.read().map_err(archive(path))? {
        match frame {
            Frame::Object(id) => to = usize::from(owner_of(id.home_shard().0, hosts)),
            Frame::Records(_) => {}
            _ => continue,
        }
        incoming.send(to, bytes).await?;
        bar.set_position(reader.position());
    }
    incoming.finish().await
}

/// The outcome for the grants of all imported objects.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct GrantCounts {
    /// In force before and after the import.
    pub(super) kept: u64,
    /// In force only since the import.
    pub(super) brought: u64,
    /// In force only in the archive.
    pub(super) left_out: u64,
    /// In force only until the import.
    pub(super) revoked: u64,
}

/// An import into each host, and the frames that wait to be sent to it.
struct Incoming {
    hosts: Vec<(import::Client, Vec<u8>)>,
    on_the_way: FuturesOrdered<
        capnp::capability::Promise<
            capnp::capability::Response<import::write_results::Owned>,
            capnp::Error,
        >,
    >,
}

impl Incoming {
    async fn begin(
        admin: &admin::Client,
        hosts: u16,
        (existing, grants): (Existing, ImportedGrants),
    ) -> Result<Self, Failure> {
        let mut incoming = Self { hosts: Vec::new(), on_the_way: FuturesOrdered::new() };
        for number in 0..hosts {
            let mut request = host(admin, number).begin_import_request();
            request.get().set_existing(existing);
            request.get().set_grants(grants);
            let reply = request.send().promise.await?;
            incoming.hosts.push((reply.get()?.get_incoming()?, Vec::new()));
        }
        Ok(incoming)
    }

    async fn send(&mut self, to: usize, frames: &[u8]) -> Result<(), Failure> {
        let (_, waiting) = &mut self.hosts[to];
        waiting.extend_from_slice(frames);
        if waiting.len() >= MESSAGE_BYTES {
            self.send_waiting(to).await?;
        }
        Ok(())
    }

    async fn send_waiting(&mut self, to: usize) -> Result<(), Failure> {
        let (import, waiting) = &mut self.hosts[to];
        let mut request = import.write_request();
        request.get().set_frames(waiting);
        waiting.clear();
        self.on_the_way.push_back(request.send().promise);
        while self.on_the_way.len() >= IN_FLIGHT {
            self.on_the_way.next().await.transpose()?;
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<GrantCounts, Failure> {
        for to in 0..self.hosts.len() {
            self.send_waiting(to).await?;
        }
        while let Some(written) = self.on_the_way.next().await {
            written?;
        }
        let mut counts = GrantCounts::default();
        for (import, _) in &self.hosts {
            let reply = import.finish_request().send().promise.await?;
            let reply = reply.get()?;
            counts.kept += reply.get_kept();
            counts.brought += reply.get_brought();
            counts.left_out += reply.get_left_out();
            counts.revoked += reply.get_revoked();
        }
        Ok(counts)
    }
}
