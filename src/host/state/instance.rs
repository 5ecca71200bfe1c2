//! An object awake: its gate, the calls that run in it, and whether it still may act.
//!
//! All that a class does with its context comes here. So this is the one place that refuses what an
//! instance does after its end, and that tells the gate of each write.
//!
//! Invariants:
//! - An instance that ended reads nothing, writes nothing and sends nothing.
//! - A message after a write waits for that write, unless the class said otherwise.
//! - The object's header is written with its first write, in the same turn.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::rc::Rc;

use capnp::Error;
use tokio::task::{AbortHandle, JoinHandle};

use super::exclusive::Exclusive;
use super::keeping::Keepers;
use super::parked::Parked;
use super::queued_call::{self, PendingReply, QueuedCall};
use super::requests::Requests;
use super::slot::{ObjectSpec, end_error};
use super::vat::Vat;
use crate::error::Result;
use crate::gate::Gate;
use crate::host::base::header::Header;
use crate::host::base::mirror::{Mirror, Mirrors};
use crate::id::{ObjectId, ObjectIds};
use crate::limits::INSTANCE_BYTES;
use crate::membrane::Reply;
use crate::storage::{Account, Before, Page, PageSize, Range, Reads, Space, StorageError, Ticket};

/// A write of one key.
pub(in crate::host) struct Write<'a> {
    /// The writer's knowledge of the value that is there.
    pub(in crate::host) before: Before,
    /// The value in memory that is written, if it is one.
    pub(in crate::host) mirror: Option<&'a dyn Mirror>,
    pub(in crate::host) confirmation: Confirmation,
    /// The objects that the value refers to, if the writer knows.
    pub(in crate::host) targets: Option<ObjectIds>,
}

impl Write<'_> {
    /// As `Storage::put` and `Storage::delete` do.
    pub(in crate::host) const PLAIN: Self = Self {
        before: Before::Unknown,
        mirror: None,
        confirmation: Confirmation::Awaited,
        targets: None,
    };
}

/// The choice of whether what the object sends after a write waits until that is durable.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::host) enum Confirmation {
    Awaited,
    Unconfirmed,
}

pub(in crate::host) struct Instance {
    pub(in crate::host) vat: Rc<Vat>,
    pub(in crate::host) spec: ObjectSpec,
    pub(in crate::host) gate: Rc<Gate>,
    /// The account of what the object stores; its turns write through it.
    pub(in crate::host) account: Rc<Account>,
    /// The calls that wait for each other, if the class is exclusive.
    pub(in crate::host) exclusive: Option<Box<Exclusive>>,
    /// Calls whose callers have to read before they start.
    pub(in crate::host) parked: Parked,
    /// The number of its `wake`, which counts as a call, until that has ended.
    pub(in crate::host) waking: Cell<Option<u128>>,
    /// The values that the class keeps in memory too.
    pub(in crate::host) mirrors: Mirrors,
    /// True if the object's header is written, or is in a batch on its way.
    exists: Cell<bool>,
    /// The last write, whether the gate waits for it or not.
    written: Cell<Ticket>,
    /// The way in which it ended, once it has.
    end: OnceCell<Box<str>>,
    /// The time of its last call, in the ticks of [`Awake`](super::awake::Awake).
    pub(in crate::host) used: Cell<u32>,
    /// The number of its last call, among all uses of instances of its vat.
    pub(in crate::host) last_use: Cell<u64>,
    /// The bytes that its values in memory take.
    taken: Cell<usize>,
    /// The keepers that need it awake.
    pub(in crate::host) keepers: Keepers,
    /// The calls that wait for something. Most objects have none.
    late: RefCell<Option<Box<LateCalls>>>,
    /// Its calls that are applied once.
    pub(in crate::host) requests: Requests,
}

/// The calls whose handlers wait for something.
#[derive(Default)]
struct LateCalls {
    /// The replies that are owed to their callers, by the number of the call.
    pending: HashMap<u64, PendingReply>,
    /// Their tasks, which end with the instance.
    tasks: HashMap<u64, AbortHandle>,
    /// The number of the next one.
    next: u64,
}

impl Instance {
    /// # Errors
    /// When the storage can't be read, or holds an object of another class.
    pub(in crate::host) fn new(vat: &Rc<Vat>, spec: ObjectSpec) -> Result<Rc<Self>> {
        let (header, usage) = vat.turns.store().identity(spec.id)?;
        let exists = match header {
            Some(header) => {
                Header::decode(&header)?.check_class(spec.class.name)?;
                true
            }
            None => false,
        };
        let (limit, class) = (spec.class.object_limit, vat.objects.class_account(spec.class.name));
        let account = Account::new(spec.id, usage, limit, class);
        let instance = Rc::new(Self {
            vat: vat.clone(),
            exclusive: spec.class.is_exclusive.then(Box::default),
            parked: Parked::default(),
            waking: Cell::default(),
            spec,
            gate: Gate::new(),
            account,
            mirrors: Mirrors::default(),
            exists: Cell::new(exists),
            written: Cell::default(),
            end: OnceCell::new(),
            used: Cell::new(vat.objects.awake().now()),
            last_use: Cell::default(),
            taken: Cell::default(),
            keepers: Keepers::default(),
            late: RefCell::default(),
            requests: Requests::default(),
        });
        vat.objects.awake().add();
        instance.follow_earlier_writes();
        Ok(instance)
    }

    /// Sets or deletes a key in the present turn; the object exists from its first write on. False
    /// if there was nothing to delete.
    ///
    /// # Errors
    /// Outside a turn of this object, on a limit, or when the instance ended: nothing is written.
    pub(in crate::host) fn write(
        &self,
        key: &[u8],
        value: Option<&[u8]>,
        write: Write<'_>,
    ) -> Result<bool> {
        self.check_alive()?;
        self.mirrors.check(key, value, write.mirror)?;
        let mut store = self.vat.turns.store_mut();
        let written = match value {
            Some(value) => match write.targets {
                None => store.put(&self.account, key, value, write.before),
                Some(targets) => {
                    store.put_referring(&self.account, key, value, (write.before, targets))
                }
            }
            .map(Some),
            None => store.delete(&self.account, key, write.before),
        };
        drop(store);
        if let Err(StorageError::OverQuota { .. } | StorageError::LowSpace { .. }) = written {
            self.vat.metrics.writes_refused_total.add(1);
        }
        let Some(ticket) = written? else { return Ok(false) };
        self.mirrors.wrote(key, value, write.mirror);
        if write.mirror.is_none() {
            self.weigh();
        }
        self.wrote(ticket, write.confirmation);
        Ok(true)
    }

    /// Deletes everything that the class stored, in the present turn.
    ///
    /// # Errors
    /// As for `write`.
    pub(in crate::host) fn clear(&self) -> Result<()> {
        self.check_alive()?;
        let cleared = self.vat.turns.store_mut().clear(&self.account)?;
        if let Some(ticket) = cleared {
            self.mirrors.cleared();
            self.weigh();
            self.wrote(ticket, Confirmation::Awaited);
        }
        Ok(())
    }

    /// Sets or deletes a record that the class doesn't see, in the present turn.
    ///
    /// # Errors
    /// As for `write`.
    pub(in crate::host) fn write_record(
        &self,
        space: Space,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Result<()> {
        self.check_alive()?;
        let (id, mut store) = (self.spec.id, self.vat.turns.store_mut());
        let ticket = match value {
            Some(value) => store.put_record(id, space, key, value),
            None => store.delete_record(id, space, key),
        };
        drop(store);
        self.wrote(ticket?, Confirmation::Awaited);
        Ok(())
    }

    /// Writes or deletes a grant of the object, in the present turn.
    ///
    /// # Errors
    /// That of `work`; and as for `write`.
    pub(in crate::host) fn write_grant(
        &self,
        work: impl FnOnce(&Vat, ObjectId) -> Result<()>,
    ) -> Result<()> {
        self.check_alive()?;
        let ticket = self.vat.turns.store().open_ticket();
        work(&self.vat, self.spec.id)?;
        self.wrote(ticket, Confirmation::Awaited);
        Ok(())
    }

    /// Others wrote of the object, an earlier instance or the server itself, and not all of that
    /// may be durable yet. This instance reads it, so what it says from now on waits for it.
    pub(in crate::host) fn follow_earlier_writes(&self) {
        let Some(ticket) = self.vat.turns.await_unsettled(self.spec.id, &self.gate) else { return };
        self.written.set(ticket);
        self.gate.wrote(ticket);
        self.gate.turn_submitted(ticket);
    }

    /// The same, if there are such writes that are later than its own, as an operator makes them.
    pub(in crate::host) fn follow_later_writes(&self) {
        let unsettled = self.vat.turns.store().unsettled_ticket(self.spec.id);
        if unsettled.is_some_and(|ticket| ticket > self.gate.written()) {
            self.follow_earlier_writes();
        }
    }

    fn wrote(&self, ticket: Ticket, confirmation: Confirmation) {
        if !self.exists.replace(true) {
            let ObjectSpec { id, class, name } = &self.spec;
            let header = Header { class: class.name, name: name.as_deref() }.encode();
            let put = self.vat.turns.store_mut().put_record(*id, Space::Header, &[], &header);
            debug_assert!(put.is_ok(), "a turn is open, and headers are never over a limit");
        }
        self.written.set(ticket);
        if confirmation == Confirmation::Awaited {
            self.gate.wrote(ticket);
        }
    }

    /// Runs `body` in the present turn, and takes exactly its writes back if it fails or panics.
    ///
    /// # Errors
    /// That of `body`; and outside a turn of this object, or when the instance ended: then `body`
    /// wasn't run.
    pub(in crate::host) fn transaction<T>(&self, body: impl FnOnce() -> Result<T>) -> Result<T> {
        self.check_alive()?;
        let before = (self.exists.get(), self.written.get(), self.gate.written());
        let savepoint = self.vat.turns.store_mut().savepoint(self.spec.id)?;
        let kept = self.mirrors.begin();
        let ended = std::panic::catch_unwind(AssertUnwindSafe(body));
        if let Ok(Ok(value)) = ended {
            self.vat.turns.store_mut().keep(savepoint);
            self.mirrors.keep(kept);
            return Ok(value);
        }
        if self.broken().is_some() {
            // The whole turn was dropped when the instance ended, and the gate waits for none of
            // it. If it waited for the ticket of before, callers would never be told the reason.
            return ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        self.vat.turns.store_mut().undo(savepoint);
        self.mirrors.undo(kept, |key| self.read(Space::Data, key).ok().flatten());
        self.weigh();
        self.exists.set(before.0);
        self.written.set(before.1);
        self.gate.back_to(before.2);
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Resolves when everything that the object wrote before is durable.
    ///
    /// # Errors
    /// When the storage failed, or the instance ended: which of those writes are durable is
    /// unknown.
    pub(in crate::host) fn sync(self: Rc<Self>) -> impl Future<Output = Result<()>> {
        let written = self.written.get();
        async move {
            loop {
                let settled = self.vat.turns.settled();
                // Writes that were undone since will never be durable, and needn't be.
                if self.is_durable(written.min(self.written.get()))? {
                    return Ok(());
                }
                settled.await;
            }
        }
    }

    fn is_durable(&self, written: Ticket) -> Result<bool> {
        self.check_alive()?;
        let store = self.vat.turns.store();
        store.failure().map_or(Ok(store.durable() >= written), |error| Err(error.into()))
    }

    /// # Errors
    /// When the storage can't be read or doesn't hold what was written, or the instance ended.
    pub(in crate::host) fn read(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.check_alive()?;
        Ok(self.vat.turns.store().get(self.spec.id, space, key)?)
    }

    /// # Errors
    /// As for `read`, of the first key that has one.
    pub(in crate::host) fn read_many(&self, keys: &[&[u8]]) -> Result<Vec<Option<Vec<u8>>>> {
        self.check_alive()?;
        Ok(self.vat.turns.store().get_many(self.spec.id, keys)?)
    }

    /// Tells whether the class stored something under `key`.
    ///
    /// # Errors
    /// As for `read`.
    pub(in crate::host) fn contains(&self, key: &[u8]) -> Result<bool> {
        self.check_alive()?;
        let length = self.vat.turns.store().length(self.spec.id, Space::Data, key)?;
        Ok(length.is_some())
    }

    /// A part of a list of what the class stored.
    ///
    /// # Errors
    /// As for `read`.
    pub(in crate::host) fn page(&self, range: &Range, size: PageSize, old: Page) -> Result<Page> {
        self.check_alive()?;
        let range = self.account.left_of(range);
        let page = self.vat.turns.store().page(self.spec.id, &range, size, old)?;
        self.account.was_read(&range, &page);
        Ok(page)
    }

    /// A reader of the object's durable records, if those are all there is.
    ///
    /// # Errors
    /// When the instance ended.
    pub(in crate::host) fn settled_reads(&self) -> Result<Option<Rc<dyn Reads>>> {
        self.check_alive()?;
        Ok(self.vat.turns.store().settled_reads(self.spec.id))
    }

    /// Remembers a caller who is answered later, or told when the instance ends. Gives the number
    /// by which they are remembered.
    pub(in crate::host) fn owe(&self, pending: PendingReply) -> u64 {
        let mut late = self.late.borrow_mut();
        let late = late.get_or_insert_default();
        let number = late.next;
        late.next += 1;
        late.pending.insert(number, pending);
        number
    }

    /// The caller is about to be answered. None if they were told of the end.
    pub(in crate::host) fn take_pending(&self, number: u64) -> Option<PendingReply> {
        self.late.borrow_mut().as_mut()?.pending.remove(&number)
    }

    /// The caller was not answered after all.
    pub(in crate::host) fn put_back(&self, number: u64, pending: PendingReply) {
        self.late.borrow_mut().get_or_insert_default().pending.insert(number, pending);
    }

    pub(in crate::host) fn has_pending(&self) -> bool {
        self.late.borrow().as_ref().is_some_and(|late| !late.pending.is_empty())
    }

    /// Takes the reply of a call that runs, which ends without one.
    pub(in crate::host) fn take_reply(&self, number: u64) -> Option<Reply> {
        let mut late = self.late.borrow_mut();
        late.as_mut()?.pending.get_mut(&number).map(|pending| pending.reply.take())
    }

    /// Takes the replies of calls that run and were cut.
    pub(in crate::host) fn take_cut(&self, cut: &mut Vec<Reply>) {
        for pending in self.late.borrow_mut().iter_mut().flat_map(|late| late.pending.values_mut())
        {
            if pending.facet.right.is_cut() {
                cut.push(pending.reply.take());
            }
        }
    }

    /// The task of a call, or of the waking, ends with the instance.
    pub(in crate::host) fn add_task(&self, number: u64, task: &JoinHandle<()>) {
        let mut late = self.late.borrow_mut();
        late.get_or_insert_default().tasks.insert(number, task.abort_handle());
    }

    /// The task of a call is at its end.
    pub(in crate::host) fn remove_task(&self, number: u64) {
        if let Some(late) = &mut *self.late.borrow_mut() {
            late.tasks.remove(&number);
        }
    }

    /// Why the instance may not act any more, if so.
    pub(in crate::host) fn broken(&self) -> Option<Error> {
        self.end.get().map(|_| self.why_ended())
    }

    /// Refuses what an instance that ended wants to do.
    pub(in crate::host) fn check_alive(&self) -> Result<()> {
        self.broken().map_or(Ok(()), Err)
    }

    pub(in crate::host) fn why_ended(&self) -> Error {
        let how = self.end.get().map_or("ended", |how| how);
        end_error(self.spec.class.name, how)
    }

    /// The call for which calls of the object wait at present: its `wake`, or the one call that
    /// runs.
    pub(in crate::host) fn waited_for(&self) -> Option<u128> {
        self.waking.get().or_else(|| self.exclusive.as_ref()?.running())
    }

    /// Its warm time begins again.
    pub(in crate::host) fn was_used(&self) {
        let awake = self.vat.objects.awake();
        self.used.set(awake.now());
        self.last_use.set(awake.use_number());
    }

    /// Tells whether the object was ever written, durably or on the way there.
    pub(in crate::host) fn exists(&self) -> bool {
        self.exists.get()
    }

    /// Its values in memory may have another size now.
    pub(in crate::host) fn weigh(&self) {
        let (now, before) = (self.mirrors.bytes(), self.taken.get());
        if now == before {
            return;
        }
        self.taken.set(now);
        self.keepers.resize(before, now);
        self.vat.objects.awake().resize(before, now);
    }

    /// The bytes that it takes in memory.
    pub(in crate::host) fn weight(&self) -> usize {
        INSTANCE_BYTES + self.taken.get()
    }

    /// Nothing that this instance still does has an effect from now on. Its callers are told how it
    /// ended, after what waits in its gate. Gives back the calls on WebSockets that had not begun,
    /// which the next instance may have.
    #[must_use = "they are begun, or refused"]
    pub(in crate::host) fn end(&self, how: &str) -> VecDeque<QueuedCall> {
        self.end.get_or_init(|| how.into());
        let late = self.late.take();
        let LateCalls { tasks, pending, .. } = late.map(|late| *late).unwrap_or_default();
        for task in tasks.into_values() {
            task.abort();
        }
        // Those that are parked came before others of their connection that wait.
        let mut waiting = self.parked.take_waiting(self);
        waiting.extend(self.exclusive.iter().flat_map(|calls| calls.take_waiting(self)));
        let kept = queued_call::split_off_sockets(waiting, || self.why_ended());
        for (_, PendingReply { reply, under_way, facet, .. }) in pending {
            facet.lost_call();
            let error = self.why_ended();
            self.gate.reply(move |on_its_way| {
                reply.keep((under_way, on_its_way));
                reply.send(Err(error));
            });
        }
        kept
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.vat.objects.awake().remove(self.taken.get());
    }
}
