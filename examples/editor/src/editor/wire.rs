//! The messages of `y-websocket`, as the crate `yrs` has them. A frame has one, since its client
//! reads one of each.

use std::panic::{self, AssertUnwindSafe};

use yrs::encoding::read::{Cursor, Error, Read};
use yrs::sync::protocol::{MSG_AWARENESS, MSG_SYNC};
use yrs::sync::{AwarenessUpdate, Message, SyncMessage};
use yrs::updates::decoder::{Decode, DecoderV1};
use yrs::updates::encoder::Encode;

use super::refused::{Outcome, Refused};

pub(super) fn decode(frame: &[u8]) -> Outcome<Message> {
    if !is_plausible(frame) {
        return Err(Refused::NotYjs);
    }
    decoded(|| Message::decode(&mut DecoderV1::new(Cursor::new(frame))))
}

/// The result of decoding a stranger's bytes. `yrs` panics on some numbers that don't add up; that
/// ends the stranger's socket and not the object, since nothing has been changed yet.
pub(super) fn decoded<T>(decode: impl FnOnce() -> Result<T, Error>) -> Outcome<T> {
    let decoded = panic::catch_unwind(AssertUnwindSafe(decode));
    decoded.map_err(|_| Refused::NotYjs)?.map_err(|_| Refused::NotYjs)
}

/// Tells whether the list in a frame could have as many elements as it says: `yrs` makes room for
/// them before it reads them, so that a few bytes could take gigabytes.
fn is_plausible(frame: &[u8]) -> bool {
    let mut cursor = Cursor::new(frame);
    let list = match cursor.read_var::<u8>() {
        Ok(MSG_SYNC) => cursor.read_var::<u8>().and_then(|_| cursor.read_buf()),
        Ok(MSG_AWARENESS) => cursor.read_buf(),
        // Without a list.
        tag => return tag.is_ok(),
    };
    let elements = |list: &[u8]| Cursor::new(list).read_var::<u32>();
    list.is_ok_and(|list| elements(list).is_ok_and(|said| said as usize <= list.len()))
}

pub(super) fn sync(message: SyncMessage) -> Vec<u8> {
    Message::Sync(message).encode_v1()
}

pub(super) fn awareness(update: AwarenessUpdate) -> Vec<u8> {
    Message::Awareness(update).encode_v1()
}
