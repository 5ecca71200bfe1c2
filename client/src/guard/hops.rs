//! How many hosts a call has come through.
//!
//! A host hands calls on promises of other vats on as they come, also when such a promise leads to one
//! behind another host, and so on. Promises that lead to each other pass a call round for ever, and a
//! long row of them makes every call on it cost as much as the row is long: each host sees its own step
//! alone. So the number of steps travels with the call.
//!
//! Calls of Cap'n Proto have no room for that, but for bits of the struct `Call` that the protocol
//! doesn't use. There the number stands, on connections between parts of one system only: nobody else
//! is told, or believed.

use super::State;
use capnp::message::{Builder, HeapAllocator};
use capnp::raw::get_struct_data_section;
use capnp_rpc::rpc_capnp::{call, message};
use std::cell::Cell;
use tokio::io::{AsyncRead, AsyncWrite};

/// Behind the last field of `Call` that there is.
const PLACE: usize = 17;

thread_local! {
    /// Of the call that is sent now.
    static SENT: Cell<u8> = const { Cell::new(0) };
}

/// Makes a call that has come through so many hosts: `send` sends it at once.
pub fn with_hops<T>(hops: u8, send: impl FnOnce() -> T) -> T {
    /// Also when sending panics.
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
    /// Through how many hosts a call came.
    pub(super) fn hops_of(&self, call: call::Reader) -> u8 {
        if !self.limits.tells_hops {
            return 0;
        }
        get_struct_data_section(call).get(PLACE).copied().unwrap_or(0)
    }

    /// Writes the number into a call that was put on the wire just now.
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
