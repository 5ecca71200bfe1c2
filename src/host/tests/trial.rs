//! The class that the tests call, a vat whose syncs can be held back, and connections to it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use capnp::capability::{Client, FromClientHook, RemotePromise};
use capnp_rpc::rpc_twoparty_capnp::Side;
use capstead_client::{Connection, Limits};
use tokio::sync::Notify;

use super::alarms::Bell;
use super::once::Steps;
use super::programs::Actor;

use crate::clock::Clock;
use crate::error::{Result, failed};
use crate::host::base::retention::Retention;
use crate::host::base::right::Right;
use crate::host::class_of;
use crate::host::engine::gated;
use crate::host::state::class::Binding;
use crate::host::state::instance::Instance;
use crate::host::state::slot::ObjectSpec;
use crate::host::{AwakeLimits, Context, Object, Vat};
use crate::id::{ObjectId, Pool};
use crate::metrics::Metrics;
pub(super) use crate::schema::trial_capnp::trial;
use crate::storage::testing::model::MemoryLog;
use crate::storage::{Room, Store};
use crate::sturdyref::ReferenceCipher;

/// The time for which request ids are kept.
pub(super) const RETENTION: Duration = Duration::from_secs(10);

/// The class of actors that run one call at a time.
pub(super) const EXCLUSIVE_ACTOR: &str = "ExclusiveActor";

thread_local! {
    /// The numbers that objects of this test's thread noted, in order.
    static LOG: RefCell<Vec<u64>> = RefCell::default();
    static ENDED: Cell<u64> = const { Cell::new(0) };
    /// The number of polls that `wake` takes.
    static WAKE_POLLS: Cell<u64> = const { Cell::new(1) };
    static WAKE_PATH: RefCell<Vec<trial::Client>> = RefCell::default();
    static WAKE: Cell<Wake> = const { Cell::new(Wake::Well) };
}

/// Has a call of `abort` do so in a transaction.
pub(super) const IN_TRANSACTION: u64 = 77;

/// The last act of `wake`.
#[derive(Clone, Copy)]
pub(super) enum Wake {
    Well,
    Fails,
    Aborts,
    AbortsInTransaction,
    /// Calls the first of these, which passes on to the others.
    Calls,
    NeverEnds,
}

/// Those that `wake` calls.
pub(super) fn wake_calls(path: Vec<trial::Client>) {
    WAKE_PATH.set(path);
}

pub(super) fn from_now_on_wake(wake: Wake) {
    WAKE.set(wake);
}

pub(super) fn log() -> Vec<u64> {
    LOG.with_borrow(Clone::clone)
}

/// The number of objects of this test's thread that were dropped.
pub(super) fn ended() -> u64 {
    ENDED.get()
}

pub(super) fn wake_takes(polls: u64) {
    WAKE_POLLS.set(polls);
}

pub(super) fn note(n: u64) {
    LOG.with_borrow_mut(|log| log.push(n));
}

async fn polls(n: u64) {
    for _ in 0..n {
        tokio::task::yield_now().await;
    }
}

pub(super) struct Trial(Context);

impl Object for Trial {
    const CLASS: &'static str = "Trial";
    type Client = trial::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        polls(WAKE_POLLS.get() - 1).await;
        match WAKE.get() {
            Wake::Well => {}
            Wake::Fails => return Err(failed("it can't wake")),
            Wake::Aborts => return Err(ctx.abort("it can't wake")),
            Wake::AbortsInTransaction => {
                ctx.storage().put("w", "1")?;
                let abort = || Err(ctx.abort("in a transaction"));
                return ctx.storage().transaction(abort);
            }
            Wake::Calls => {
                WAKE.set(Wake::Well);
                let path = WAKE_PATH.take();
                let enter = |cap: &trial::Client| {
                    let raw = cap.as_client_hook().add_ref();
                    trial::Client::new(gated::Gated::wrap(&ctx.storage().0, raw))
                };
                match path.iter().map(enter).collect::<Vec<_>>().split_first() {
                    Some((only, [])) => drop(call_note(only, 3000).promise.await?),
                    Some((first, rest)) => call_pass(first, rest, &[]).await?,
                    None => {}
                }
            }
            Wake::NeverEnds => std::future::pending().await,
        }
        Ok(Self(ctx))
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        // The thread may be ending.
        let _ = ENDED.try_with(|ended| ended.set(ended.get() + 1));
    }
}

impl Trial {
    /// One that no vat runs.
    pub(super) fn new(ctx: Context) -> Self {
        Self(ctx)
    }

    fn put(&self, n: u64) -> Result<()> {
        self.0.storage().put("n", n.to_be_bytes())
    }
}

impl trial::Server for Trial {
    async fn note(
        self: Rc<Self>,
        params: trial::NoteParams,
        mut results: trial::NoteResults,
    ) -> Result<()> {
        let n = params.get()?.get_n();
        note(n);
        results.get().set_n(n);
        Ok(())
    }

    async fn write(
        self: Rc<Self>,
        params: trial::WriteParams,
        mut results: trial::WriteResults,
    ) -> Result<()> {
        let n = params.get()?.get_n();
        note(n);
        self.put(n)?;
        results.get().set_n(n);
        Ok(())
    }

    async fn read(
        self: Rc<Self>,
        _: trial::ReadParams,
        mut results: trial::ReadResults,
    ) -> Result<()> {
        let stored = self.0.storage().get("n")?.unwrap_or_else(|| vec![0; 8]);
        let n = stored.try_into().map_err(|_| failed("eight bytes were written"))?;
        results.get().set_n(u64::from_be_bytes(n));
        Ok(())
    }

    async fn later(
        self: Rc<Self>,
        params: trial::LaterParams,
        mut results: trial::LaterResults,
    ) -> Result<()> {
        polls(params.get()?.get_n()).await;
        if params.get()?.has_cap() {
            results.get().set_cap(params.get()?.get_cap()?);
        }
        note(1000);
        Ok(())
    }

    async fn child(
        self: Rc<Self>,
        _: trial::ChildParams,
        mut results: trial::ChildResults,
    ) -> Result<()> {
        results.get().set_cap(capnp_rpc::new_client(Self(self.0.clone())));
        Ok(())
    }

    async fn relay(
        self: Rc<Self>,
        params: trial::RelayParams,
        _: trial::RelayResults,
    ) -> Result<()> {
        let (to, n) = (params.get()?.get_to()?, params.get()?.get_n());
        self.put(n)?;
        drop(call_note(&to, n));
        let child = to.child_request().send().pipeline.get_cap();
        drop(call_note(&child, n + 1));
        drop(call_note(&to, n + 2));
        Ok(())
    }

    async fn panic(
        self: Rc<Self>,
        params: trial::PanicParams,
        _: trial::PanicResults,
    ) -> Result<()> {
        self.put(params.get()?.get_n())?;
        panic!("as asked");
    }

    async fn abort(
        self: Rc<Self>,
        params: trial::AbortParams,
        _: trial::AbortResults,
    ) -> Result<()> {
        let n = params.get()?.get_n();
        self.put(n)?;
        if n == IN_TRANSACTION {
            return self.0.storage().transaction(|| Err(self.0.abort("in a transaction")));
        }
        let aborted = self.0.abort("as asked");
        assert!(self.put(n + 1).is_err(), "an aborted instance writes nothing");
        if n == 0 { Ok(()) } else { Err(aborted) }
    }

    async fn offer(
        self: Rc<Self>,
        params: trial::OfferParams,
        mut results: trial::OfferResults,
    ) -> Result<()> {
        results.get().set_cap(self.0.capability(Rc::new(Self(self.0.clone()))));
        for _ in 0..params.get()?.get_times() {
            results.set_pipeline()?;
            polls(1).await;
        }
        Ok(())
    }

    async fn linger(
        self: Rc<Self>,
        params: trial::LingerParams,
        _: trial::LingerResults,
    ) -> Result<()> {
        let n = params.get()?.get_n();
        tokio::task::spawn_local(async move {
            polls(n).await;
            drop(self);
        });
        Ok(())
    }

    async fn pass(self: Rc<Self>, params: trial::PassParams, _: trial::PassResults) -> Result<()> {
        note(2000);
        polls(2).await;
        let params = params.get()?;
        let mut passed = Vec::new();
        for path in [params.get_one()?, params.get_two()?] {
            let path = path.iter().collect::<Result<Vec<_>>>()?;
            if let Some((first, rest)) = path.split_first() {
                call_note(first, 2001).promise.await?;
                passed.push(call_pass(first, rest, &[]));
            }
        }
        futures::future::try_join_all(passed).await.map(drop)
    }

    async fn ask(self: Rc<Self>, params: trial::AskParams, _: trial::AskResults) -> Result<()> {
        // The call alone keeps the object awake.
        drop(self);
        read(&params.get()?.get_of()?).await.map(drop)
    }

    async fn stray(self: Rc<Self>, _: trial::StrayParams, _: trial::StrayResults) -> Result<()> {
        let stray = tokio::task::spawn_local(async move { self.put(1) });
        stray.await.map_err(|error| failed(error.to_string()))?
    }
}

pub(super) fn call_note(to: &trial::Client, n: u64) -> RemotePromise<trial::note_results::Owned> {
    let mut request = to.note_request();
    request.get().set_n(n);
    request.send()
}

pub(super) fn call_write(to: &trial::Client, n: u64) -> RemotePromise<trial::write_results::Owned> {
    let mut request = to.write_request();
    request.get().set_n(n);
    request.send()
}

pub(super) fn call_pass(
    to: &trial::Client,
    one: &[trial::Client],
    two: &[trial::Client],
) -> impl Future<Output = Result<()>> + use<> {
    let mut request = to.pass_request();
    let mut list = request.get().init_one(one.len() as u32);
    (0..).zip(one).for_each(|(at, cap)| list.set(at, cap.clone().into_client_hook()));
    let mut list = request.get().init_two(two.len() as u32);
    (0..).zip(two).for_each(|(at, cap)| list.set(at, cap.clone().into_client_hook()));
    let sent = request.send().promise;
    async move { sent.await.map(drop) }
}

pub(super) fn call_later(
    to: &trial::Client,
    n: u64,
    cap: Option<trial::Client>,
) -> RemotePromise<trial::later_results::Owned> {
    let mut request = to.later_request();
    request.get().set_n(n);
    if let Some(cap) = cap {
        request.get().set_cap(cap);
    }
    request.send()
}

pub(super) async fn read(to: &trial::Client) -> Result<u64> {
    let reply = to.read_request().send().promise.await?;
    Ok(reply.get()?.get_n())
}

/// A vat over a storage in memory.
pub(super) struct World {
    pub(super) vat: Rc<Vat>,
    pub(super) disk: MemoryLog,
    pub(super) metrics: Arc<Metrics>,
    /// The time by which request ids are kept, in milliseconds.
    pub(super) now: Rc<Cell<u64>>,
    /// Groups of writes, those that were there before included, of whose end the vat was told.
    pub(super) told: Arc<AtomicUsize>,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with_quotas(u64::MAX, None)
    }

    /// A world in which one object, and all of them together, may store so much.
    pub(super) fn with_quotas(object: u64, class: Option<u64>) -> Self {
        Self::over(MemoryLog::default(), Rc::default(), object, class)
    }

    /// Another vat over what is on the disk.
    pub(super) fn restart_with_quotas(&self, object: u64, class: Option<u64>) -> Self {
        Self::over(self.disk.clone(), self.now.clone(), object, class)
    }

    /// A vat over what a disk holds.
    pub(super) fn over_disk(disk: MemoryLog) -> Self {
        Self::over(disk, Rc::default(), u64::MAX, None)
    }

    /// A vat that watches its clock for so long before it forgets by it.
    pub(super) fn watching(watch: Duration) -> Self {
        Self::over_watching(MemoryLog::default(), Rc::default(), (u64::MAX, None), watch)
    }

    fn over(disk: MemoryLog, now: Rc<Cell<u64>>, object: u64, total: Option<u64>) -> Self {
        Self::over_watching(disk, now, (object, total), Duration::ZERO)
    }

    fn over_watching(
        disk: MemoryLog,
        now: Rc<Cell<u64>>,
        (object, total): (u64, Option<u64>),
        watch: Duration,
    ) -> Self {
        let metrics = Arc::new(Metrics::default());
        let progress = Arc::new(Notify::new());
        let notify = progress.clone();
        let told = Arc::new(AtomicUsize::new(disk.groups().len()));
        let tell = told.clone();
        let on_progress = Box::new(move || {
            notify.notify_one();
            tell.fetch_add(1, Ordering::Release);
        });
        let (log, reads) = (Box::new(disk.clone()), Rc::new(disk.clone()));
        let store = Store::new("test", log, reads, Room::endless(), on_progress).unwrap();
        let mut class = class_of::<Trial>();
        (class.object_limit, class.total_limit) = (object, total);
        class.bindings.push(Binding { name: "trials".into(), class: "Trial" });
        let mut exclusive = class.clone();
        (exclusive.name, exclusive.is_exclusive) = ("Exclusive", true);
        let mut actor = class_of::<Actor>();
        (actor.name, actor.is_exclusive) = (EXCLUSIVE_ACTOR, true);
        let actors = [class_of::<Actor>(), actor];
        let others = [class_of::<Steps>(), class_of::<Bell>()];
        let classes = [class, exclusive].into_iter().chain(others).chain(actors).collect();
        // Most tests don't watch the clock, and forget by what it shows.
        let clock = Clock::test(now.clone());
        let retention = Retention::watching(clock, RETENTION, watch);
        let cipher = ReferenceCipher::new(&[7; 32]);
        let with = (cipher, AwakeLimits::NONE);
        let vat = Vat::with_store(store, classes, metrics.clone(), retention, with, progress);
        let vat = vat.unwrap();
        Self { vat, disk, metrics, now, told }
    }

    /// Tells whether the vat was told of all that is durable. The commit thread does that a little
    /// later.
    pub(super) fn was_told(&self) -> bool {
        self.told.load(Ordering::Acquire) >= self.disk.groups().len()
    }

    /// A new facet of the object called `name`.
    pub(super) fn object(&self, name: &str) -> trial::Client {
        self.object_of("Trial", name)
    }

    /// A new facet of the object called `name`, which runs one call at a time.
    pub(super) fn exclusive(&self, name: &str) -> trial::Client {
        self.object_of("Exclusive", name)
    }

    pub(super) fn object_of(&self, class: &str, name: &str) -> trial::Client {
        let class = self.vat.objects.class(class).unwrap();
        let id = ObjectId::named(Pool::default(), class.name, name);
        let spec = ObjectSpec { id, class, name: Some(name.into()) };
        trial::Client::new(self.vat.facet(&spec, Right::default()))
    }
}

impl World {
    /// The context of the object called `name`.
    pub(super) fn context(&self, name: &str) -> Context {
        Context::new(self.instance(name))
    }

    /// The object called `name`, awake beside the vat's own instance.
    pub(super) fn instance(&self, name: &str) -> Rc<Instance> {
        let class = self.vat.objects.class("Trial").unwrap();
        let id = ObjectId::named(Pool::default(), class.name, name);
        let spec = ObjectSpec { id, class, name: Some(name.into()) };
        Instance::new(&self.vat, spec).unwrap()
    }
}

/// A capability that the instance made and gave away.
pub(super) fn made_by(instance: &Rc<Instance>) -> trial::Client {
    let made: trial::Client = capnp_rpc::new_client(Trial(Context::new(instance.clone())));
    trial::Client::new(gated::leaving(instance, made.into_client_hook()))
}

/// The same capability behind so many connections.
pub(super) fn over(mut client: trial::Client, hops: usize) -> trial::Client {
    for _ in 0..hops {
        let (near, far) = tokio::io::duplex(1 << 16);
        let bootstrap = Some(Client::new(client.into_client_hook()));
        let server = Connection::new(far, Side::Server, bootstrap, Limits::default()).unwrap();
        let peer = Connection::new(near, Side::Client, None, Limits::default()).unwrap();
        client = peer.bootstrap();
        // They last as long as the test: dropping the last handle ends a connection.
        std::mem::forget((server, peer));
    }
    client
}

/// Runs a test, which must end in time.
pub(super) fn run(test: impl Future<Output = ()>) {
    run_within(Duration::from_secs(30), test);
}

pub(super) fn run_within(time: Duration, test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::LocalRuntime::new().unwrap();
    let ended = async { tokio::time::timeout(time, test).await };
    runtime.block_on(ended).expect("the test ends in time");
}

/// Lets everything run that can run without the disk or the clock.
pub(super) async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}
