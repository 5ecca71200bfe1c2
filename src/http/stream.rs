//! A body that comes in parts, by a `ByteStream`: what the gateway gets of an object, and an object
//! of whoever asks it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::room::Held;
use crate::error::{Result, failed, unimplemented};
use crate::schema::http_capnp::byte_stream;

/// Why a body is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It has more bytes than were announced.
    TooLong,
    /// It ended before as many were here as were announced.
    TooShort,
    /// It has more bytes than any body may have.
    TooLarge,
    NoRoom,
}

/// The parts that are here.
pub(crate) struct Parts {
    /// Gone once it is whole.
    held: RefCell<Option<Held>>,
    most: usize,
    pub(crate) expected: Cell<Option<usize>>,
}

impl Parts {
    /// None yet, of a body of at most so many bytes.
    pub(crate) fn new(held: Held, most: usize) -> Self {
        Self { held: RefCell::new(Some(held)), most, expected: Cell::default() }
    }

    /// The body, if it is whole now. The second time there is none.
    fn end(&self) -> std::result::Result<Option<Held>, Refused> {
        let Some(held) = self.held.take() else { return Ok(None) };
        match self.expected.get() {
            Some(expected) if expected != held.bytes().len() => Err(Refused::TooShort),
            _ => Ok(Some(held)),
        }
    }

    fn add(&self, bytes: &[u8]) -> Result<std::result::Result<(), Refused>> {
        let mut held = self.held.borrow_mut();
        let Some(held) = &mut *held else { return Err(failed("the body has ended")) };
        let length = held.bytes().len() + bytes.len();
        Ok(if length > self.expected.get().unwrap_or(usize::MAX) {
            Err(Refused::TooLong)
        } else if length > self.most {
            Err(Refused::TooLarge)
        } else if !held.extend(bytes) {
            Err(Refused::NoRoom)
        } else {
            Ok(())
        })
    }
}

/// Whoever a body is for.
pub(crate) trait Taker: 'static {
    fn parts(&self) -> &Parts;

    /// Tells whether it still waits for the body.
    fn is_waiting(&self) -> bool {
        true
    }

    /// The body is here. The error is told to the sender.
    fn take(&self, body: Held) -> Result<()>;

    /// There will be none: what the sender is told.
    fn refuse(&self, refused: Refused) -> capnp::Error;

    /// Nothing more comes. The second time it changes nothing.
    fn end(&self) -> Result<()> {
        match self.parts().end() {
            Ok(Some(body)) => self.take(body),
            Ok(None) => Ok(()),
            Err(refused) => Err(self.refuse(refused)),
        }
    }
}

/// The stream by which a body comes to its taker.
pub(crate) struct Stream<T>(pub(crate) Rc<T>);

impl<T: Taker> byte_stream::Server for Stream<T> {
    async fn write(self: Rc<Self>, params: byte_stream::WriteParams) -> Result<()> {
        let bytes = params.get()?.get_bytes()?;
        if !self.0.is_waiting() {
            return Ok(());
        }
        self.0.parts().add(bytes)?.map_err(|refused| self.0.refuse(refused))
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
