//! The objects of one thread, and the order in which their calls start.
//!
//! Invariants:
//! - Calls start in the order in which they were accepted; those that find the vat busy, the queue
//!   not empty, or the commit queue full, wait in the queue. Those whose caller has much to read wait
//!   [behind](super::behind) it, and nobody else's do.
//! - No turn runs inside another one, however calls and replies lead to each other, so that no depth
//!   of calls nests the stack.
//! - A gate opens only after the commit thread said that its writes are durable.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use capnp::private::capability::ClientHook;
use capstead_client::sturdyref::GrantId;
use tokio::sync::{Notify, SetOnce};

use super::awake::{Awake, AwakeLimits};
use super::behind::{Behind, Startable};
use super::class::{Class, numbered};
use super::cluster::Cluster;
use super::exclusive::Waits;
use super::facet::Facet;
use super::instance::Instance;
use super::once::Retention;
use super::pulse::Pulse;
use super::quota::class_accounts;
use super::rest::{self, Warm};
use super::right::{Grants, Right};
use super::run::{self, UnderWay};
use super::slot::{Birth, Slot, Start, State};
use crate::clock::{Clock, monotonic};
use crate::error::{Result, disconnected, failed, not_begun};
use crate::gate::Gate;
use crate::http::Room;
use crate::id::ObjectId;
use crate::membrane::Chain;
use crate::metrics::Metrics;
use crate::storage::{ClassAccount, LogOptions, Space, StorageError, Store, StoreOptions, Ticket};
use crate::sturdyref::{ReferenceCipher, root_grant};

/// Queued calls that start before other tasks of the thread get their turn again.
const STARTS_IN_A_ROW: usize = 64;
/// And how long that may take: answers of megabytes take milliseconds each. The clock is asked once for so
/// many starts, and never where there are fewer.
const IN_A_ROW: Duration = Duration::from_millis(2);
const STARTS_UNTIMED: usize = 4;

/// The parts of a vat.
#[derive(Debug)]
pub(crate) struct VatOptions {
    pub(crate) name: String,
    pub(crate) data: PathBuf,
    pub(crate) classes: Vec<Class>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) log: LogOptions,
    /// The time for which request ids are kept.
    pub(crate) retention: Duration,
    /// Encrypts the references that objects store.
    pub(crate) reference_cipher: ReferenceCipher,
    pub(crate) awake: AwakeLimits,
    /// Room for the bodies of requests that objects wait for: one for all hosts of a server.
    pub(crate) bodies: Arc<Room>,
}

pub(crate) struct Vat {
    pub(in crate::host) store: RefCell<Store>,
    pub(in crate::host) metrics: Arc<Metrics>,
    pub(in crate::host) clock: Clock,
    pub(in crate::host) retention: Retention,
    /// The grants by which somebody holds something of this vat.
    pub(in crate::host) grants: Rc<Grants>,
    pub(in crate::host) reference_cipher: Rc<ReferenceCipher>,
    classes: HashMap<&'static str, Rc<Class>>,
    /// The root grants of the classes.
    pub(in crate::host) roots: HashSet<GrantId>,
    /// The sums of what the objects of a class store together, where that is limited.
    class_accounts: HashMap<&'static str, Rc<ClassAccount>>,
    agent: OnceCell<Weak<dyn Cluster>>,
    pub(in crate::host) slots: RefCell<HashMap<ObjectId, Rc<Slot>>>,
    /// Sealed turns whose gates open when they are durable.
    pub(in crate::host) sealed: RefCell<VecDeque<(Ticket, Rc<Gate>)>>,
    queue: RefCell<VecDeque<Start>>,
    /// Calls whose callers have to read before they start.
    pub(in crate::host) behind: Behind,
    busy: Cell<bool>,
    /// A list is being visited, in a snapshot of its own.
    pub(in crate::host) visiting: Cell<bool>,
    /// Wakes the task that starts queued calls.
    runnable: Rc<Notify>,
    /// Wakes the task that hands sealed turns to the commit thread: it runs after all that is ready
    /// to run now, so that calls which came together share one sync.
    pub(in crate::host) committable: Rc<Notify>,
    /// The time for which an object stays awake without a call.
    pub(in crate::host) warm: Warm,
    /// Which are awake.
    pub(in crate::host) awake: Awake,
    /// Wakes the task that puts objects to sleep when what is awake has grown too much.
    pub(in crate::host) grown: Rc<Notify>,
    /// Wakes the task that opens gates; the commit thread does so too.
    progress: Arc<Notify>,
    under_way: Cell<usize>,
    pub(in crate::host) closing: Cell<bool>,
    /// Why it can't go on, other than by its storage.
    pub(in crate::host) fault: SetOnce<String>,
    /// Calls that wait for exclusive objects.
    pub(in crate::host) waits: Waits,
    /// The chain that led to the calls that are made now: that of the present turn.
    pub(in crate::host) chain: RefCell<Option<Chain>>,
    pub(in crate::host) pulse: Arc<Pulse>,
    pub(in crate::host) bodies: OnceCell<Arc<Room>>,
    /// Wakes whoever waits for the last call to end, or for the storage to fail.
    pub(in crate::host) changed: Notify,
}

impl Vat {
    /// Opens the host's storage and starts the vat's tasks, which end with the vat.
    ///
    /// # Errors
    /// When the storage can't be opened; it is as it was then.
    pub(crate) fn open(options: VatOptions) -> std::result::Result<Rc<Self>, StorageError> {
        let progress = Arc::new(Notify::new());
        let notify = progress.clone();
        let store = Store::open(
            &options.data,
            StoreOptions { name: options.name, log: options.log, metrics: options.metrics.clone() },
            Box::new(move || notify.notify_one()),
        )?;
        let retention = Retention::new(Clock::real(), options.retention);
        let (metrics, cipher) = (options.metrics, options.reference_cipher);
        let with = (cipher, options.awake);
        let vat = Self::with_store(store, options.classes, metrics, retention, with, progress)?;
        vat.bodies.get_or_init(|| options.bodies);
        Ok(vat)
    }

    pub(in crate::host) fn with_store(
        mut store: Store,
        classes: Vec<Class>,
        metrics: Arc<Metrics>,
        retention: Retention,
        (cipher, awake): (ReferenceCipher, AwakeLimits),
        progress: Arc<Notify>,
    ) -> std::result::Result<Rc<Self>, StorageError> {
        let reference_cipher = Rc::new(cipher);
        let cipher = reference_cipher.clone();
        store.find_references(Rc::new(move |owner, key, value| cipher.targets(owner, key, value)));
        let pulse = Arc::new(Pulse::new(classes.iter().map(|class| class.name).collect()));
        let vat = Rc::new(Self {
            class_accounts: class_accounts(&store, &classes)?,
            roots: classes.iter().map(|class| root_grant(class.name)).collect(),
            store: RefCell::new(store),
            metrics,
            clock: retention.clock(),
            retention,
            grants: Rc::default(),
            reference_cipher,
            classes: numbered(classes),
            agent: OnceCell::new(),
            slots: RefCell::default(),
            sealed: RefCell::default(),
            queue: RefCell::default(),
            behind: Behind::default(),
            busy: Cell::default(),
            visiting: Cell::default(),
            runnable: Rc::default(),
            committable: Rc::default(),
            warm: Warm::default(),
            awake: Awake::new(awake),
            grown: Rc::default(),
            progress: progress.clone(),
            under_way: Cell::default(),
            closing: Cell::default(),
            fault: SetOnce::new(),
            waits: Waits::new(),
            chain: RefCell::default(),
            pulse,
            bodies: OnceCell::new(),
            changed: Notify::new(),
        });
        vat.essential(settle_on(Rc::downgrade(&vat), progress));
        vat.essential(commit_submitted(Rc::downgrade(&vat), vat.committable.clone()));
        vat.essential(start_queued(Rc::downgrade(&vat), vat.runnable.clone()));
        vat.essential(rest::shrink(Rc::downgrade(&vat), vat.grown.clone()));
        Ok(vat)
    }

    /// # Errors
    /// When no class of that name is registered.
    pub(in crate::host) fn class(&self, name: &str) -> Result<Rc<Class>> {
        let class = self.classes.get(name).cloned();
        class.ok_or_else(|| failed(format!("this server has no class named {name}")))
    }

    /// The sum of what the objects of the class store together, if that is limited.
    pub(in crate::host) fn class_account(&self, name: &str) -> Option<Rc<ClassAccount>> {
        self.class_accounts.get(name).cloned()
    }

    pub(in crate::host) fn classes(&self) -> impl Iterator<Item = &Rc<Class>> {
        self.classes.values()
    }

    pub(in crate::host) fn set_agent(&self, agent: Weak<dyn Cluster>) {
        let set = self.agent.set(agent);
        assert!(set.is_ok(), "a vat has one agent");
    }

    /// # Errors
    /// Before the host joined its supervisor, and after it has ended.
    pub(in crate::host) fn agent(&self) -> Result<Rc<dyn Cluster>> {
        let agent = self.agent.get().and_then(Weak::upgrade);
        agent.ok_or_else(|| disconnected("this host is not part of a cluster"))
    }

    /// The place of an object, which it has while it is awake or anybody holds a facet of it.
    pub(in crate::host) fn slot(&self, birth: &Birth) -> Rc<Slot> {
        let mut slots = self.slots.borrow_mut();
        slots.entry(birth.id).or_insert_with(|| Slot::new(birth.clone())).clone()
    }

    /// Objects that are awake or held.
    #[cfg(test)]
    pub(in crate::host) fn places(&self) -> usize {
        self.slots.borrow().len()
    }

    /// A new facet of an object.
    pub(in crate::host) fn facet(
        self: &Rc<Self>,
        birth: &Birth,
        right: Right,
    ) -> Box<dyn ClientHook> {
        Facet::object(self, self.slot(birth), right)
    }

    /// Tells whether the object has been written, durably or on the way there.
    pub(in crate::host) fn exists(&self, id: ObjectId) -> Result<bool> {
        Ok(self.store.borrow().get(id, Space::Header, &[])?.is_some())
    }

    /// The caller lets go of `slot`: the place of a sleeping object goes with its last holder.
    pub(in crate::host) fn release(&self, slot: &Rc<Slot>) {
        const MAP_AND_CALLER: usize = 2;
        if slot.is_asleep() && Rc::strong_count(slot) == MAP_AND_CALLER {
            self.slots.borrow_mut().remove(&slot.birth.id);
        }
    }

    /// A call that an object makes belongs to one under way, and is taken until the end.
    ///
    /// # Errors
    /// When the server is shutting down: the call did not happen.
    pub(in crate::host) fn admit(self: Rc<Self>, from_object: bool) -> Result<UnderWay> {
        if self.closing.get() && !from_object {
            return Err(not_begun(disconnected("the server is shutting down")));
        }
        self.under_way.set(self.under_way.get() + 1);
        Ok(UnderWay(self))
    }

    pub(in crate::host) fn call_ended(&self) {
        self.under_way.set(self.under_way.get() - 1);
        if self.closing.get() {
            self.changed.notify_waiters();
        }
    }

    /// Starts a call, now or after those that wait already. One that comes from foreign code starts
    /// when that has let go: capnp-rpc hands over the calls on a promise while it has the promise
    /// borrowed, and the object may well call that.
    pub(in crate::host) fn start(self: Rc<Self>, start: Start) {
        if self.busy.get() {
            self.queue.borrow_mut().push_back(start);
        } else if !start.call.reply.is_foreign()
            && self.queue.borrow().is_empty()
            && !self.store.borrow().is_full()
        {
            self.busy(|| self.begin(start));
        } else {
            self.queue(start);
        }
    }

    /// Starts a call soon, after those that wait already.
    pub(in crate::host) fn queue(&self, start: Start) {
        self.queue.borrow_mut().push_back(start);
        self.runnable.notify_one();
    }

    /// Calls that have waited longer than all others: they start before these.
    pub(in crate::host) fn queue_first(&self, starts: VecDeque<Start>) {
        let mut queue = self.queue.borrow_mut();
        let others = std::mem::replace(&mut *queue, starts);
        queue.extend(others);
        self.runnable.notify_one();
    }

    /// Does something during which calls may be made. They start afterwards.
    pub(in crate::host) fn busy<T>(self: &Rc<Self>, work: impl FnOnce() -> T) -> T {
        if self.busy.get() {
            return work();
        }
        let busy = Busy::new(self);
        let output = work();
        self.begin_queued();
        drop(busy);
        output
    }

    fn begin_queued(self: &Rc<Self>) {
        let mut began = None;
        for at in 0..STARTS_IN_A_ROW {
            if self.store.borrow().is_full() {
                return; // `settle` goes on
            }
            if at > 0
                && at % STARTS_UNTIMED == 0
                && began.get_or_insert_with(monotonic).elapsed() > IN_A_ROW
            {
                return;
            }
            let Some(start) = self.queue.borrow_mut().pop_front() else { return };
            let Some(Startable { start, waited_for }) = self.startable(start) else { continue };
            // The task that does this must outlive whatever the RPC library makes of one call.
            run::contain("starting a call", || self.begin(start));
            if let Some(outlet) = waited_for {
                self.next_behind(&outlet);
            }
        }
    }

    pub(in crate::host) fn begin(self: &Rc<Self>, start: Start) {
        let slot = start.facet.slot.clone();
        let returned = start.returned();
        self.begin_in(&slot, start);
        self.after_returned(&slot, returned);
        // The call may have been the last to hold a place in which nobody is awake any more.
        self.release(&slot);
    }

    fn begin_in(self: &Rc<Self>, slot: &Rc<Slot>, start: Start) {
        if let Some(error) = start.facet.broken() {
            return start.facet.refuse(start.call, error);
        }
        if let Some((instance, server)) = slot.awake() {
            if let Some(start) = self.enter(&instance, start) {
                run::first_poll(&instance, &*server, start);
            }
            return;
        }
        if slot.is_waking() {
            return self.wait_for_waking(slot, start);
        }
        *slot.state.borrow_mut() = State::Waking(VecDeque::from([start]));
        self.wake(slot);
    }

    /// The end of a turn: its writes are handed to the commit thread.
    pub(in crate::host) fn seal(&self, instance: &Instance) {
        let sealed = self.store.borrow_mut().submit_turn();
        let Some(ticket) = sealed else { return };
        instance.gate.turn_submitted(ticket);
        self.committable.notify_one();
        self.sealed.borrow_mut().push_back((ticket, instance.gate.clone()));
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The present work of this thread, for others to see.
    pub(crate) fn pulse(&self) -> Arc<Pulse> {
        self.pulse.clone()
    }

    /// Resolves when more has become durable, or the storage has failed.
    pub(in crate::host) fn settled(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// Opens the gates of everything that is durable by now.
    fn settle(self: &Rc<Self>) {
        let durable = self.store.borrow_mut().settle();
        loop {
            let gate = {
                let mut sealed = self.sealed.borrow_mut();
                match sealed.front() {
                    Some((ticket, _)) if *ticket <= durable => sealed.pop_front(),
                    _ => break,
                }
            };
            if let Some((_, gate)) = gate {
                self.busy(|| gate.open(durable));
            }
        }
        if !self.queue.borrow().is_empty() {
            self.runnable.notify_one();
        }
        self.changed.notify_waiters();
    }

    /// Takes no more calls, and waits until those under way have been answered.
    pub(crate) async fn finish_calls(&self) {
        self.closing.set(true);
        loop {
            let changed = self.changed.notified();
            if self.under_way.get() == 0 {
                return;
            }
            changed.await;
        }
    }

    /// Ends every instance, commits what is sealed, and closes the storage.
    pub(crate) fn close(&self) -> std::result::Result<(), StorageError> {
        self.closing.set(true);
        self.forget_behind();
        self.write_restored(&self.grants.take_restored());
        let slots = std::mem::take(&mut *self.slots.borrow_mut());
        for slot in slots.values() {
            let awake = slot.awake().map(|(instance, _)| instance);
            if let Some(instance) = awake.or_else(|| slot.waking.take()) {
                instance.end("was shut down");
                drop(self.end_slot(slot, &instance));
                slot.break_facets(instance.ended());
            }
        }
        self.store.borrow_mut().close()
    }
}

/// While it exists calls queue. A panic that passes must not leave the vat busy for ever.
struct Busy<'a>(&'a Vat);

impl<'a> Busy<'a> {
    fn new(vat: &'a Vat) -> Self {
        vat.busy.set(true);
        Self(vat)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.set(false);
        if !self.0.queue.borrow().is_empty() && !self.0.store.borrow().is_full() {
            self.0.runnable.notify_one();
        }
    }
}

impl Drop for Vat {
    /// Lets its tasks end.
    fn drop(&mut self) {
        self.runnable.notify_one();
        self.committable.notify_one();
        self.progress.notify_one();
        self.grown.notify_one();
    }
}

/// Ends with the vat, or when the storage fails.
async fn settle_on(vat: Weak<Vat>, progress: Arc<Notify>) {
    loop {
        progress.notified().await;
        let Some(vat) = vat.upgrade() else { return };
        vat.settle();
        if vat.store.borrow().failure().is_some() {
            return vat.changed.notify_waiters();
        }
    }
}

/// Ends with the vat.
async fn commit_submitted(vat: Weak<Vat>, committable: Rc<Notify>) {
    loop {
        committable.notified().await;
        let Some(vat) = vat.upgrade() else { return };
        vat.store.borrow().commit_submitted();
    }
}

/// Ends with the vat.
async fn start_queued(vat: Weak<Vat>, runnable: Rc<Notify>) {
    loop {
        runnable.notified().await;
        let Some(vat) = vat.upgrade() else { return };
        vat.busy(|| ());
        // Being notified is no wait: without one, no other task would run until all have started.
        if !{ vat }.queue.borrow().is_empty() {
            tokio::task::yield_now().await;
        }
    }
}
