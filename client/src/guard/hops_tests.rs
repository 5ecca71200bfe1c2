//! The hop count on the wire.

use super::path_tests::acquainted_within;
use super::*;
use crate::{wire, with_origin};
use capnp::message::{Builder, Reader, ReaderOptions};
use capnp::raw::get_struct_data_section;
use capnp_rpc::rpc_capnp::call;

fn call_in(message: &ReceivedMessage) -> call::Reader<'_> {
    match message.get_root::<message::Reader>().unwrap().which().unwrap() {
        message::Call(Ok(call)) => call,
        _ => panic!("it is a call"),
    }
}

/// A peer outside the system could make other peers' calls fail, and would learn about its hosts.
#[tokio::test(flavor = "local")]
async fn hops_are_told_and_believed_within_one_system_only() {
    for (limits, is_trusted) in [(Limits::of_trusted(), true), (Limits::default(), false)] {
        let (mut peer, theirs) = acquainted_within(limits).await;
        let told = with_origin(7, 0x0102_0304, || theirs.locate_request().send());
        let next = theirs.locate_request().send();
        let first = if is_trusted { "call 1 through 7" } else { "call 1" };
        assert_eq!(peer.sent().await, [first, "call 2"]);
        drop((told, next));

        let mut message = Builder::new_default();
        message.init_root::<message::Builder>().init_call();
        let incoming = wire::tests::incoming(&message);
        let data = get_struct_data_section(call_in(&incoming));
        let place = data.as_ptr().addr() + 17;
        let mut segments = incoming.into_segments();
        segments.patch(place, &[9]);
        let changed = Reader::new(segments, ReaderOptions::new());
        let believed = peer.guard.borrow().hops_of(call_in(&changed));
        assert_eq!(believed, if is_trusted { 9 } else { 0 });
    }
}
