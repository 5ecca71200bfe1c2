//! One connection to another vat: the only place that wires an `RpcSystem`.
//!
//! A task on the current thread drives each connection. A failure in it, even a panic, ends only
//! that connection and fails its calls on their way. The RPC system is never simply dropped,
//! because then its callers would never get an answer.

mod watchdog;

use crate::guard::budget::Budget;
use crate::guard::relayed::Relayed;
use crate::guard::{Guard, GuardState, abort};
use crate::limits::{Bites, Limits};
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
use watchdog::Watchdog;

/// The time for a connection that broke a rule to write its end, and for the peer to read it.
const LAST_WRITE_SECS: u64 = 1;

/// The time in which the peer of a connection that ends in order has to read something more. A peer
/// that reads megabytes a second shows no progress more often, because the system buffers as many.
const PROGRESS_SECS: u64 = 2;

/// The time in which that peer has to read everything, in multiples of `PROGRESS_SECS`.
const PROGRESSES_MAX: u32 = 5;

/// The most polls in which an RPC system that has ended tells its callers. That takes a few; the
/// code of a server in it might ask for more without end.
const LAST_POLLS_MAX: usize = 1024;

/// A connection to another vat. Clones are handles to the same connection.
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

/// The state that a connection's handles and task share.
struct Status {
    /// A handle has asked for the end.
    stop: Cell<bool>,
    /// The server ends soon: the peer has to keep reading.
    hurries: Cell<bool>,
    /// The reason that is sent to the peer, if a handle gave one.
    reason: RefCell<Option<Error>>,
    /// The task, while it isn't running.
    task: RefCell<Option<Waker>>,
    /// The reason why the connection ended, once it has.
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
    /// The `Side` is `Client` for the side that dialled. On TCP the caller disables Nagle's
    /// algorithm.
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
        let state = GuardState::new(stream, limits, Arc::default());
        Self::over(Rc::new(RefCell::new(state)), side, bootstrap)
    }

    /// Serves `bootstrap` to a peer that is a stranger until one of its calls succeeds. Counts in
    /// `bites` the limits that were hit, and in `budget` the memory that the connection holds.
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
        let state = GuardState::new(stream, limits, bites).of_stranger(budget);
        Self::over(Rc::new(RefCell::new(state)), Side::Server, Some(bootstrap))
    }

    /// As [`Connection::new`], for one of several connections that pass on to each other the
    /// messages that they read.
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
        let state = GuardState::new(stream, limits, Arc::default()).one_of(all.clone());
        Self::over(Rc::new(RefCell::new(state)), side, bootstrap)
    }

    /// Tells a peer why it is not served, without waiting for it to read. None of its calls begins.
    pub fn refuse(stream: TcpStream, reason: &str) {
        // Nothing was written before, so there is room.
        let abort = abort(&Reason::NotBegun.error(reason).extra);
        let _ = stream.try_write(&capnp::serialize::write_message_to_words(&abort));
    }

    pub(crate) fn over<S>(
        state: Rc<RefCell<GuardState<S>>>,
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
        // The task ends when the last handle is dropped, or the peer disconnects.
        spawn(task)?;
        Ok(Self { inner: Rc::new(Inner { status, bootstrap: peers }) })
    }

    /// The peer's bootstrap capability, as a `C`. On the side that accepted the connection it is
    /// broken: only the dialling side can ask for one.
    ///
    /// Calls may be made on it at once. Don't await its `when_resolved`, which never completes.
    pub fn bootstrap<C: FromClientHook>(&self) -> C {
        C::new(self.inner.bootstrap.hook.clone())
    }

    /// As [`disconnect`](Self::disconnect), and tells the peer why. Its calls that were read and
    /// not answered fail with `reason`; all others, later ones too, had no effect, and fail with
    /// `not-begun:` before it.
    pub async fn disconnect_because(&self, reason: &str) {
        self.inner.status.reason.replace(Some(Error::disconnected(reason.into())));
        self.disconnect().await;
    }

    /// The server ends soon: a peer that reads nothing of what waits for it now has two seconds at
    /// most.
    #[doc(hidden)] // for the server
    pub fn hurry(&self) {
        self.inner.status.hurries.set(true);
        self.inner.status.wake();
    }

    /// Ends the connection: calls on their way fail as `disconnected`. Returns when that has
    /// happened.
    pub async fn disconnect(&self) {
        self.inner.status.stop();
        self.closed().await;
    }

    /// Waits for the end of the connection, and returns its reason.
    pub async fn closed(&self) -> Error {
        let mut end = self.inner.status.end.subscribe();
        let end = end.wait_for(Option::is_some).await.map(|end| end.clone());
        end.ok().flatten().unwrap_or_else(|| Error::disconnected("the connection is over".into()))
    }

    /// Tells whether the connection has ended.
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

/// Drives one connection: reads and handles messages, then writes those made in response.
///
/// The RPC system takes one message in each poll, and other tasks of the thread run before the next
/// one. When it was polled again at once, calls that a peer in Python reflected to an object of
/// another host changed their order (`tests/python/test_passing.py`).
struct Task<S: AsyncRead + AsyncWrite + Unpin + 'static> {
    /// Taken after a panic while the connection was ending.
    rpc: Option<RpcSystem<Side>>,
    /// Taken when the RPC system is told to end.
    disconnector: Option<Disconnector<Side>>,
    state: Rc<RefCell<GuardState<S>>>,
    status: Rc<Status>,
    watchdog: Watchdog,
    /// Nothing more is sent, and all callers have been told.
    has_let_go: bool,
    /// Runs while the peer is a stranger.
    stranger: Option<Pin<Box<Sleep>>>,
    /// Runs from the time at which the connection begins to end.
    last_write: Option<Pin<Box<Sleep>>>,
    /// The runs of `last_write` so far, and the bytes written when the last one began.
    last_written: (u32, u64),
    /// The reason of the end, while the peer reads the last bytes; all of them are written.
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
            // Without this the RPC system would tell the peer that it was asked to end.
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
                // That timer was for writing; reading gets one of its own.
                this.last_write = None;
            }
            // From here on no handle may use the connection.
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
            GuardState::drop_answered(state);
        }));
        if polled.is_ok() {
            return;
        }
        if self.disconnector.is_some() {
            // First, because otherwise the RPC system would tell the peer that it was asked to end.
            let reason = "the connection failed by a panic".into();
            self.state.borrow_mut().give_up(Error::disconnected(reason));
            return self.end_rpc();
        }
        // The RPC system can't even tell its callers.
        let rpc = self.rpc.take();
        // A destructor of user code may panic again; the connection ends in any case.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(rpc)));
    }

    /// Tells the RPC system to fail all calls on their way. Does nothing the second time.
    fn end_rpc(&mut self) {
        let Some(mut disconnector) = self.disconnector.take() else { return };
        let mut nobody = Context::from_waker(Waker::noop());
        // All of it happens in the first poll. A panic of user code in there changes nothing.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            drop(Pin::new(&mut disconnector).poll(&mut nobody));
        }));
    }

    /// Polls the RPC system until it has told its callers, which it does in tasks that run only
    /// then. Else a caller that holds a call's pipeline would never learn that the call has ended.
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

    /// Fails all calls on their way and drops everything but the stream, once nothing more will be
    /// sent: answers that still come would only take memory until the last bytes are written.
    fn let_go(&mut self) {
        if std::mem::replace(&mut self.has_let_go, true) {
            return;
        }
        self.end_rpc();
        self.run_out();
        let held = self.state.borrow_mut().forget();
        // Dropping this may call back into this file, and may panic as any user code can.
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

    /// Waits for a limited time until the peer has read the reason and closed its side.
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

    /// Ends the last write after its time, so that a peer that doesn't read can't keep a connection
    /// that is ending.
    fn poll_last_write(&mut self, cx: &mut Context) -> Poll<()> {
        let Some(reason) = self.state.borrow().closing().cloned() else { return Poll::Pending };
        self.let_go();
        let (limit, written) = {
            let state = self.state.borrow();
            let secs = if state.owes_reason() { LAST_WRITE_SECS } else { PROGRESS_SECS };
            // A peer that was hurried and didn't read has had its time.
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
    /// The runtime may end before the connection; callers that wait for an answer are told even
    /// then.
    fn drop(&mut self) {
        let ended = || Error::disconnected("the task of the connection ended".into());
        let reason = self.over.take().unwrap_or_else(ended);
        self.end(reason);
    }
}

/// Notes that something became ready during a poll.
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
