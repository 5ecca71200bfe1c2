//! Bodies of responses, as hyper takes them.
//!
//! Invariant: a streamed body ends without an error only where the object ended it, after as many
//! bytes as it announced. Invariant: it is cut off when the right of its request ends.

use std::pin::Pin;
use std::task::{Context, Poll};

use capnp::capability::Promise;
use futures::FutureExt;
use hyper::body::{Body, Bytes, Frame, SizeHint};

use crate::error::is_of_ended_right;
use crate::http::Reader;

/// The body of one response.
pub(super) enum Download {
    Whole(Bytes),
    Streamed(StreamedBody),
}

/// One that goes on.
pub(super) struct StreamedBody {
    reader: Reader,
    /// None when it has ended.
    call: Option<Promise<(), capnp::Error>>,
}

impl StreamedBody {
    pub(super) fn new(reader: Reader, call: Promise<(), capnp::Error>) -> Self {
        Self { reader, call: Some(call) }
    }

    /// The error of a call whose right has ended; other calls end the body themselves.
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Option<capnp::Error> {
        let Poll::Ready(ended) = self.call.as_mut()?.poll_unpin(cx) else { return None };
        self.call = None;
        ended.err().filter(is_of_ended_right)
    }
}

impl From<Bytes> for Download {
    fn from(bytes: Bytes) -> Self {
        Self::Whole(bytes)
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = capnp::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, capnp::Error>>> {
        match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Streamed(streamed) => match streamed.poll_cut(cx) {
                Some(error) => Poll::Ready(Some(Err(error))),
                None => streamed.reader.poll_next(cx).map(|next| match next {
                    Ok(part) => part.map(|part| Ok(Frame::data(Bytes::from_owner(part)))),
                    Err(cut) => Some(Err(cut.error("response"))),
                }),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Streamed(streamed) => streamed.reader.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Streamed(streamed) => {
                streamed.reader.size().map(SizeHint::with_exact).unwrap_or_default()
            }
        }
    }
}
