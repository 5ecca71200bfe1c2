//! The hop count: a call carries the number of hosts that it came through, and the number of its
//! [caller](super::callers).
//!
//! A host passes calls on a promise of another vat on at once, and that vat may do the same.
//! Promises that lead to each other would pass a call around without end, and in a long row of
//! promises each call costs as much as the row is long. A single host sees only its own step, so
//! the count travels with the call.
//!
//! Cap'n Proto has no headers for calls. The count is in bits of the struct `Call` that the
//! protocol doesn't use.
//!
//! **Invariant:** only connections between parts of one system carry the count. No other peer is
//! told it, and what others send there is ignored.

use super::GuardState;
use capnp::message::{Builder, HeapAllocator};
use capnp::raw::get_struct_data_section;
use capnp_rpc::rpc_capnp::{call, message};
use std::cell::Cell;
use tokio::io::{AsyncRead, AsyncWrite};

/// The byte of the count in the data of `Call`, after the last field.
const PLACE: usize = 17;

/// The position of the caller's number there.
const CALLER_PLACE: usize = 20;

thread_local! {
    /// The count and the caller of the call that is being sent.
    static SENT: Cell<(u8, u32)> = const { Cell::new((0, 0)) };
}

/// Gives this hop count and caller to the calls that `send` makes before it returns. 0 means none.
pub fn with_origin<T>(hops: u8, caller: u32, send: impl FnOnce() -> T) -> T {
    /// Restores the count, even if `send` panics.
    struct Reset((u8, u32));

    impl Drop for Reset {
        fn drop(&mut self) {
            SENT.set(self.0);
        }
    }

    let _reset = Reset(SENT.replace((hops, caller)));
    send()
}

impl<S: AsyncRead + AsyncWrite + Unpin> GuardState<S> {
    /// The hop count of a received call.
    pub(super) fn hops_of(&self, call: call::Reader) -> u8 {
        if !self.limits.tells_hops {
            return 0;
        }
        get_struct_data_section(call).get(PLACE).copied().unwrap_or(0)
    }

    /// The number of the caller of a received call.
    pub(super) fn caller_of(&self, call: call::Reader) -> u32 {
        if !self.limits.tells_hops {
            return 0;
        }
        let place = get_struct_data_section(call).get(CALLER_PLACE..CALLER_PLACE + 4);
        let bytes = place.and_then(|place| place.try_into().ok());
        u32::from_le_bytes(bytes.unwrap_or_default())
    }

    /// Writes the hop count and the caller into the call that was put on the wire last.
    pub(super) fn tell_origin(&mut self, message: &Builder<HeapAllocator>) -> capnp::Result<()> {
        let (hops, caller) = SENT.get();
        if hops == 0 || !self.limits.tells_hops {
            return Ok(());
        }
        if let Ok(message::Call(call)) = message.get_root_as_reader::<message::Reader>()?.which()
            && let Some(places) = get_struct_data_section(call?).get(PLACE..CALLER_PLACE + 4)
        {
            if caller != 0 {
                self.outlet.carries_calls();
            }
            let caller_at = places[CALLER_PLACE - PLACE..].as_ptr();
            self.wire.patch_last(message, places.as_ptr(), &[hops]);
            self.wire.patch_last(message, caller_at, &caller.to_le_bytes());
        }
        Ok(())
    }
}
