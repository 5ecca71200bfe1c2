//! One import under way: frames of an archive become records of this host's objects.
//!
//! An object that fits into one batch is replaced in one batch. The header of a larger one says
//! that it is unfinished, from the first batch to the last, so that it can't wake in between, nor
//! after a crash. Quotas of classes and the reserve of free space hold, since they protect the
//! host; quotas of single objects don't, since the object had its size already.
//!
//! Grants stay until the last batch, so that a client who restores a good reference meanwhile is
//! told that the import isn't finished, and not that the reference was revoked.
//!
//! **Invariants:** an instance never sees what an import wrote around it: it ends in the same
//! breath in which the first batch is submitted. After an error the import takes nothing more.

mod alarms;
mod grants;

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::rc::Rc;

use tokio::sync::Mutex;

use self::grants::{Counts, Gone, TargetGrants, Whose, has_any};
use super::storage_failed;
use crate::error::{Result, failed};
use crate::host::base::header::Header;
use crate::host::base::right::GrantRef;
use crate::host::engine::cut;
use crate::host::engine::operator_writes;
use crate::host::state::vat::Vat;
use crate::id::ObjectId;
use crate::membrane;
use crate::schema::admin_capnp::{Existing, ImportedGrants, import};
use crate::storage::archive::{Frame, Frames, Record, Records};
use crate::storage::{Account, Before, Presence, Space, StorageError, Store};
use crate::sturdyref::TargetKind;

/// Records that gather before they are written; a last value may double it.
const BATCH_BYTES: usize = 4 << 20;
/// Frames that are handled before others of the vat's thread have their turn.
const BREATH_BYTES: usize = 256 << 10;
/// Batches between two waits for the disk, so that the objects' own turns find room in its queue.
const BATCHES_IN_A_ROW: usize = 512;

/// The rest of an import that failed.
const BROKEN: &str = "the import failed before: begin another one";

/// Grants that imports of a host revoked, and that other hosts have to be told of yet. If an import
/// couldn't tell them, the next one does.
pub(in crate::host) type Untold = Rc<RefCell<Vec<GrantRef>>>;

/// The capability that the caller holds.
struct Import<G> {
    /// None once it failed.
    writer: Mutex<Option<Writer>>,
    _open: G,
}

/// The objects on their way in.
struct Writer {
    vat: Rc<Vat>,
    shards: Vec<RangeInclusive<u16>>,
    existing: Existing,
    grants: ImportedGrants,
    counts: Counts,
    untold: Untold,
    object: Option<Incoming>,
    /// Batches, and bytes in them, since the last wait.
    batches: usize,
    bytes: usize,
}

/// The object whose records come now.
struct Incoming {
    id: ObjectId,
    header: Option<Vec<u8>>,
    /// Records that are in no batch yet, encoded.
    records: Vec<u8>,
    /// The number of its alarms so far.
    alarms: u32,
    /// The account of what it stores, from its first batch on.
    account: Option<Rc<Account>>,
    /// Known before the first batch.
    grants: Option<TargetGrants>,
    /// True if it is there already and stays; none before that was looked at.
    is_skipped: Option<bool>,
}

/// The import whose frames go into `vat`. `open` is dropped with it.
pub(in crate::host) fn begin<G: 'static>(
    vat: Rc<Vat>,
    shards: Vec<RangeInclusive<u16>>,
    (existing, grants): (Existing, ImportedGrants),
    (untold, open): (Untold, G),
) -> import::Client {
    let counts = Counts::default();
    let (object, batches, bytes) = (None, 0, 0);
    let writer = Writer { vat, shards, existing, grants, counts, untold, object, batches, bytes };
    membrane::serve(Rc::new(Import { writer: Mutex::new(Some(writer)), _open: open }))
}

impl Writer {
    async fn write(&mut self, frames: &[u8]) -> Result<()> {
        let mut breath = 0;
        for frame in Frames::of(frames) {
            let frame = frame.map_err(|error| failed(error.to_string()))?;
            breath += self.frame(&frame).await?;
            if breath >= BREATH_BYTES {
                breath = 0;
                tokio::task::yield_now().await;
            }
            if self.batches >= BATCHES_IN_A_ROW || self.bytes >= BATCH_BYTES {
                self.flush().await?;
            }
        }
        self.flush().await
    }

    async fn finish(&mut self) -> Result<()> {
        self.end_object().await?;
        if let Ok(agent) = self.vat.agent() {
            // The archive may be of a version whose roots allowed more.
            agent.write_root_grants()?;
        }
        self.flush().await
    }

    async fn flush(&mut self) -> Result<()> {
        (self.batches, self.bytes) = (0, 0);
        self.vat.flush().await.map_err(|error| storage_failed(&error))?;
        self.tell_others().await
    }

    /// Has the other hosts cut what was revoked, which is durable by now.
    async fn tell_others(&self) -> Result<()> {
        self.vat.cut_walks.caught_up().await;
        loop {
            let last = self.untold.borrow().last().copied();
            let Some(GrantRef { target, grant }) = last else { return Ok(()) };
            // Without an agent there is no other host.
            if let Ok(agent) = self.vat.agent() {
                agent.cut_everywhere(target, grant).await?;
            }
            // Nobody else changes them meanwhile: a host has one import at a time.
            self.untold.borrow_mut().pop();
        }
    }

    /// About how much work the frame was.
    async fn frame(&mut self, frame: &Frame<'_>) -> Result<usize> {
        /// Ending an object costs more than its bytes.
        const OBJECT_COST: usize = 1 << 10;
        match frame {
            Frame::Object(id) => {
                self.end_object().await?;
                if !self.shards.iter().any(|range| range.contains(&id.home_shard().0)) {
                    return Err(failed("the object belongs to another host"));
                }
                self.object = Some(Incoming::new(*id));
                Ok(OBJECT_COST)
            }
            Frame::Records(records) => {
                let first = records.into_iter().next();
                if let (Some(object), Some(Record { space: Space::Header, value, .. })) =
                    (&mut self.object, first)
                {
                    object.take_header(value)?;
                }
                if self.is_skipped()? {
                    return Ok(OBJECT_COST);
                }
                self.begin_grants().await?;
                self.records(*records).await
            }
            Frame::Shard(..) | Frame::Host(_) => Ok(0),
            Frame::Head(_) | Frame::Secret { .. } | Frame::End(..) => {
                Err(failed("only frames of objects can be imported"))
            }
        }
    }

    async fn records(&mut self, records: Records<'_>) -> Result<usize> {
        let mut work = 0;
        for record in records {
            let object = self.object.as_mut().ok_or_else(|| failed("records of no object"))?;
            let length = record.key.len() + record.value.len();
            work += length;
            match record.space {
                Space::Header if object.header.as_deref() == Some(record.value) => {}
                Space::Header => return Err(failed("an object's header comes first")),
                Space::Edges | Space::Usage | Space::Shares | Space::Due => {
                    return Err(failed("what follows from an object's values is not imported"));
                }
                Space::Sockets => return Err(failed("sockets are not imported")),
                Space::Grants => {
                    let (vat, counts) = (&self.vat, &mut self.counts);
                    let grants = object.grants.as_mut().ok_or_else(|| failed(BROKEN))?;
                    if grants.take(vat, (record.key, record.value), counts).await? {
                        record.encode(&mut object.records);
                    }
                }
                Space::Alarms => {
                    if alarms::is_alarm(record.key, record.value)? {
                        object.alarms += 1;
                        alarms::check_number(object.alarms)?;
                        record.encode(&mut object.records);
                    }
                }
                Space::Data | Space::Requests => record.encode(&mut object.records),
            }
            if object.records.len() >= BATCH_BYTES {
                self.write_batch(Part::More, &Gone::new())?;
            }
        }
        Ok(work)
    }

    /// Tells whether the object came whole with an import before, which this one ends.
    fn is_skipped(&mut self) -> Result<bool> {
        let Some(object) = &mut self.object else { return Ok(false) };
        if self.existing == Existing::Skip && object.is_skipped.is_none() {
            object.is_skipped = Some(object.is_whole(&self.vat)?);
        }
        Ok(object.is_skipped == Some(true))
    }

    /// Decides whose grants the object has in the end, before its first batch.
    async fn begin_grants(&mut self) -> Result<()> {
        let Some(object) = &mut self.object else { return Ok(()) };
        if object.grants.is_none() {
            let whose = object.whose(&self.vat, self.existing, self.grants)?;
            let (vat, counts) = (&self.vat, &mut self.counts);
            object.grants = Some(TargetGrants::begin(vat, object.id, whose, counts).await?);
        }
        Ok(())
    }

    /// The grants that give way to the archive's go with the last batch. If they are too many for
    /// that, the others go before it, while the object says that it is unfinished.
    async fn end_object(&mut self) -> Result<()> {
        if self.is_skipped()? {
            self.object = None;
            return Ok(());
        }
        self.begin_grants().await?;
        loop {
            let Some(object) = &mut self.object else { return Ok(()) };
            let target = match object.header {
                Some(_) => TargetKind::Object,
                None => TargetKind::Namespace,
            };
            if target == TargetKind::Namespace && self.existing != Existing::Replace {
                break;
            }
            let Some(grants) = &mut object.grants else { break };
            let (vat, counts) = (&self.vat, &mut self.counts);
            let (gone, bytes) = grants.give_way(vat, target, BATCH_BYTES, counts).await?;
            if bytes < BATCH_BYTES {
                self.write_batch(Part::Last, &gone)?;
                break;
            }
            self.write_batch(Part::More, &gone)?;
            self.flush().await?;
        }
        self.object = None;
        Ok(())
    }

    fn write_batch(&mut self, part: Part, gone: &Gone) -> Result<()> {
        let Some(object) = &mut self.object else { return Ok(()) };
        if object.header.is_none() && self.existing != Existing::Replace {
            // These are grants of a namespace. Its references keep their worth unless the operator
            // says otherwise.
            return Ok(());
        }
        let vat = &self.vat;
        let place = if object.account.is_none() { Place::First } else { Place::Later };
        let account = match &object.account {
            Some(account) => account.clone(),
            None => object.begin(vat, self.existing)?,
        };
        vat.turns.store().check_import()?;
        let written = operator_writes::write_aside(vat, &account, |store| {
            object.write(store, &account, place, part)?;
            object.remove(store, gone)
        });
        written.map_err(|error| storage_failed(&error))?;
        if place == Place::First {
            vat.alarms.replace(object.id);
        }
        if part == Part::Last && object.alarms > 0 {
            vat.alarms.imported(object.id);
        }
        // Cut with this batch, since another one may never come.
        let cut = object.grants.as_mut().map(|grants| std::mem::take(&mut grants.cut));
        let cut = cut.unwrap_or_default();
        cut::cut(vat, object.id, &cut);
        // All that was made from a grant of an object is on its own host.
        if object.header.is_none() {
            let cut = cut.iter().map(|grant| GrantRef::new(object.id, *grant));
            self.untold.borrow_mut().extend(cut);
        }
        self.batches += 1;
        self.bytes += object.records.len();
        object.records.clear();
        Ok(())
    }
}

/// The choice of whether the object goes on behind a batch.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    More,
    Last,
}

/// The choice of whether the object had a batch before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    First,
    Later,
}

impl Incoming {
    fn new(id: ObjectId) -> Self {
        let (header, records, alarms) = (None, Vec::new(), 0);
        let (account, grants, is_skipped) = (None, None, None);
        Self { id, header, records, alarms, account, grants, is_skipped }
    }

    fn is_whole(&self, vat: &Vat) -> Result<bool> {
        let present = vat.turns.store().get(self.id, Space::Header, &[]);
        let present = present.map_err(|error| storage_failed(&error))?;
        Ok(present.is_some_and(|header| !Header::is_unfinished(&header)))
    }

    fn take_header(&mut self, record: &[u8]) -> Result<()> {
        let header = Header::decode(record)?;
        let named = |name| ObjectId::named(self.id.home_shard().pool(), header.class, name);
        if header.name.is_some_and(|name| named(name) != self.id) {
            return Err(failed("an object's header belongs to another one"));
        }
        self.header = Some(record.to_vec());
        Ok(())
    }

    /// The side whose grants the object has in the end. An import that was cut short is ended as it
    /// began.
    fn whose(&self, vat: &Rc<Vat>, existing: Existing, imported: ImportedGrants) -> Result<Whose> {
        let present = vat.turns.store().get(self.id, Space::Header, &[]);
        let present = present.map_err(|error| storage_failed(&error))?;
        let keeps = match &present {
            Some(header) if Header::is_unfinished(header) => Header::keeps_grants(header),
            Some(_) => true,
            // Without --replace, the grants of a namespace are left alone.
            None if self.header.is_none() && existing != Existing::Replace => true,
            None => has_any(vat, self.id)?,
        };
        let keeps = keeps && imported == ImportedGrants::Keep;
        Ok(if keeps { Whose::Own } else { Whose::Archives })
    }

    fn remove(&self, store: &mut Store, gone: &Gone) -> std::result::Result<(), StorageError> {
        for (id, left) in gone {
            match left {
                Some(left) => store.put_record(self.id, Space::Grants, id.as_bytes(), left)?,
                None => store.delete_record(self.id, Space::Grants, id.as_bytes())?,
            };
        }
        Ok(())
    }

    /// Looks at what is there before the first batch.
    fn begin(&mut self, vat: &Rc<Vat>, existing: Existing) -> Result<Rc<Account>> {
        let store = vat.turns.store();
        let present = store.get(self.id, Space::Header, &[]);
        let present = present.map_err(|error| storage_failed(&error))?;
        let is_whole = present.as_ref().is_some_and(|header| !Header::is_unfinished(header));
        if is_whole && existing == Existing::Refuse {
            return Err(failed("an object exists already: import it with --replace"));
        }
        let class = self.header.as_deref().and_then(Header::class_of);
        let class = class.and_then(|class| vat.objects.class_account(class));
        let account = store
            .account(self.id, Presence::of(present.as_ref()), u64::MAX, class)
            .map_err(|error| storage_failed(&error))?;
        self.account = Some(account.clone());
        Ok(account)
    }

    fn write(
        &self,
        store: &mut Store,
        account: &Account,
        place: Place,
        part: Part,
    ) -> std::result::Result<(), StorageError> {
        if place == Place::First {
            store.clear(account)?;
            store.clear_records(self.id, Space::Requests)?;
            store.clear_records(self.id, Space::Shares)?;
            store.clear_records(self.id, Space::Sockets)?;
            alarms::clear(store, self.id)?;
        }
        for Record { space, key, value } in Records::encoded(&self.records) {
            match space {
                Space::Data => store.put(account, key, value, Before::Known(None)).map(drop)?,
                Space::Alarms => alarms::put(store, self.id, key, value)?,
                _ => store.put_record(self.id, space, key, value).map(drop)?,
            }
        }
        alarms::put_number(store, self.id, self.alarms)?;
        let Some(header) = &self.header else { return Ok(()) };
        match (part, place) {
            (Part::Last, _) => store.put_record(self.id, Space::Header, &[], header).map(drop),
            (Part::More, Place::Later) => Ok(()),
            (Part::More, Place::First) => {
                let keeps = self.grants.as_ref().is_some_and(|grants| grants.whose == Whose::Own);
                let unfinished = if keeps {
                    Header::unfinished_with_grants(header)
                } else {
                    Header::unfinished(header)
                };
                store.put_record(self.id, Space::Header, &[], &unfinished).map(drop)
            }
        }
    }
}

impl<G: 'static> Import<G> {
    /// Does the next thing in the order of the calls; after an error there is no next thing.
    async fn step(&self, frames: Option<&[u8]>) -> Result<Counts> {
        let mut open = self.writer.lock().await;
        let mut writer = open.take().ok_or_else(|| failed(BROKEN))?;
        let done = match frames {
            Some(frames) => writer.write(frames).await,
            None => writer.finish().await,
        };
        if let Err(error) = done {
            // Revoked grants stay revoked, on every host before the caller hears of the failure.
            if let Err(untold) = writer.flush().await {
                tracing::error!(error = %untold, "other hosts were not told of all grants that an import revoked");
            }
            return Err(error);
        }
        let counts = writer.counts;
        *open = Some(writer);
        Ok(counts)
    }
}

impl<G: 'static> import::Server for Import<G> {
    async fn write(
        self: Rc<Self>,
        params: import::WriteParams,
        _: import::WriteResults,
    ) -> Result<()> {
        self.step(Some(params.get()?.get_frames()?)).await.map(drop)
    }

    async fn finish(
        self: Rc<Self>,
        _: import::FinishParams,
        mut results: import::FinishResults,
    ) -> Result<()> {
        let Counts { kept, brought, left_out, revoked } = self.step(None).await?;
        let mut results = results.get();
        results.set_kept(kept);
        results.set_brought(brought);
        results.set_left_out(left_out);
        results.set_revoked(revoked);
        Ok(())
    }
}
