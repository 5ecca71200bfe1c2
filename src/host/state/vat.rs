//! The objects of one thread, with all that their calls need.
//!
//! A call comes to a facet, waits in the [`Scheduler`] until it may start, finds its object among
//! the [`Objects`] and wakes it if it sleeps, and runs in [`Turns`], whose writes become durable
//! before anything that follows them leaves. Each of these three keeps its own state and
//! invariants. The vat holds them together, with what belongs to no object: clock, keys, grants in
//! use, and the way to other hosts.
//!
//! Invariants:
//! - A vat has one thread, and no part of it a lock.
//! - The tasks of a vat hold it weakly, and end with it.
//! - Once it is closed, no instance of it acts.

use std::cell::{OnceCell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use capnp::private::capability::ClientHook;
use tokio::sync::Notify;

use super::alarms::AlarmClock;
use super::awake::AwakeLimits;
use super::class::Class;
use super::cluster::Cluster;
use super::cut_walks::CutWalks;
use super::facet::Facet;
use super::objects::Objects;
use super::queued_call::QueuedCall;
use super::scheduler::Scheduler;
use super::slot::ObjectSpec;
use crate::clock::Clock;
use crate::error::{Result, disconnected};
use crate::host::base::activity::Activity;
use crate::host::base::fault::Fault;
use crate::host::base::header::Header;
use crate::host::base::retention::Retention;
use crate::host::base::right::{LiveGrants, Right};
use crate::host::base::turns::Turns;
use crate::http::Room;
use crate::id::ObjectId;
use crate::membrane::{Chain, Keeper, Reply};
use crate::metrics::Metrics;
use crate::storage::{Account, Presence, Space, StorageError, Store};
use crate::sturdyref::ReferenceCipher;

/// Begins a call whose turn to start has come: the floor above does.
pub(in crate::host) type Begin = fn(&Rc<Vat>, QueuedCall);

/// See the head of the file.
pub(crate) struct Vat {
    begin: Begin,
    pub(in crate::host) scheduler: Rc<Scheduler>,
    pub(in crate::host) turns: Turns,
    pub(in crate::host) objects: Objects,
    pub(in crate::host) metrics: Arc<Metrics>,
    pub(in crate::host) clock: Clock,
    pub(in crate::host) retention: Retention,
    /// The grants by which somebody holds something of this vat.
    pub(in crate::host) live_grants: Rc<LiveGrants>,
    pub(in crate::host) cut_walks: CutWalks,
    pub(in crate::host) alarms: AlarmClock,
    pub(in crate::host) reference_cipher: Rc<ReferenceCipher>,
    agent: OnceCell<Weak<dyn Cluster>>,
    pub(in crate::host) fault: Rc<Fault>,
    /// The chain of the present turn, which calls made in it carry on.
    pub(in crate::host) chain: RefCell<Option<Chain>>,
    /// The keeper of the present work: objects that this needs stay awake for it.
    pub(in crate::host) keeper: RefCell<Option<Rc<Keeper>>>,
    pub(in crate::host) activity: Arc<Activity>,
    pub(in crate::host) bodies: OnceCell<Arc<Room>>,
}

impl Vat {
    /// The vat over a storage that tells `progress` what is durable. Its tasks end with it.
    ///
    /// # Errors
    /// When the storage can't be read.
    pub(in crate::host) fn new(
        mut store: Store,
        classes: Vec<Class>,
        metrics: Arc<Metrics>,
        retention: Retention,
        (cipher, awake): (ReferenceCipher, AwakeLimits),
        (begin, progress): (Begin, Arc<Notify>),
    ) -> std::result::Result<Rc<Self>, StorageError> {
        let reference_cipher = Rc::new(cipher);
        let cipher = reference_cipher.clone();
        store.find_references(Rc::new(move |owner, key, value| cipher.targets(owner, key, value)));
        let activity = Activity::new(classes.iter().map(|class| class.name).collect());
        let vat = Rc::new(Self {
            begin,
            scheduler: Rc::default(),
            objects: Objects::new(&store, classes, awake)?,
            turns: Turns::new(store, progress.clone()),
            metrics,
            clock: retention.clock(),
            retention,
            live_grants: Rc::default(),
            cut_walks: CutWalks::default(),
            alarms: AlarmClock::new(),
            reference_cipher,
            agent: OnceCell::new(),
            fault: Rc::default(),
            chain: RefCell::default(),
            keeper: RefCell::default(),
            activity: Arc::new(activity),
            bodies: OnceCell::new(),
        });
        vat.fault.watch(settle_on(Rc::downgrade(&vat), progress));
        vat.fault.watch(commit_submitted(Rc::downgrade(&vat), vat.turns.committable()));
        vat.fault.watch(start_queued(Rc::downgrade(&vat), vat.scheduler.runnable()));
        Ok(vat)
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

    /// A new facet of an object.
    pub(in crate::host) fn facet(
        self: &Rc<Self>,
        spec: &ObjectSpec,
        right: Right,
    ) -> Box<dyn ClientHook> {
        Facet::object(self, self.objects.slot(spec), right)
    }

    /// Tells whether the object has been written, durably or on the way there.
    pub(in crate::host) fn exists(&self, id: ObjectId) -> Result<bool> {
        Ok(self.turns.store().get(id, Space::Header, &[])?.is_some())
    }

    /// The account of an object, or of a namespace, for writes of the server itself.
    ///
    /// # Errors
    /// When the storage can't be read.
    pub(in crate::host) fn account_of(&self, target: ObjectId) -> Result<Rc<Account>> {
        if let Some(instance) = self.objects.instance_of(target) {
            return Ok(instance.account.clone());
        }
        let store = self.turns.store();
        let Some(header) = store.get(target, Space::Header, &[])? else {
            return Ok(Account::system(target));
        };
        let class = Header::class_of(&header).and_then(|class| self.objects.class_account(class));
        Ok(store.account(target, Presence::Present, u64::MAX, class)?)
    }

    /// Runs `work` as a turn of the server's own; if it fails, nothing is written.
    ///
    /// # Errors
    /// That of `work`, and when the storage can't be read.
    pub(in crate::host) fn write_of_server<T>(
        &self,
        target: ObjectId,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.turns.of_server(self.account_of(target)?, work)
    }

    /// Starts an accepted call, now or after those that wait already.
    pub(in crate::host) fn start(self: &Rc<Self>, queued: QueuedCall) {
        if let Some(queued) = self.scheduler.now_or_queued(queued, &self.turns) {
            self.busy(|| (self.begin)(self, queued));
        }
    }

    /// Runs `work`; calls made in it start when it has returned.
    pub(in crate::host) fn busy<T>(self: &Rc<Self>, work: impl FnOnce() -> T) -> T {
        self.scheduler.busy(&self.turns, work, |queued| (self.begin)(self, queued))
    }

    /// Opens the gates of everything that is durable by now.
    fn settle(self: &Rc<Self>) {
        self.turns.settle(|gate, durable| self.busy(|| gate.open(durable)));
        self.scheduler.go_on();
        self.alarms.go_on();
        self.turns.tell_settled();
    }

    /// Tells a caller that the grant was taken back, once that is durable.
    pub(in crate::host) fn tell_when_durable(self: &Rc<Self>, reply: Reply, error: capnp::Error) {
        if self.turns.is_settled() {
            return reply.send(Err(error));
        }
        let vat = self.clone();
        // Ends when all that was written by now is durable, or the storage has failed.
        tokio::task::spawn_local(async move {
            vat.turns.outside_turns().await;
            let flushed = vat.turns.flush().await;
            vat.busy(|| reply.send(Err(flushed.map_or_else(Into::into, |()| error))));
        });
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The present work of this thread, for others to see.
    pub(crate) fn activity(&self) -> Arc<Activity> {
        self.activity.clone()
    }

    /// Resolves when everything that was submitted before is durable.
    ///
    /// # Errors
    /// When the storage failed: it is unknown which of those writes are durable.
    pub(crate) async fn flush(&self) -> std::result::Result<(), StorageError> {
        self.turns.flush().await
    }

    /// Resolves when the storage has failed: nothing will be durable any more.
    pub(crate) async fn failure(&self) -> StorageError {
        self.turns.failure().await
    }

    /// Ends the storage for a reason that it can't see itself: from now on nothing becomes durable,
    /// and so nothing leaves.
    pub(crate) fn fail_storage(&self, error: Arc<StorageError>) {
        self.turns.store().fail(error);
    }

    /// Resolves with the reason when the vat can't go on, other than by its storage.
    pub(crate) async fn fault(&self) -> String {
        self.fault.reason().await
    }

    /// Ends a task of the vat, as if it had a bug.
    #[cfg(test)]
    pub(crate) fn fail_a_task(&self) {
        self.fault.watch(async { panic!("a task of the vat has a bug") });
    }

    /// Takes no more calls, and waits until those under way have been answered.
    pub(crate) async fn finish_calls(&self) {
        self.scheduler.close();
        self.scheduler.all_ended().await;
    }
}

/// Opens gates as more becomes durable. Ends with the vat, or when the storage fails.
async fn settle_on(vat: Weak<Vat>, progress: Arc<Notify>) {
    loop {
        progress.notified().await;
        let Some(vat) = vat.upgrade() else { return };
        vat.settle();
        if vat.turns.store().failure().is_some() {
            return vat.turns.tell_settled();
        }
    }
}

/// Ends with the vat.
async fn commit_submitted(vat: Weak<Vat>, committable: Rc<Notify>) {
    loop {
        committable.notified().await;
        let Some(vat) = vat.upgrade() else { return };
        if vat.activity.has_rested() {
            vat.activity.at_disk(|| vat.turns.commit_submitted());
        } else {
            vat.turns.hand_over_submitted();
        }
    }
}

/// Ends with the vat.
async fn start_queued(vat: Weak<Vat>, runnable: Rc<Notify>) {
    loop {
        runnable.notified().await;
        let Some(vat) = vat.upgrade() else { return };
        vat.busy(|| ());
        // `notified` may return at once; without a yield no other task would run until all calls
        // have started.
        if { vat }.scheduler.has_queued() {
            tokio::task::yield_now().await;
        }
    }
}
