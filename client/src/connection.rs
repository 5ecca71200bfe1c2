//! One connection to another vat: the only place that wires an `RpcSystem`.
//!
//! A task on the current thread drives each connection. Whatever happens in it, also a panic, ends
//! that connection only, and every call that was on its way fails. The RPC system is never just
//! dropped, because then its callers would wait for ever.

use crate::guard::budget::Budget;
use crate::guard::limits::{Bites, Limits};
use crate::guard::relayed::Relayed;
use crate::guard::{Guard, State, Watched, abort};
use crate::reason::Reason;
use capnp::Error;
use capnp::capability::{Client, FromClientHook};
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{Disconnector, RpcSystem};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Sleep;

/// The time in which a connection that broke a rule writes its last bytes and the peer may read them, in seconds.
const LAST_WRITE_SECS: u64 = 1;

/// The time in which the peer of one that ends in order has to read some of them, in seconds. Those who read
/// megabytes a second show it only that often: the system takes as many for them at once.
const PROGRESS_SECS: u64 = 2;

/// The time in which it has to read all of them, in as many such times.
const PROGRESSES_MAX: u32 = 5;

/// The number of times that an RPC system that is over is polled to tell its callers: it takes a
/// few polls. What a server in it does by itself could go on for ever.
const LAST_POLLS_MAX: usize = 1024;

/// A connection to another vat. Clones are handles to the same one.
///
/// When the last handle is dropped the connection ends, and with it all capabilities that came
/// through it.
#[derive(Clone)]
pub struct Connection {
    inner: Rc<Inner>,
}

struct Inner {
    status: Rc<Status>,
    /// The capability that the peer offers to everybody who connects.
    bootstrap: Client,
}

/// The state that the handles and the task of a connection share.
struct Status {
    /// A handle asked for the end.
    stop: Cell<bool>,
    /// The end is near: the peer has to read without a rest.
    hurries: Cell<bool>,
    /// The reason that is sent to the peer, if a handle gave one.
    reason: RefCell<Option<Error>>,
    /// The task, while it isn't running.
    task: RefCell<Option<Waker>>,
    /// Why the connection is over, once it is.
    end: watch::Sender<Option<Error>>,
}

impl Status {
    fn stop(&self) {
        self.stop.set(true);
        self.wake();
    }

    fn wake(&self) {
        let task = self.task.take();
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl Connection {
    /// Speaks Cap'n Proto over `stream`, and offers `bootstrap` to the peer.
    ///
    /// The `Side` is `Client` for whoever dialled. On TCP the caller switches Nagle's delay off.
    ///
    /// # Errors
    /// Outside of `#[tokio::main(flavor = "local")]`, a `LocalRuntime` and a `LocalSet`, where
    /// [`spawn_local`](tokio::task::spawn_local) is impossible.
    pub fn new<S>(
        stream: S,
        side: Side,
        bootstrap: Option<Client>,
        limits: Limits,
    ) -> capnp::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let state = State::new(stream, limits, Arc::default());
        Self::over(Rc::new(RefCell::new(state)), side, bootstrap)
    }

    /// Serves `bootstrap` to a peer that nobody knows until a call of it succeeds; counts in `bites` which
    /// limits bit, and in `budget` what the connection holds.
    ///
    /// # Errors
    /// As [`Connection::new`].
    pub fn serve<S>(
        stream: S,
        bootstrap: Client,
        limits: Limits,
        bites: Arc<Bites>,
        budget: Budget,
    ) -> capnp::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let state = State::new(stream, limits, bites).of_stranger(budget);
        Self::over(Rc::new(RefCell::new(state)), Side::Server, Some(bootstrap))
    }

    /// As [`Connection::new`], for one of several connections that pass on to each other what they read.
    ///
    /// # Errors
    /// As [`Connection::new`].
    #[doc(hidden)] // for the server
    pub fn relaying<S>(
        stream: S,
        side: Side,
        bootstrap: Option<Client>,
        limits: Limits,
        all: &Relayed,
    ) -> capnp::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let state = State::new(stream, limits, Arc::default()).one_of(all.clone());
        Self::over(Rc::new(RefCell::new(state)), side, bootstrap)
    }

    /// Tells a peer that it is not served, and why, as far as it listens at once. No call of it begins.
    pub fn refuse(stream: TcpStream, reason: &str) {
        // Nothing was written before, so that there is room.
        let abort = abort(&Reason::NotBegun.error(reason).extra);
        let _ = stream.try_write(&capnp::serialize::write_message_to_words(&abort));
    }

    pub(crate) fn over<S>(
        state: Rc<RefCell<State<S>>>,
        side: Side,
        bootstrap: Option<Client>,
    ) -> capnp::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let nothing = || capnp_rpc::new_broken_cap(Error::failed("nothing is offered here".into()));
        let offered = state.borrow().offer(bootstrap.unwrap_or_else(nothing).hook);
        let mut rpc = RpcSystem::new(Box::new(Guard::new(state.clone(), side)), Some(offered));
        let peers = match side {
            Side::Client => rpc.bootstrap(Side::Server),
            Side::Server => capnp_rpc::new_broken_cap(Error::unimplemented(
                "only who dialled can ask for the bootstrap capability".into(),
            )),
        };
        let status = Rc::new(Status {
            stop: Cell::new(false),
            hurries: Cell::new(false),
            reason: RefCell::default(),
            task: RefCell::new(None),
            end: watch::Sender::new(None),
        });
        let disconnector = Some(rpc.get_disconnector());
        let task = Task {
            rpc: Some(rpc),
            disconnector,
            state,
            status: status.clone(),
            watchdog: Watchdog::default(),
            has_let_go: false,
            stranger: None,
            last_write: None,
            last_written: (0, 0),
            over: None,
        };
        // It ends when the last handle is dropped, or the peer goes.
        spawn(task)?;
        Ok(Self { inner: Rc::new(Inner { status, bootstrap: peers }) })
    }

    /// The peer's bootstrap capability, as a `C`. On the side that accepted it is a broken one: only
    /// the dialling side can ask.
    ///
    /// Calls may be made on it at once. Don't await its `when_resolved`, which never comes.
    pub fn bootstrap<C: FromClientHook>(&self) -> C {
        C::new(self.inner.bootstrap.hook.clone())
    }

    /// As [`disconnect`](Self::disconnect), and tells the peer why. Those of its calls that were read and have
    /// no answer fail with `reason`; all others, also those that it makes later, with `not-begun:` before it,
    /// since they had no effect.
    pub async fn disconnect_because(&self, reason: &str) {
        self.inner.status.reason.replace(Some(Error::disconnected(reason.into())));
        self.disconnect().await;
    }

    /// Gives a peer that reads nothing of what waits for it two seconds from now on, whatever the limit was: its
    /// server is about to end.
    #[doc(hidden)] // for the server
    pub fn hurry(&self) {
        self.inner.status.hurries.set(true);
        self.inner.status.wake();
    }

    /// Ends the connection: calls on their way fail as `disconnected`. Returns when that is done.
    pub async fn disconnect(&self) {
        self.inner.status.stop();
        self.closed().await;
    }

    /// Waits for the end of the connection, and says why it came.
    pub async fn closed(&self) -> Error {
        let mut end = self.inner.status.end.subscribe();
        let end = end.wait_for(Option::is_some).await.map(|end| end.clone());
        end.ok().flatten().unwrap_or_else(|| Error::disconnected("the connection is over".into()))
    }

    /// Tells whether the connection is over.
    pub fn is_closed(&self) -> bool {
        self.inner.status.stop.get() || self.inner.status.end.borrow().is_some()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Connection").field("closed", &self.is_closed()).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.status.stop();
    }
}

/// Runs `task` until it ends by itself.
pub(crate) fn spawn(task: impl Future<Output = ()> + 'static) -> capnp::Result<()> {
    let outside = |_| {
        Error::failed(
            "a connection needs #[tokio::main(flavor = \"local\")], a LocalRuntime or a LocalSet"
                .into(),
        )
    };
    catch_unwind(AssertUnwindSafe(|| drop(tokio::task::spawn_local(task)))).map_err(outside)
}

/// Drives one connection: reads and handles what comes, then writes what was made of it.
struct Task<S: AsyncRead + AsyncWrite + Unpin + 'static> {
    /// Taken after a panic on its way out.
    rpc: Option<RpcSystem<Side>>,
    /// Taken when the RPC system was told to end.
    disconnector: Option<Disconnector<Side>>,
    state: Rc<RefCell<State<S>>>,
    status: Rc<Status>,
    watchdog: Watchdog,
    /// Nothing more is sent, and nobody waits any more.
    has_let_go: bool,
    /// Runs while the peer is a stranger.
    stranger: Option<Pin<Box<Sleep>>>,
    /// Runs from when the connection is over.
    last_write: Option<Pin<Box<Sleep>>>,
    /// The number of times that it ran, and the bytes that were out when the last of them began.
    last_written: (u32, u64),
    /// All is written: why the connection is over, while the peer reads it.
    over: Option<Error>,
}

impl<S: AsyncRead + AsyncWrite + Unpin + 'static> Future for Task<S> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<()> {
        let this = &mut *self;
        if this.over.is_some() {
            return this.poll_over(cx);
        }
        this.status.task.take();
        this.state.borrow_mut().driver_runs();
        if this.status.hurries.take() {
            this.state.borrow_mut().hurry(Duration::from_secs(PROGRESS_SECS));
        }
        this.poll_rpc(cx);
        if this.status.stop.get() {
            // Else the RPC system tells the peer that it was asked to end.
            if let Some(reason) = this.status.reason.take() {
                this.state.borrow_mut().end_in_order(reason);
            }
            this.end_rpc();
        }
        this.status.task.replace(Some(cx.waker().clone()));
        let written = this.state.borrow_mut().poll_write(cx);
        if let Poll::Ready(reason) = written {
            if !this.state.borrow().has_to_drain() {
                this.end(reason);
                return Poll::Ready(());
            }
            this.let_go();
            if !this.state.borrow().owes_reason() {
                // The time to write was another.
                this.last_write = None;
            }
            // Nobody is to use it meanwhile.
            this.status.stop.set(true);
            this.over = Some(reason);
            return this.poll_over(cx);
        }
        let watched = this.state.borrow().watched();
        if let Some(watched) = this.watchdog.poll(watched, cx) {
            this.state.borrow_mut().lasted(watched);
        }
        this.poll_stranger(cx);
        this.poll_last_write(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + 'static> Task<S> {
    fn poll_rpc(&mut self, cx: &mut Context) {
        let Some(rpc) = &mut self.rpc else { return };
        let state = &self.state;
        let polled = catch_unwind(AssertUnwindSafe(|| {
            drop(Pin::new(rpc).poll(cx));
            State::drop_answered(state);
        }));
        if polled.is_ok() {
            return;
        }
        if self.disconnector.is_some() {
            // First of all, because the RPC system would tell the peer that it was asked to end.
            let reason = "the connection failed by a panic".into();
            self.state.borrow_mut().give_up(Error::disconnected(reason));
            return self.end_rpc();
        }
        // It can't even tell its callers.
        let rpc = self.rpc.take();
        // A destructor of user code may panic again: the connection is over in any case.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(rpc)));
    }

    /// Tells the RPC system to fail all calls that are on their way. Does nothing the second time.
    fn end_rpc(&mut self) {
        let Some(mut disconnector) = self.disconnector.take() else { return };
        let mut nobody = Context::from_waker(Waker::noop());
        // All of it happens in the first poll, and what user code may throw in it changes nothing.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            drop(Pin::new(&mut disconnector).poll(&mut nobody));
        }));
    }

    /// The RPC system tells its callers in tasks of its own, which run only while it is polled. Whoever
    /// holds the pipeline of a call would wait for the end of the call for ever.
    fn run_out(&mut self) {
        let woken = Arc::new(Woken(AtomicBool::new(true)));
        let waker = Waker::from(woken.clone());
        for _ in 0..LAST_POLLS_MAX {
            if !woken.0.swap(false, Ordering::Relaxed) {
                break;
            }
            self.poll_rpc(&mut Context::from_waker(&waker));
        }
    }

    /// Fails all calls that are on their way, and lets go of everything but the stream, as soon as nothing more
    /// will be sent: answers that still come would be kept for nobody until the last bytes are out.
    fn let_go(&mut self) {
        if std::mem::replace(&mut self.has_let_go, true) {
            return;
        }
        self.end_rpc();
        self.run_out();
        let held = self.state.borrow_mut().forget();
        // Whatever goes with it may come back here, and may panic as user code does.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(held)));
    }

    fn end(&mut self, reason: Error) {
        self.let_go();
        self.state.borrow_mut().close();
        self.status.end.send_if_modified(|end| {
            let first = end.is_none();
            end.get_or_insert(reason);
            first
        });
    }

    /// Waits until the peer has read the reason and closed its side, for a limited time.
    fn poll_over(&mut self, cx: &mut Context) -> Poll<()> {
        let limit = Duration::from_secs(LAST_WRITE_SECS);
        let sleep = self.last_write.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        let is_late = sleep.as_mut().poll(cx).is_ready();
        if !is_late && self.state.borrow_mut().poll_drain(cx).is_pending() {
            return Poll::Pending;
        }
        if let Some(reason) = self.over.take() {
            self.end(reason);
        }
        Poll::Ready(())
    }

    fn poll_stranger(&mut self, cx: &mut Context) {
        let Some(time) = self.state.borrow().stranger_time() else {
            self.stranger = None;
            return;
        };
        let sleep = self.stranger.get_or_insert_with(|| Box::pin(tokio::time::sleep(time)));
        if sleep.as_mut().poll(cx).is_ready() {
            self.state.borrow_mut().remained_stranger();
        }
    }

    /// A peer that doesn't read can't keep a connection that is over.
    fn poll_last_write(&mut self, cx: &mut Context) -> Poll<()> {
        let Some(reason) = self.state.borrow().closing().cloned() else { return Poll::Pending };
        self.let_go();
        let (limit, written) = {
            let state = self.state.borrow();
            let secs = if state.owes_reason() { LAST_WRITE_SECS } else { PROGRESS_SECS };
            // Who had to hurry and didn't has had the time.
            let secs = if state.owes_reason() && state.is_hurried() { 0 } else { secs };
            (Duration::from_secs(secs), state.written())
        };
        let sleep = self.last_write.get_or_insert_with(|| {
            self.last_written = (1, written);
            Box::pin(tokio::time::sleep(limit))
        });
        while sleep.as_mut().poll(cx).is_ready() {
            let (times, before) = self.last_written;
            let may_go_on = times < PROGRESSES_MAX && !self.state.borrow().owes_reason();
            if !may_go_on || written == before {
                self.end(reason);
                return Poll::Ready(());
            }
            self.last_written = (times + 1, written);
            sleep.set(tokio::time::sleep(limit));
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + 'static> Drop for Task<S> {
    /// The runtime may end first; whoever waits for an answer is told even then.
    fn drop(&mut self) {
        let ended = || Error::disconnected("the task of the connection ended".into());
        let reason = self.over.take().unwrap_or_else(ended);
        self.end(reason);
    }
}

/// Notes that something became ready meanwhile.
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sees that what is watched changes in time. It has a timer only while something is watched.
#[derive(Default)]
struct Watchdog {
    watched: Option<(Watched, Pin<Box<Sleep>>)>,
}

impl Watchdog {
    /// Says what didn't change in its time.
    fn poll(&mut self, now: Option<Watched>, cx: &mut Context) -> Option<Watched> {
        let Some(now) = now else {
            self.watched = None;
            return None;
        };
        let begin = || tokio::time::sleep(now.time);
        let (before, sleep) = self.watched.get_or_insert_with(|| (now, Box::pin(begin())));
        if *before != now {
            *before = now;
            sleep.set(begin());
        }
        sleep.as_mut().poll(cx).is_ready().then_some(now)
    }
}

#[cfg(test)]
mod tests;
