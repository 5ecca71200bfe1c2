//! Cap'n Proto structs as values of the storage.

use std::fmt;
use std::marker::PhantomData;
use std::rc::Rc;

use capnp::any_pointer;
use capnp::message::{Builder, Reader, ReaderOptions};
use capnp::serialize::{self, OwnedSegments};
use capnp::traits::{Imbue, ImbueMut, Owned};

use super::Storable;
use crate::error::{Reason, Result, failed};
use crate::membrane::Caps;

/// A Cap'n Proto struct as it is stored: a copy that nobody changes. `T` is the struct's generated
/// `Owned`. Cheap to clone.
///
/// ```
/// use capstead::Struct;
/// use capstead::poll_capnp::poll::vote_results;
///
/// # fn main() -> capstead::Result<()> {
/// let three = Struct::<vote_results::Owned>::build(|mut results| {
///     results.set_votes(3);
///     Ok(())
/// })?;
/// assert_eq!(three.get()?.get_votes(), 3);
/// assert_eq!(Struct::<vote_results::Owned>::default().get()?.get_votes(), 0);
/// # Ok(())
/// # }
/// ```
pub struct Struct<T> {
    message: Rc<Message>,
    of: PhantomData<fn() -> T>,
}

struct Message {
    reader: Reader<OwnedSegments>,
    /// The capabilities to which the pointers in it lead, by their numbers.
    capabilities: Caps,
}

/// A struct as bytes, in the standard framing, with the capabilities in it.
pub(in crate::host) struct Parts {
    pub(in crate::host) message: Vec<u8>,
    pub(in crate::host) capabilities: Caps,
}

impl Parts {
    /// A copy of any struct.
    pub(in crate::host) fn copy<T: Owned>(value: T::Reader<'_>) -> Result<Self> {
        Self::make(|mut root| root.set_as(value))
    }

    fn make(fill: impl FnOnce(any_pointer::Builder<'_>) -> Result<()>) -> Result<Self> {
        let (mut message, mut capabilities) = (Builder::new_default(), Caps::new());
        let mut root: any_pointer::Builder<'_> = message.init_root();
        root.imbue_mut(&mut capabilities);
        fill(root)?;
        Ok(Self { message: serialize::write_message_to_words(&message), capabilities })
    }
}

impl<T: Owned> Struct<T> {
    /// A struct that `fill` has filled.
    ///
    /// # Errors
    /// That of `fill`; `live-capability:` when there is a capability in it.
    pub fn build(fill: impl FnOnce(T::Builder<'_>) -> Result<()>) -> Result<Self> {
        Self::make(|root| fill(root.init_as()))
    }

    /// As [`Struct::build`], for a struct that may have capabilities in it; see
    /// [`Storage::put_struct_with_refs`](crate::Storage::put_struct_with_refs).
    ///
    /// # Errors
    /// That of `fill`.
    pub fn build_with_refs(fill: impl FnOnce(T::Builder<'_>) -> Result<()>) -> Result<Self> {
        let Parts { message, capabilities } = Parts::make(|root| fill(root.init_as()))?;
        Self::parse(&message, capabilities)
    }

    /// A copy of a struct.
    ///
    /// # Errors
    /// When it can't be read as a whole; `live-capability:` when there is a capability in it.
    pub fn copy(value: T::Reader<'_>) -> Result<Self> {
        Self::make(|mut root| root.set_as(value))
    }

    /// The struct.
    ///
    /// # Errors
    /// When what is stored is no such struct.
    pub fn get(&self) -> Result<T::Reader<'_>> {
        let mut root: any_pointer::Reader<'_> = self.message.reader.get_root()?;
        root.imbue(&self.message.capabilities);
        root.get_as()
    }

    fn make(fill: impl FnOnce(any_pointer::Builder<'_>) -> Result<()>) -> Result<Self> {
        let Parts { message, capabilities } = Parts::make(fill)?;
        refuse(&capabilities)?;
        Self::parse(&message, capabilities)
    }

    /// The struct of a message in the standard framing, with the capabilities that its pointers
    /// mean.
    ///
    /// # Errors
    /// When the bytes are no message.
    pub(in crate::host) fn parse(bytes: &[u8], capabilities: Caps) -> Result<Self> {
        let mut rest = bytes;
        // No limit: it is read over and over, and every read counts for the whole life of the
        // message.
        let options = *ReaderOptions::new().traversal_limit_in_words(None);
        let reader = serialize::read_message(&mut rest, options)?;
        if rest.is_empty() {
            Ok(Self { message: Rc::new(Message { reader, capabilities }), of: PhantomData })
        } else {
            Err(failed("a stored struct has bytes behind its end"))
        }
    }
}

/// Stored as a message in the standard framing: the number of segments and their lengths, then the
/// segments.
impl<T: Owned + 'static> Storable for Struct<T> {
    fn encode<R>(&self, write: impl FnOnce(&[u8]) -> R) -> R {
        write(&serialize::write_message_segments_to_words(self.message.reader.get_segments()))
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        Self::parse(bytes, Caps::new()).ok()
    }

    fn check(&self) -> Result<()> {
        refuse(&self.message.capabilities)
    }
}

fn refuse(capabilities: &Caps) -> Result<()> {
    if capabilities.is_empty() {
        return Ok(());
    }
    Err(Reason::LiveCapability.error(
        "the bytes of a struct have no capabilities in them; store it with \
         put_struct_with_refs",
    ))
}

impl<T> Clone for Struct<T> {
    fn clone(&self) -> Self {
        Self { message: self.message.clone(), of: PhantomData }
    }
}

/// The struct with all fields at their defaults.
impl<T: Owned> Default for Struct<T> {
    fn default() -> Self {
        const EMPTY: [u8; 16] = [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        Self::parse(&EMPTY, Caps::new()).expect("one segment of one empty word")
    }
}

impl<T> fmt::Debug for Struct<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self.message.reader.size_in_words();
        f.debug_struct("Struct").field("words", &words).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::trial_capnp::trial::{later_params, note_params};

    type Note = Struct<note_params::Owned>;

    #[test]
    fn a_struct_is_stored_in_the_standard_framing() {
        let note = Note::build(|mut note| {
            note.set_n(258);
            Ok(())
        })
        .unwrap();
        let copy = Note::copy(note.get().unwrap()).unwrap();
        copy.encode(|bytes| {
            assert_eq!(bytes[..8], [0, 0, 0, 0, 2, 0, 0, 0]);
            assert_eq!(bytes[16..], [2, 1, 0, 0, 0, 0, 0, 0]);
            assert_eq!(Note::decode(bytes).unwrap().get().unwrap().get_n(), 258);
            for end in 0..bytes.len() {
                assert!(Note::decode(&bytes[..end]).is_none(), "{end}");
            }
            assert!(Note::decode(&[bytes, &[0; 8]].concat()).is_none());
        });
    }

    #[test]
    fn a_struct_can_be_read_without_end() {
        let note = Note::default();
        for _ in 0..9_000_000 {
            note.get().unwrap();
        }
    }

    #[test]
    fn a_live_capability_is_refused() {
        let refused = Struct::<later_params::Owned>::build(|mut later| {
            let broken = capnp_rpc::new_future_client(std::future::pending());
            later.set_cap(broken);
            Ok(())
        });
        let error = refused.unwrap_err();
        assert!(error.extra.starts_with("live-capability:"), "{error}");
    }
}
