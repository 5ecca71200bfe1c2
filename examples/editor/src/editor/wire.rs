//! The messages of `y-websocket`, as the crate `yrs` has them. A frame has one, since its client
//! reads one of each.

use yrs::encoding::read::{Cursor, Error, Read};
use yrs::sync::protocol::{MSG_AWARENESS, MSG_SYNC, MSG_SYNC_STEP_1};
use yrs::sync::{AwarenessUpdate, Message, SyncMessage};
use yrs::updates::decoder::{Decode, DecoderV1};
use yrs::updates::encoder::Encode;

use super::plain;
use super::refused::{Outcome, Refused};

pub(super) fn decode(frame: &[u8]) -> Outcome<Message> {
    let message = check(&mut Cursor::new(frame))
        .and_then(|()| Message::decode(&mut DecoderV1::new(Cursor::new(frame))));
    message.map_err(|_| Refused::NotYjs)
}

/// Looks whether the lists in a frame are as long as they say, and clients have the names of
/// clients: `yrs` makes room for lists before it reads them, and panics at other names. A change is
/// looked at when it is applied.
fn check(frame: &mut Cursor<'_>) -> Result<(), Error> {
    match frame.read_var::<u8>()? {
        MSG_SYNC if frame.read_var::<u8>()? == MSG_SYNC_STEP_1 => {
            let list = &mut Cursor::new(frame.read_buf()?);
            for _ in 0..list.read_var::<u32>()? {
                let (_client, _clock): (u64, u32) = (plain::client(list)?, list.read_var()?);
            }
        }
        MSG_AWARENESS => {
            let list = &mut Cursor::new(frame.read_buf()?);
            for _ in 0..list.read_var::<u32>()? {
                let (_client, _clock): (u64, u32) = (plain::client(list)?, list.read_var()?);
                let _state = list.read_buf()?;
            }
        }
        // Without a list.
        _ => {}
    }
    Ok(())
}

pub(super) fn sync(message: SyncMessage) -> Vec<u8> {
    Message::Sync(message).encode_v1()
}

pub(super) fn awareness(update: AwarenessUpdate) -> Vec<u8> {
    Message::Awareness(update).encode_v1()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_that_are_none_and_clients_of_no_name_are_refused() {
        let nobody = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];
        for (what, frame) in [
            ("64 million clients", vec![0, 0, 4, 0x80, 0x80, 0x80, 0x20]),
            ("64 million cursors", vec![1, 4, 0x80, 0x80, 0x80, 0x20]),
            ("what nobody knows", [&[0, 0, 10, 1], &nobody[..], &[0]].concat()),
            ("nobody's cursor", [&[1, 12, 1], &nobody[..], &[0, 1, b'1']].concat()),
            ("nothing", vec![]),
        ] {
            assert!(decode(&frame).is_err(), "{what}");
        }
        assert!(decode(&[0, 0, 3, 1, 7, 0]).is_ok());
        assert!(decode(&[1, 5, 1, 7, 0, 1, b'1']).is_ok());
    }
}
