//! A stream whose peer has to take what is written at a pace.
//!
//! Nothing is measured while the peer keeps up: the clock starts when a write has to wait, and
//! stops when everything is written.
//!
//! HTTP/1 doesn't read while it answers. So this looks then whether the peer is gone, and takes
//! nothing: a broken connection ends at once, and a peer that closed its sending side still gets
//! its answer, as long as that moves.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use super::limits::Pace;

pub(super) struct Paced {
    stream: TcpStream,
    /// Shared by all, as a connection may be idle for most of its time.
    pace: Arc<Pace>,
    behind: Option<Box<Behind>>,
    /// The peer says no more. If nothing is written until then, it is taken for gone.
    ended: Option<Pin<Box<Sleep>>>,
}

/// The peer as far as it shows without reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    There,
    /// It closed its side, and may still listen.
    SaysNoMore,
    /// The connection is broken.
    Gone,
}

/// The peer lets writes wait.
struct Behind {
    since: Instant,
    written: usize,
    /// The time of the last bytes that were taken.
    moved: Instant,
    late: Pin<Box<Sleep>>,
}

impl Paced {
    pub(super) fn new(stream: TcpStream, pace: Arc<Pace>) -> Self {
        Self { stream, pace, behind: None, ended: None }
    }

    /// Tells whether the peer is there, though bytes of it may lie unread. Costs no system call.
    pub(super) fn presence(&self) -> Presence {
        let all = Interest::READABLE | Interest::WRITABLE | Interest::ERROR;
        match self.stream.ready(all).now_or_never() {
            Some(Ok(ready)) if ready.is_error() || ready.is_write_closed() => Presence::Gone,
            Some(Ok(ready)) if ready.is_read_closed() => Presence::SaysNoMore,
            Some(Err(_)) => Presence::Gone,
            Some(Ok(_)) | None => Presence::There,
        }
    }

    /// The first bytes that are here; they stay for the next reader.
    pub(super) async fn peek(&self, to: &mut [u8]) -> io::Result<usize> {
        self.stream.peek(to).await
    }

    /// Sends a few last bytes, without waiting for them.
    pub(super) fn say(&self, words: &[u8]) {
        // A client that takes no bytes is not told.
        let _ = self.stream.try_write(words);
    }

    /// # Errors
    /// When the connection is broken, or nothing has moved for long since the peer closed its side.
    fn check_peer(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        // Nearly always nothing has come since the last read, which this knows without asking.
        let Poll::Ready(ready) = self.stream.poll_read_ready(cx) else { return Ok(()) };
        ready?;
        let mut byte = [0];
        let Poll::Ready(peeked) = self.stream.poll_peek(cx, &mut ReadBuf::new(&mut byte)) else {
            return Ok(());
        };
        if peeked? > 0 {
            return Ok(());
        }
        let until = || Box::pin(sleep_until(Instant::now() + self.pace.limits.transfer));
        match self.ended.get_or_insert_with(until).as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }

    /// The outcome of a write that gave `polled`.
    fn paced(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = polled {
            self.ended = None;
            if let (Some(behind), Ok(bytes)) = (&mut self.behind, &written) {
                behind.written += bytes;
                behind.moved = Instant::now();
            }
            return Poll::Ready(written);
        }
        let behind = self.behind.get_or_insert_with(|| {
            let since = Instant::now();
            Box::new(Behind { since, written: 0, moved: since, late: Box::pin(sleep_until(since)) })
        });
        // A download may take as long as it likes, at the pace and without a long pause.
        let paced = behind.since + self.pace.limits.stream_time_for(behind.written);
        behind.late.as_mut().reset(paced.min(behind.moved + self.pace.limits.transfer));
        match behind.late.as_mut().poll(cx) {
            Poll::Ready(()) => {
                self.pace.metrics.http_slow_total.add(1);
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Paced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, to)
    }
}

impl AsyncWrite for Paced {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.paced(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.paced(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.behind = None;
        self.check_peer(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
