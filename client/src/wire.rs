//! Messages on a stream of bytes: Cap'n Proto's stream framing, with one read and one write for
//! many messages.
//!
//! Messages to send are copied to one buffer, which the connection's task writes out after each of
//! its polls, so that all messages made in one poll leave in one write. Nothing here looks into a
//! message, and no message is read before its announced size is known to be within the limit. An
//! announced size costs no memory: memory grows with the bytes that arrive.
//!
//! A connection at rest has no buffers: connections on the same thread pass them on to each other,
//! and each keeps only its unread bytes.

mod output;

use self::output::Output;
use crate::limits::{Limit, Rejection};
use capnp::message::{Builder, HeapAllocator, Reader, ReaderOptions, ReaderSegments};
use capnp::serialize::SegmentLengthsBuilder;
use capnp::{Error, Word};
use std::cell::Cell;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The most bytes that one read brings: some hundred small messages.
const INPUT_BYTES: usize = 32 << 10;

/// The bytes that one poll of a connection reads, about. Other connections have their turn between
/// two polls; reading a message of megabytes at once would make all of them wait.
const IN_A_POLL_BYTES: usize = 128 << 10;

/// The bytes that are read and thrown away from a peer that still sends while it is told why it is
/// cut off: enough for an honest peer to get to its next read.
const DRAINED_BYTES_MAX: usize = 1 << 20;

/// The beginning of the alert by which a TLS server answers a message in the clear.
const TLS_ALERT: [u8; 2] = [0x15, 0x03];

/// The most segments of one message; the other implementations of the protocol have the same limit.
const SEGMENTS_MAX: usize = 512;

const WORD: usize = 8;

/// The memory that one entry of `Segments::places` takes.
const SEGMENT_BYTES: usize = size_of::<(usize, usize)>();

thread_local! {
    /// The input buffer of this thread's connections, between two of their polls.
    static SPARE_INPUT: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A message as it came in.
pub(crate) type ReceivedMessage = Reader<Segments>;

/// The bytes that a message takes in memory.
pub(crate) fn cost(message: &ReceivedMessage) -> usize {
    message.size_in_words() * WORD + message.get_segments().len() * SEGMENT_BYTES
}

/// The segments of a message, one after the other.
#[derive(Default)]
pub(crate) struct Segments {
    words: Vec<Word>,
    /// The start and end of each segment, in words.
    places: Vec<(usize, usize)>,
}

impl Segments {
    /// Adds a segment, which must be whole words.
    pub(crate) fn push(&mut self, segment: &[u8]) {
        let begin = self.words.len();
        let end = begin + segment.len() / WORD;
        self.words.resize(end, capnp::word(0, 0, 0, 0, 0, 0, 0, 0));
        Word::words_to_bytes_mut(&mut self.words[begin..]).copy_from_slice(segment);
        self.places.push((begin, end));
    }

    /// Overwrites the bytes at an address within the message. Does nothing at any other address.
    pub(crate) fn patch(&mut self, address: usize, bytes: &[u8]) {
        let Some(at) = address.checked_sub(self.words.as_ptr().addr()) else { return };
        let place = Word::words_to_bytes_mut(&mut self.words).get_mut(at..at + bytes.len());
        if let Some(place) = place {
            place.copy_from_slice(bytes);
        }
    }
}

impl ReaderSegments for Segments {
    fn get_segment(&self, id: u32) -> Option<&[u8]> {
        let &(begin, end) = self.places.get(id as usize)?;
        self.words.get(begin..end).map(Word::words_to_bytes)
    }

    fn len(&self) -> usize {
        self.places.len()
    }
}

/// A message with a known size that hasn't arrived completely.
struct Partial {
    segments: Segments,
    /// Bytes of the whole message, and of the part that has arrived.
    bytes: usize,
    filled: usize,
}

impl Partial {
    fn missing(&self) -> usize {
        self.bytes - self.filled
    }

    /// The memory for the next bytes. It is at least `count` bytes, and grows by at least half of
    /// what has arrived.
    fn room(&mut self, count: usize) -> &mut [u8] {
        let words = &mut self.segments.words;
        if words.len() * WORD < self.filled + count {
            let bytes = (self.filled + count.max(self.filled / 2)).min(self.bytes);
            let length = bytes.div_ceil(WORD);
            words.reserve_exact(length - words.len());
            words.resize(length, capnp::word(0, 0, 0, 0, 0, 0, 0, 0));
        }
        &mut Word::words_to_bytes_mut(words)[self.filled..]
    }
}

/// A stream that carries messages both ways.
pub(crate) struct Wire<S> {
    /// `None` once the connection is closed, so that messages still held by user code don't keep it
    /// open.
    stream: Option<S>,
    options: ReaderOptions,
    /// The largest message that is accepted, in words.
    words_max: usize,
    /// Messages of more words than this are left unread for now; `left` has the bytes of the next
    /// one.
    words_now: usize,
    left: Option<usize>,
    /// Has the length `INPUT_BYTES` while the connection reads, and else only that of its content.
    input: Vec<u8>,
    /// `input[start..end]` was read from the stream and not used yet.
    start: usize,
    end: usize,
    partial: Option<Partial>,
    /// Messages begun, and bytes received, since the connection began.
    begun: u64,
    received: u64,
    /// Bytes that this poll may still read.
    readable: usize,
    output: Output,
    /// Bytes written since the connection began.
    progress: u64,
    /// Bytes thrown away while the connection ends.
    drained: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(crate) fn new(stream: S, bytes_max: usize, options: ReaderOptions) -> Self {
        Self {
            stream: Some(stream),
            options,
            words_max: bytes_max / WORD,
            words_now: usize::MAX,
            left: None,
            input: Vec::new(),
            start: 0,
            end: 0,
            partial: None,
            begun: 0,
            received: 0,
            readable: IN_A_POLL_BYTES,
            output: Output::default(),
            progress: 0,
            drained: 0,
        }
    }

    /// From now on leaves messages larger than this many bytes unread, until it is called again.
    pub(crate) fn leave_larger(&mut self, bytes: usize) {
        self.words_now = bytes / WORD;
        self.left = None;
    }

    /// The size of the next message in bytes, if it is left unread.
    pub(crate) fn left(&self) -> Option<usize> {
        self.left
    }

    /// The next message; `None` when the peer ended the stream between two messages.
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context,
    ) -> Poll<Result<Option<ReceivedMessage>, Rejection>> {
        loop {
            if self.partial.is_none() {
                self.partial = self.begin_message()?;
            }
            if self.left.is_some() {
                return Poll::Pending;
            }
            if let Some(message) = self.finish_message() {
                return Poll::Ready(Ok(Some(Reader::new(message, self.options))));
            }
            if self.readable == 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if ready!(self.poll_fill(cx))? == 0 {
                let clean = self.partial.is_none() && self.start == self.end;
                let cut = || Error::disconnected("the stream ended within a message".into());
                return Poll::Ready(if clean { Ok(None) } else { Err(cut().into()) });
            }
        }
    }

    /// Gives the buffer to the next connection. Called at the end of each poll, when this one has
    /// read.
    pub(crate) fn rest(&mut self) {
        self.readable = IN_A_POLL_BYTES;
        if self.input.len() < INPUT_BYTES {
            return;
        }
        let rest = self.input[self.start..self.end].to_vec();
        (self.start, self.end) = (0, rest.len());
        SPARE_INPUT.set(std::mem::replace(&mut self.input, rest));
    }

    /// Appends a message to what will be written.
    pub(crate) fn push(&mut self, message: &Builder<HeapAllocator>) {
        self.output.push(message);
    }

    /// Overwrites bytes of the message that was pushed last, at this place in it.
    pub(crate) fn patch_last(
        &mut self,
        message: &Builder<HeapAllocator>,
        place: *const u8,
        bytes: &[u8],
    ) {
        self.output.patch_last(message, place, bytes);
    }

    /// Bytes that are still to be written.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.output.pending()
    }

    /// Bytes written since the connection began.
    pub(crate) fn progress(&self) -> u64 {
        self.progress
    }

    /// A number that changes at least once every `step` bytes received while the last message is
    /// incomplete; `None` when it is complete.
    pub(crate) fn unfinished(&self, step: u64) -> Option<u64> {
        let is_unfinished = self.partial.is_some() || self.start < self.end;
        (is_unfinished && self.left.is_none()).then(|| self.begun + self.received / step)
    }

    /// Bytes of memory that the connection's buffers take.
    pub(crate) fn held(&self) -> usize {
        let partial =
            self.partial.as_ref().map_or(0, |partial| partial.segments.words.len() * WORD);
        partial + (self.end - self.start) + self.output.held()
    }

    /// Writes what was pushed, and flushes the stream.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context) -> Poll<std::io::Result<()>> {
        if self.output.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while self.output.pending() > 0 {
            match ready!(opened(&mut self.stream)?.poll_write(cx, self.output.next()))? {
                0 => return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into())),
                count => {
                    self.output.advance(count);
                    self.progress += count as u64;
                }
            }
        }
        ready!(opened(&mut self.stream)?.poll_flush(cx))?;
        self.output.rest();
        Poll::Ready(Ok(()))
    }

    /// Forgets the messages that were pushed and not written.
    pub(crate) fn discard(&mut self) {
        self.output = Output::default();
    }

    /// Tells the peer that nothing more will come.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context) -> Poll<std::io::Result<()>> {
        opened(&mut self.stream)?.poll_shutdown(cx)
    }

    /// Throws away what the peer still sends, until it closes its side. Closing a stream with
    /// unread bytes resets it, and the bytes written last may be lost on their way. Past a bound
    /// nothing more is read, so that the peer can't keep sending; the caller limits the wait.
    pub(crate) fn poll_drain(&mut self, cx: &mut Context) -> Poll<()> {
        self.partial = None;
        (self.start, self.end) = (0, 0);
        make_room(&mut self.input, 0..0);
        while self.drained < DRAINED_BYTES_MAX {
            let Ok(stream) = opened(&mut self.stream) else { return Poll::Ready(()) };
            match ready!(poll_read_once(stream, cx, &mut self.input)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(count) => self.drained += count,
            }
        }
        Poll::Pending
    }

    /// Closes the stream.
    pub(crate) fn close(&mut self) {
        self.stream = None;
        self.discard();
    }

    /// Takes a table of segments from the input, once the whole table has arrived.
    fn begin_message(&mut self) -> Result<Option<Partial>, Rejection> {
        let input = &self.input[self.start..self.end];
        let Some(count) = u32_at(input, 0) else { return Ok(None) };
        let count = count as usize + 1;
        if count > SEGMENTS_MAX {
            if self.begun == 0 && input.starts_with(&TLS_ALERT) {
                let reason = "the listener there speaks TLS alone: take the capstead+tls reference \
                              that its server gives out";
                return Err(Error::disconnected(reason.into()).into());
            }
            let reason = format!("a message of {count} segments is refused");
            return Rejection::over(Limit::MessageBytes, reason);
        }
        let table = (count / 2 + 1) * WORD;
        if input.len() < table {
            return Ok(None);
        }
        let mut lengths = SegmentLengthsBuilder::with_capacity(count);
        for index in 1..=count {
            lengths.try_push_segment(u32_at(input, index).unwrap_or_default() as usize)?;
        }
        let words = lengths.total_words();
        if words > self.words_max {
            let (bytes, max) = (words * WORD, self.words_max * WORD);
            let reason = format!("a message of {bytes} bytes is refused; the limit is {max}");
            return Rejection::over(Limit::MessageBytes, reason);
        }
        self.left = (words > self.words_now).then_some(words * WORD);
        if self.left.is_some() {
            return Ok(None);
        }
        self.start += table;
        self.begun += 1;
        let segments = Segments { words: Vec::new(), places: lengths.to_segment_indices() };
        Ok(Some(Partial { segments, bytes: words * WORD, filled: 0 }))
    }

    /// Moves input to the partial message; returns the message when it is whole.
    fn finish_message(&mut self) -> Option<Segments> {
        let partial = self.partial.as_mut()?;
        let count = (self.end - self.start).min(partial.missing());
        partial.room(count)[..count].copy_from_slice(&self.input[self.start..self.start + count]);
        self.start += count;
        partial.filled += count;
        if partial.missing() > 0 { None } else { self.partial.take().map(|whole| whole.segments) }
    }

    /// Reads once: directly into the message if much of it is missing, and else into the input
    /// buffer.
    fn poll_fill(&mut self, cx: &mut Context) -> Poll<capnp::Result<usize>> {
        let stream = opened(&mut self.stream).map_err(|error| lost(&error))?;
        if let Some(partial) = &mut self.partial
            && partial.missing() >= INPUT_BYTES
        {
            let room = partial.room(INPUT_BYTES);
            let most = room.len().min(self.readable);
            let count = ready!(poll_read_once(stream, cx, &mut room[..most]))?;
            partial.filled += count;
            self.count_received(count);
            return Poll::Ready(Ok(count));
        }
        make_room(&mut self.input, self.start..self.end);
        self.end -= self.start;
        self.start = 0;
        let count = ready!(poll_read_once(stream, cx, &mut self.input[self.end..]))?;
        self.end += count;
        self.count_received(count);
        Poll::Ready(Ok(count))
    }

    fn count_received(&mut self, count: usize) {
        self.received += count as u64;
        self.readable = self.readable.saturating_sub(count);
    }
}

fn opened<S: Unpin>(stream: &mut Option<S>) -> std::io::Result<Pin<&mut S>> {
    stream.as_mut().map(Pin::new).ok_or_else(|| std::io::ErrorKind::NotConnected.into())
}

/// Gives `input` its full length for reading, and moves the bytes at `rest` to its beginning.
fn make_room(input: &mut Vec<u8>, rest: Range<usize>) {
    if input.len() >= INPUT_BYTES {
        return input.copy_within(rest, 0);
    }
    let mut buffer = SPARE_INPUT.take();
    if buffer.is_empty() {
        buffer = vec![0; INPUT_BYTES];
    }
    buffer[..rest.len()].copy_from_slice(&input[rest]);
    *input = buffer;
}

fn poll_read_once<S: AsyncRead>(
    stream: Pin<&mut S>,
    cx: &mut Context,
    room: &mut [u8],
) -> Poll<capnp::Result<usize>> {
    let mut buffer = ReadBuf::new(room);
    let read = ready!(stream.poll_read(cx, &mut buffer));
    Poll::Ready(read.map(|()| buffer.filled().len()).map_err(|error| lost(&error)))
}

/// The error that callers get for their calls on the way when the stream breaks.
pub(crate) fn lost(error: &std::io::Error) -> Error {
    Error::disconnected(format!("the connection was lost: {error}"))
}

/// The number at position `index` of a table of segments.
fn u32_at(table: &[u8], index: usize) -> Option<u32> {
    table.get(index * 4..)?.first_chunk().copied().map(u32::from_le_bytes)
}

#[cfg(test)]
pub(crate) mod tests;
