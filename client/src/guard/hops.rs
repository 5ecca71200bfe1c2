//! The hop count: a call carries the number of hosts that it came through.
//!
//! A host passes calls on a promise of another vat on at once, and that vat may do the same. Promises
//! that lead to each other would pass a call round endlessly, and in a long row of promises each call
//! costs as much as the row is long. A single host sees only its own step, so the count travels with
//! the call.
//!
//! Cap'n Proto has no headers for calls. The count stands in bits of the struct `Call` that the protocol
//! doesn't use.
//!
//! **Invariant:** only connections between parts of one system carry the count. No other peer is told
//! it, and what others send there is ignored.

use super::State;
use capnp::message::{Builder, HeapAllocator};
use capnp::raw::get_struct_data_section;
use capnp_rpc::rpc_capnp::{call, message};
use std::cell::Cell;
use tokio::io::{AsyncRead, AsyncWrite};

/// The byte of the count in the data of `Call`, behind the last field.
const PLACE: usize = 17;

thread_local! {
    /// The count of the call that is being sent.
    static SENT: Cell<u8> = const { Cell::new(0) };
}

/// Gives the calls that `send` makes before it returns this hop count.
pub fn with_hops<T>(hops: u8, send: impl FnOnce() -> T) -> T {
    /// Puts the count back, even if `send` panics.
    struct Reset(u8);

    impl Drop for Reset {
        fn drop(&mut self) {
            SENT.set(self.0);
        }
    }

    let _reset = Reset(SENT.replace(hops));
    send()
}

impl<S: AsyncRead + AsyncWrite + Unpin> State<S> {
    /// The hop count of a call that came in.
    pub(super) fn hops_of(&self, call: call::Reader) -> u8 {
        if !self.limits.tells_hops {
            return 0;
        }
        get_struct_data_section(call).get(PLACE).copied().unwrap_or(0)
    }

    /// Writes the hop count into the call that was put on the wire last.
    pub(super) fn tell_hops(&mut self, message: &Builder<HeapAllocator>) -> capnp::Result<()> {
        let hops = SENT.get();
        if hops == 0 || !self.limits.tells_hops {
            return Ok(());
        }
        if let Ok(message::Call(call)) = message.get_root_as_reader::<message::Reader>()?.which()
            && let Some(place) = get_struct_data_section(call?).get(PLACE)
        {
            self.wire.patch_last(message, place, hops);
        }
        Ok(())
    }
}
