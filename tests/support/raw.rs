//! A peer without an RPC system: it sends messages by hand, so it can do things that no RPC system
//! does.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};

use capnp::any_pointer;
use capnp::message::{Builder, HeapAllocator, ReaderOptions};
use capnp::private::capability::ClientHook;
use capnp::serialize;
use capnp::traits::{HasTypeId, ImbueMut};
use capnp_rpc::rpc_capnp::{exception, message, payload, return_};
use capstead_client::restorer_capnp::{namespace, restorer};
use rustix::net::{self, AddressFamily, SocketType};

use super::{DEADLINE, Served};

pub(crate) type Raw = Builder<HeapAllocator>;

/// The call whose answer is a counter.
pub(crate) const COUNTER: u32 = 2;

pub(crate) fn dial(served: &Served) -> TcpStream {
    dial_at(&served.announced.capnp)
}

pub(crate) fn dial_at(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it is reached");
    stream.set_read_timeout(Some(DEADLINE)).expect("it isn't zero");
    stream
}

/// Connects as a client of its own: its address is 127.0.0.`client`.
pub(crate) fn dial_from(client: u8, address: &str) -> TcpStream {
    let socket = net::socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    let own = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, client), 0);
    net::bind(&socket, &own).expect("every address of 127.0.0.0/8 is this machine's");
    let address: SocketAddr = address.parse().expect("an address");
    net::connect(&socket, &address).expect("it is reached");
    socket.into()
}

pub(crate) fn send(stream: &mut TcpStream, messages: &[Raw]) {
    let bytes: Vec<u8> = messages.iter().flat_map(serialized).collect();
    stream.write_all(&bytes).expect("it takes them");
}

pub(crate) fn serialized(message: &Raw) -> Vec<u8> {
    serialize::write_message_to_words(message)
}

/// Reads messages until the answer to that call; returns its error, if it is one.
pub(crate) fn wait_for_answer(stream: &mut TcpStream, call: u32) -> Option<String> {
    loop {
        let (answered, error) = next_answer(stream);
        if answered == call {
            return error;
        }
    }
}

/// Reads messages until the next answer; returns its call, and its error, if it is one.
pub(crate) fn next_answer(stream: &mut impl std::io::Read) -> (u32, Option<String>) {
    loop {
        let message = serialize::read_message(&mut *stream, ReaderOptions::default());
        let message = message.expect("an answer comes");
        match root(&message).which() {
            Ok(message::Return(Ok(answer))) => return (answer.get_answer_id(), error_of(answer)),
            Ok(message::Abort(abort)) => panic!("the connection was ended: {abort:?}"),
            _ => {}
        }
    }
}

/// As [`wait_for_answer`]; fails every call that the server makes meanwhile.
pub(crate) fn fail_until_answer(
    stream: &mut TcpStream,
    reason: &str,
    question: u32,
) -> Option<String> {
    loop {
        let message = serialize::read_message(&mut *stream, ReaderOptions::default());
        let message = message.expect("an answer comes");
        match root(&message).which() {
            Ok(message::Call(Ok(call))) => send(stream, &[fails(call.get_question_id(), reason)]),
            Ok(message::Return(Ok(answer))) if answer.get_answer_id() == question => {
                return error_of(answer);
            }
            _ => {}
        }
    }
}

fn error_of(answer: return_::Reader<'_>) -> Option<String> {
    let Ok(return_::Exception(Ok(error))) = answer.which() else { return None };
    Some(error.get_reason().ok()?.to_string().expect("it is text"))
}

/// Reads messages until the server makes a call; returns its number.
pub(crate) fn wait_for_call(stream: &mut TcpStream) -> u32 {
    loop {
        let message = serialize::read_message(&mut *stream, ReaderOptions::default());
        let message = message.expect("a call comes");
        if let Ok(message::Call(Ok(call))) = root(&message).which() {
            return call.get_question_id();
        }
    }
}

/// Reads until the server says why it ends the connection, or to the end; returns the reason, if
/// any.
pub(crate) fn reason_of_end(mut stream: impl std::io::Read) -> Option<String> {
    while let Ok(message) = serialize::read_message(&mut stream, ReaderOptions::default()) {
        if let Ok(message::Abort(Ok(abort))) = root(&message).which() {
            return abort.get_reason().ok()?.to_string().ok();
        }
    }
    None
}

fn root(message: &capnp::message::Reader<serialize::OwnedSegments>) -> message::Reader<'_> {
    message.get_root().expect("it is a message")
}

pub(crate) fn bootstrap() -> Raw {
    let mut message = Raw::new_default();
    message.init_root::<message::Builder>().init_bootstrap().set_question_id(0);
    message
}

/// The restore of a reference, as call 1.
pub(crate) fn restore(text: &str) -> Raw {
    let mut message = Raw::new_default();
    let params = call(&mut message, 1, (0, None), (restorer::Client::TYPE_ID, 0));
    params.get_content().init_as::<restorer::restore_params::Builder>().set_sturdy_ref(text);
    message
}

/// The call [`COUNTER`], on the namespace that [`restore`] returned.
pub(crate) fn by_name(name: &str) -> Raw {
    let mut message = Raw::new_default();
    let on = (COUNTER - 1, Some(0));
    let params = call(&mut message, COUNTER, on, (namespace::Client::TYPE_ID, 0));
    params.get_content().init_as::<namespace::by_name_params::Builder>().set_key(name);
    message
}

/// An error as the answer to a call of the server's.
pub(crate) fn fails(call: u32, reason: &str) -> Raw {
    let mut message = Raw::new_default();
    let mut answer = message.init_root::<message::Builder>().init_return();
    answer.set_answer_id(call);
    let mut exception = answer.init_exception();
    exception.set_reason(reason);
    exception.set_type(exception::Type::Failed);
    message
}

/// Resolves a promise to a capability of the peer's own.
pub(crate) fn resolve(promise: u32, to: u32) -> Raw {
    let mut message = Raw::new_default();
    let mut resolve = message.init_root::<message::Builder>().init_resolve();
    resolve.set_promise_id(promise);
    resolve.init_cap().set_sender_hosted(to);
    message
}

pub(crate) fn finish(question: u32) -> Raw {
    let mut message = Raw::new_default();
    let mut finish = message.init_root::<message::Builder>().init_finish();
    finish.set_question_id(question);
    finish.set_release_result_caps(false);
    message
}

/// A call of a method, by interface and number, on a field of an answer.
pub(crate) fn call(
    message: &mut Raw,
    question: u32,
    (on, field): (u32, Option<u16>),
    (interface, method): (u64, u16),
) -> payload::Builder<'_> {
    let mut call = message.init_root::<message::Builder>().init_call();
    call.set_question_id(question);
    call.set_interface_id(interface);
    call.set_method_id(method);
    call.reborrow().get_send_results_to().set_caller(());
    let mut target = call.reborrow().init_target().init_promised_answer();
    target.set_question_id(on);
    if let Some(field) = field {
        target.init_transform(1).get(0).set_get_pointer_field(field);
    }
    call.init_params()
}

pub(crate) type Caps = Vec<Option<Box<dyn ClientHook>>>;

/// The content of a call whose first capability pointer leads to the first entry of the message's
/// table.
pub(crate) fn content<'a>(
    payload: payload::Builder<'a>,
    caps: &'a mut Caps,
) -> any_pointer::Builder<'a> {
    let mut content = payload.get_content();
    content.imbue_mut(caps);
    content
}

/// A placeholder for a capability of the table.
pub(crate) fn any_cap() -> Box<dyn ClientHook> {
    capnp_rpc::new_future_client::<namespace::Client>(std::future::pending()).client.hook
}
