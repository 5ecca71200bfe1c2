//! A body on its way by a `ByteStream`: from an object to the gateway, or from a client to an
//! object.
//!
//! Invariants:
//! - Bytes are read in the order in which they were written, and once; the end is read only if it
//!   was written, after as many bytes as were announced.
//! - If a size was announced, the last bytes are read only when the end is there: a reader that
//!   counts bytes never takes a body for whole that isn't.
//! - A call that writes is answered when the reader has read most of what waits. So a writer that
//!   waits for the answers sends no faster than the reader reads, and little waits here.

use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use capnp::capability::{FromClientHook, Request};
use capnp::traits::HasTypeId;
use capnp::{ErrorKind, any_pointer};
use tokio::sync::Notify;

use super::room::Held;
use crate::error::{Result, disconnected, failed, overloaded, unimplemented};
use crate::limits::{HTTP_PART_BYTES, HTTP_WINDOW_BYTES};
use crate::schema::http_capnp::{byte_stream, watched_stream};

/// Why a body has no end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Its writer has gone, or gave it up.
    Left,
    /// It has more bytes than were announced.
    TooLong,
    /// It ended before as many were here as were announced.
    TooShort,
    /// More was written than may wait for a reader.
    TooLarge,
    NoRoom,
    /// Nobody reads it any more.
    Unread,
}

impl Cut {
    /// The error of reading or writing the body of a request or response.
    pub(crate) fn error(self, of: &str) -> capnp::Error {
        match self {
            Self::Left => disconnected(format!("the body of the {of} broke off")),
            Self::TooLong => failed(format!("the body is longer than the {of} announced")),
            Self::TooShort => failed(format!("the body is shorter than the {of} announced")),
            Self::TooLarge => {
                failed(format!("too much of the body of the {of} was written at once"))
            }
            Self::NoRoom => overloaded("there is no room for another body: try again later"),
            Self::Unread => disconnected(format!("nobody reads the {of} any more")),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Ended,
    Cut(Cut),
}

/// A body of which part may be here.
pub(crate) struct Flow {
    /// The name of the body's owner, for its errors.
    of: &'static str,
    held: RefCell<Held>,
    /// Announced bytes that have yet to come.
    left: Cell<Option<u64>>,
    /// Bytes that may wait here.
    most: Cell<usize>,
    /// The reader gets it only when it is whole.
    is_collected: Cell<bool>,
    state: Cell<State>,
    reader: Cell<Option<Waker>>,
    drained: Notify,
    has_writer: Cell<bool>,
    writer_left: Notify,
}

impl Flow {
    /// The two ends of a body with a place for its bytes, of which so many may wait.
    pub(crate) fn open(
        of: &'static str,
        held: Held,
        size: Option<u64>,
        most: usize,
    ) -> (Writer, Reader) {
        let flow = Rc::new(Self {
            of,
            held: RefCell::new(held),
            left: Cell::new(size),
            most: Cell::new(most),
            is_collected: Cell::new(false),
            state: Cell::new(State::Open),
            reader: Cell::default(),
            drained: Notify::new(),
            has_writer: Cell::new(true),
            writer_left: Notify::new(),
        });
        (Writer(flow.clone()), Reader(flow))
    }

    fn cut(&self, why: Cut) -> capnp::Error {
        self.finish(State::Cut(why));
        why.error(self.of)
    }

    fn finish(&self, state: State) {
        self.state.set(state);
        self.drained.notify_waiters();
        self.wake();
    }

    fn wake(&self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// # Errors
    /// When nothing may be written any more, or these bytes may not.
    fn check_open(&self) -> Result<()> {
        match self.state.get() {
            State::Open => Ok(()),
            State::Ended => Err(failed("the body has ended")),
            State::Cut(why) => Err(why.error(self.of)),
        }
    }

    fn add(&self, bytes: &[u8]) -> Result<()> {
        self.check_open()?;
        if let Some(left) = self.left.get() {
            let Some(left) = left.checked_sub(bytes.len() as u64) else {
                return Err(self.cut(Cut::TooLong));
            };
            self.left.set(Some(left));
        }
        let mut held = self.held.borrow_mut();
        let why = if held.bytes().len() + bytes.len() > self.most.get() {
            Cut::TooLarge
        } else if !held.extend(bytes) {
            Cut::NoRoom
        } else {
            drop(held);
            self.wake();
            return Ok(());
        };
        drop(held);
        Err(self.cut(why))
    }

    /// Tells whether all announced bytes are here, and the end isn't.
    fn lacks_end(&self) -> bool {
        self.left.get() == Some(0) && self.state.get() != State::Ended
    }

    /// Tells whether one part more may come, or the end.
    fn is_drained(&self) -> bool {
        if self.lacks_end() {
            return true;
        }
        let held = self.held.borrow();
        let waits = held.bytes().len();
        let keeps_up = waits <= HTTP_WINDOW_BYTES - HTTP_PART_BYTES;
        self.is_collected.get() || waits == 0 || keeps_up && held.leaves_room()
    }

    /// Returns at once while the reader keeps up, and there is room.
    async fn drained(&self) -> Result<()> {
        loop {
            let drained = self.drained.notified();
            match self.state.get() {
                State::Cut(why) => return Err(why.error(self.of)),
                State::Ended => return Ok(()),
                State::Open if self.is_drained() => return Ok(()),
                State::Open => {}
            }
            drained.await;
        }
    }

    /// Returns when no more is read: the body has ended, or was cut.
    async fn unread(&self) {
        loop {
            let finished = self.drained.notified();
            if self.state.get() != State::Open {
                return;
            }
            finished.await;
        }
    }

    fn end(&self) -> Result<()> {
        match self.state.get() {
            // The second time it changes nothing.
            State::Ended => Ok(()),
            State::Cut(why) => Err(why.error(self.of)),
            State::Open if self.left.get().unwrap_or(0) > 0 => Err(self.cut(Cut::TooShort)),
            State::Open => {
                self.finish(State::Ended);
                Ok(())
            }
        }
    }
}

/// Writes the next bytes, and returns when more may follow.
///
/// The request that is made for a streaming method would return before, and without the error, if
/// the reader is on another host.
pub(crate) async fn write(to: &byte_stream::Client, bytes: &[u8]) -> Result<()> {
    const WRITE: u16 = 0;
    let mut write: Request<byte_stream::write_params::Owned, any_pointer::Owned> =
        to.client.new_call(byte_stream::Client::TYPE_ID, WRITE, None);
    write.get().set_bytes(bytes);
    write.send().promise.await.map(drop)
}

/// Resolves when nobody reads a body any more. It never does if its receiver can't say so.
pub(super) fn unread(of: &byte_stream::Client) -> impl Future<Output = ()> + use<> {
    let stream: watched_stream::Client = FromClientHook::new(of.as_client_hook().add_ref());
    let told = stream.unread_request().send().promise;
    async move {
        if told.await.is_err_and(|error| error.kind == ErrorKind::Unimplemented) {
            pending::<()>().await;
        }
    }
}

/// Keeps a call until it is answered: one that nobody waits for any more may be dropped by its
/// receiver, as the standard allows.
pub(crate) fn keep(call: impl Future + 'static) {
    drop(tokio::task::spawn_local(async move { drop(call.await) }));
}

/// The end of a body that is written. Dropped before the end, it cuts the body off.
pub(crate) struct Writer(Rc<Flow>);

impl Drop for Writer {
    fn drop(&mut self) {
        if self.0.state.get() == State::Open {
            self.0.finish(State::Cut(Cut::Left));
        }
        self.0.has_writer.set(false);
        self.0.writer_left.notify_waiters();
    }
}

impl Writer {
    /// There is nothing to write.
    pub(super) fn end_at_once(&self) -> Result<()> {
        self.0.end()
    }
}

impl byte_stream::Server for Writer {
    async fn write(self: Rc<Self>, params: byte_stream::WriteParams) -> Result<()> {
        self.0.add(params.get()?.get_bytes()?)?;
        drop(params);
        self.0.drained().await
    }

    async fn end(
        self: Rc<Self>,
        _: byte_stream::EndParams,
        _: byte_stream::EndResults,
    ) -> Result<()> {
        self.0.end()
    }

    async fn get_substream(
        self: Rc<Self>,
        _: byte_stream::GetSubstreamParams,
        _: byte_stream::GetSubstreamResults,
    ) -> Result<()> {
        Err(unimplemented("this stream can't be divided"))
    }
}

impl watched_stream::Server for Writer {
    fn unread(
        self: Rc<Self>,
        _: watched_stream::UnreadParams,
        _: watched_stream::UnreadResults,
    ) -> impl Future<Output = Result<()>> + 'static {
        // It must not hold the writer, whose drop ends the body.
        let flow = self.0.clone();
        async move {
            flow.unread().await;
            Ok(())
        }
    }
}

/// The state of a body that may still be on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Open,
    /// All that there will be is here.
    Whole,
    Cut(Cut),
}

/// The end of a body that is read. When it is dropped, the writer is told so.
pub(crate) struct Reader(Rc<Flow>);

impl Reader {
    /// All bytes that are here, as soon as there are any; none at the end.
    pub(crate) async fn next(&self) -> std::result::Result<Option<Held>, Cut> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`Reader::next`].
    pub(crate) fn poll_next(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<std::result::Result<Option<Held>, Cut>> {
        if !self.0.held.borrow().bytes().is_empty() && !self.0.lacks_end() {
            return Poll::Ready(Ok(Some(self.take())));
        }
        match self.0.state.get() {
            State::Open => {
                self.0.reader.set(Some(cx.waker().clone()));
                Poll::Pending
            }
            State::Ended => Poll::Ready(Ok(None)),
            State::Cut(why) => Poll::Ready(Err(why)),
        }
    }

    /// All that is here.
    pub(crate) fn take(&self) -> Held {
        let taken = self.0.held.borrow_mut().take();
        self.0.drained.notify_waiters();
        taken
    }

    /// Returns when nobody holds the other end any more, whether the body ended before or not.
    pub(super) fn writer_left(&self) -> impl Future<Output = ()> + use<> {
        let flow = self.0.clone();
        async move {
            while flow.has_writer.get() {
                flow.writer_left.notified().await;
            }
        }
    }

    /// Returns when no more will come, or more than so many bytes are here.
    pub(crate) async fn holds_more_than(&self, bytes: usize) {
        poll_fn(|cx| {
            let is_more = self.0.held.borrow().bytes().len() > bytes;
            if is_more || self.0.state.get() != State::Open {
                return Poll::Ready(());
            }
            self.0.reader.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    /// Lets as many bytes wait here, without anybody who reads them.
    pub(crate) fn collect(&self, most: usize) {
        self.0.most.set(most);
        self.0.is_collected.set(true);
        self.0.drained.notify_waiters();
    }

    pub(crate) fn progress(&self) -> Progress {
        match self.0.state.get() {
            State::Open => Progress::Open,
            State::Ended => Progress::Whole,
            State::Cut(why) => Progress::Cut(why),
        }
    }

    /// Tells whether nothing is to be read any more, and nothing went wrong.
    pub(crate) fn is_over(&self) -> bool {
        self.0.state.get() == State::Ended && self.0.held.borrow().bytes().is_empty()
    }

    /// The bytes that have yet to be read, if that is known.
    pub(crate) fn size(&self) -> Option<u64> {
        let held = self.0.held.borrow().bytes().len() as u64;
        match self.0.state.get() {
            State::Ended => Some(held),
            _ => self.0.left.get().map(|left| left.saturating_add(held)),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        drop(self.0.held.borrow_mut().take());
        if self.0.state.get() == State::Open {
            self.0.finish(State::Cut(Cut::Unread));
        }
    }
}

#[cfg(test)]
mod tests;
