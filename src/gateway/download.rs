//! Bodies of responses, as hyper takes them.
//!
//! Invariant: a streamed body ends without an error only where the object ended it, after as many
//! bytes as it announced.

use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, SizeHint};

use crate::http::Reader;

/// The body of one response.
pub(super) enum Download {
    Whole(Bytes),
    Streamed(Reader),
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
            Self::Streamed(reader) => reader.poll_next(cx).map(|next| match next {
                Ok(part) => part.map(|part| Ok(Frame::data(Bytes::from_owner(part)))),
                Err(cut) => Some(Err(cut.error("response"))),
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Streamed(reader) => reader.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Streamed(reader) => reader.size().map(SizeHint::with_exact).unwrap_or_default(),
        }
    }
}
