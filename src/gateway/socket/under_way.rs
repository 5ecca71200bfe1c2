//! The message of a client that has begun and not ended: its memory, and its time.
//!
//! A message may come in many frames, with pongs between them that keep the socket alive. So its
//! bytes count from its first frame on, as those of bodies do, and it has to come at their pace.
//! The frames are read by the library; this only follows their heads in the stream of bytes. It
//! also counts the pongs with which the library answers pings, as long as the client doesn't read.
//!
//! Invariants:
//! - A message that comes whole with one read costs no count.
//! - Each message has a time of its own, though reads end anywhere.
//! - The bytes that a head announces count from then on: the library takes memory for them.
//! - The pongs that wait to be written have a bound.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use hyper::body::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::gateway::limits::Taken;

/// The bytes of pongs that may wait for a client that doesn't read, their heads included.
const PONGS_BYTES_MAX: usize = 64 << 10;
/// The head of a pong of the server's.
const PONG_HEAD_BYTES: usize = 2;

/// See the head of the file.
pub(super) struct UnderWay {
    taken: Rc<Taken>,
    frames: RefCell<Frames>,
    /// The bytes that are counted for it.
    counted: Cell<usize>,
    /// The time from which it is measured, and the bytes that have come since.
    since: Cell<Option<(Instant, usize)>>,
    begun: Notify,
    /// The time at which any bytes came.
    heard: Cell<Instant>,
    is_refused: Cell<bool>,
    /// The bytes of the pongs that the client is owed, less all that was written since.
    pongs: Cell<usize>,
}

impl UnderWay {
    pub(super) fn new(taken: &Rc<Taken>) -> Rc<Self> {
        Rc::new(Self {
            taken: taken.clone(),
            frames: RefCell::default(),
            counted: Cell::default(),
            since: Cell::default(),
            begun: Notify::new(),
            heard: Cell::new(Instant::now()),
            is_refused: Cell::default(),
            pongs: Cell::default(),
        })
    }

    /// The limits and the memory of the gateway whose socket this is.
    pub(super) fn taken(&self) -> &Rc<Taken> {
        &self.taken
    }

    /// There was no room for it.
    pub(super) fn is_refused(&self) -> bool {
        self.is_refused.get()
    }

    /// The time at which the client was heard last: within a long message it can't answer a ping.
    pub(super) fn heard(&self) -> Instant {
        self.heard.get()
    }

    /// The client isn't read, so that its silence means nothing.
    pub(super) fn excuse(&self) {
        self.heard.set(Instant::now());
    }

    /// A ping with such a payload came. False if too many wait for their pongs.
    pub(super) fn owes_pong(&self, payload: usize) -> bool {
        self.pongs.set(self.pongs.get() + payload + PONG_HEAD_BYTES);
        self.pongs.get() <= PONGS_BYTES_MAX
    }

    /// The messages that came to their end.
    #[cfg(fuzzing)]
    pub(super) fn ended(&self) -> u64 {
        self.frames.borrow().messages
    }

    fn wrote(&self, bytes: usize) {
        self.pongs.set(self.pongs.get().saturating_sub(bytes));
    }

    /// Its time begins again: it wasn't read for a while, which is no fault of the client.
    pub(super) fn restart(&self) {
        if self.since.get().is_some() {
            self.since.set(Some((Instant::now(), 0)));
        }
    }

    /// Resolves when a message has taken too long. While `waits` is true nothing is read.
    pub(super) async fn late(&self, waits: &Cell<bool>) {
        loop {
            if waits.get() {
                self.restart();
            }
            let Some((since, bytes)) = self.since.get() else {
                self.begun.notified().await;
                continue;
            };
            let due = since + self.taken.limits.time_for(bytes);
            if due <= Instant::now() {
                return;
            }
            // Few sockets have a message under way.
            Box::pin(sleep_until(due)).await;
        }
    }

    /// These bytes came. False if there is no room for the message that they belong to.
    fn came(&self, bytes: &[u8]) -> bool {
        let now = Instant::now();
        self.heard.set(now);
        let mut frames = self.frames.borrow_mut();
        let (ended, before) = (frames.messages, frames.paid);
        frames.follow(bytes);
        if !frames.is_under_way() {
            self.since.set(None);
            self.count(0);
            return true;
        }
        if let Some((since, paid)) = self.since.get().filter(|_| frames.messages == ended) {
            // Heads alone bring a message no further.
            self.since.set(Some((since, paid + (frames.paid - before) as usize)));
        } else {
            self.since.set(Some((now, 0)));
            self.begun.notify_one();
        }
        // A message that is larger is refused by the library.
        let length = frames.message.min(self.taken.limits.socket_message_bytes as u64) as usize;
        let more = length.saturating_sub(self.counted.get());
        if more > 0 && !self.taken.room().lets_message_in(more, length) {
            self.is_refused.set(true);
            return false;
        }
        self.count(length);
        true
    }

    fn count(&self, now: usize) {
        let before = self.counted.replace(now);
        if now > before {
            self.taken.room().count(now - before);
        } else if now < before {
            self.taken.room().release(before - now);
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.count(0);
    }
}

/// The place in a stream of frames (RFC 6455, section 5.2).
#[derive(Default)]
struct Frames {
    /// The beginning of the present frame's head.
    head: [u8; 2],
    /// The bytes of its head that have come.
    came: usize,
    length: u64,
    /// The bytes of its payload that are to come, once its head is there.
    left: u64,
    /// The bytes of the message under way, with those of the present frame that are announced.
    message: u64,
    /// The bytes of its payload that have come.
    paid: u64,
    /// Frames of a message have come, and not the last of them.
    is_open: bool,
    /// Messages that have ended.
    messages: u64,
}

impl Frames {
    fn is_under_way(&self) -> bool {
        self.is_open || self.came > 0
    }

    fn is_control(&self) -> bool {
        self.head[0] & 0x08 != 0
    }

    /// The length of the head, once its second byte is there.
    fn head_bytes(&self) -> usize {
        const MASK: usize = 4;
        2 + self.length_bytes() + if self.head[1] & 0x80 == 0 { 0 } else { MASK }
    }

    /// The bytes of a length that has no room in the second byte.
    fn length_bytes(&self) -> usize {
        match self.head[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        }
    }

    fn follow(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.left > 0 {
                let here = self.left.min(bytes.len() as u64);
                self.left -= here;
                if !self.is_control() {
                    self.paid += here;
                }
                bytes = &bytes[here as usize..];
            } else {
                self.take_of_head(*first);
                bytes = rest;
                if self.came < 2 || self.came < self.head_bytes() {
                    continue;
                }
                self.begin_payload();
            }
            if self.left == 0 {
                self.end_frame();
            }
        }
    }

    fn take_of_head(&mut self, byte: u8) {
        match self.came {
            at @ 0..2 => {
                self.head[at] = byte;
                self.length = u64::from(byte & 0x7f);
            }
            at if at < 2 + self.length_bytes() => {
                let before = if at == 2 { 0 } else { self.length };
                self.length = before << 8 | u64::from(byte);
            }
            _ => {}
        }
        self.came += 1;
    }

    fn begin_payload(&mut self) {
        self.left = self.length;
        if !self.is_control() {
            self.message = self.message.saturating_add(self.length);
            self.is_open = true;
        }
    }

    fn end_frame(&mut self) {
        let is_last = self.head[0] & 0x80 != 0;
        if is_last && !self.is_control() {
            self.is_open = false;
            self.messages += 1;
            (self.message, self.paid) = (0, 0);
        }
        self.came = 0;
    }
}

/// A stream of frames that is followed.
pub(super) struct Followed<S> {
    pub(super) stream: S,
    /// The first bytes, which came before it was one.
    pub(super) early: Option<Box<Bytes>>,
    pub(super) under_way: Rc<UnderWay>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Followed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = to.filled().len();
        match self.early.take() {
            None => ready!(Pin::new(&mut self.stream).poll_read(cx, to))?,
            Some(mut early) => {
                to.put_slice(&early.split_to(early.len().min(to.remaining())));
                self.early = Some(early).filter(|early| !early.is_empty());
            }
        }
        if self.under_way.came(&to.filled()[before..]) {
            Poll::Ready(Ok(()))
        } else {
            Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()))
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Followed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.under_way.wrote(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The head of a masked frame, and so many bytes of payload.
    fn frame(first: u8, length: usize) -> Vec<u8> {
        let mut frame = vec![first];
        match length {
            0..126 => frame.push(0x80 | length as u8),
            126..65_536 => {
                frame.push(0xfe);
                frame.extend((length as u16).to_be_bytes());
            }
            _ => {
                frame.push(0xff);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend([0xaa; 4]);
        frame.extend(vec![0xff; length]);
        frame
    }

    #[test]
    fn frames_are_followed_wherever_they_are_cut() {
        for (text, ping) in [(0, 0), (5, 125), (125, 3), (126, 0), (65_535, 1), (70_000, 125)] {
            let message = [frame(0x01, text), frame(0x89, ping), frame(0x80, text)].concat();
            for step in [1, 2, 3, 7, 1000, message.len()] {
                let mut frames = Frames::default();
                let mut at = 0;
                for part in message.chunks(step) {
                    assert!(at == 0 || frames.is_under_way(), "{text}, {step}, at {at}");
                    frames.follow(part);
                    at += part.len();
                    let most = 2 * text as u64;
                    assert!(frames.message <= most);
                }
                assert!(!frames.is_under_way() && frames.message == 0, "{text}, {step}");
            }
        }
    }

    #[test]
    fn a_message_counts_as_soon_as_it_is_announced() {
        let mut frames = Frames::default();
        frames.follow(&frame(0x02, 1000)[..14]);
        assert_eq!(frames.message, 1000);
        frames.follow(&[0; 994]);
        assert_eq!((frames.message, frames.is_under_way()), (1000, true));
        frames.follow(&frame(0x89, 100));
        assert_eq!(frames.message, 1000, "a ping between is no part of it");
        frames.follow(&frame(0x00, 500));
        frames.follow(&frame(0x00, 0).repeat(10));
        assert_eq!((frames.message, frames.paid), (1500, 1500), "nor do heads bring it further");
        frames.follow(&frame(0x80, 0));
        assert!(!frames.is_under_way());
    }
}
