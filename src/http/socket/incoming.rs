//! The way by which messages of a WebSocket reach the class, and the end of each socket.
//!
//! The class is found by its type, and its value is that of the instance which is awake now: the
//! way to it outlives every instance.

use std::any::Any;
use std::marker::PhantomData;
use std::pin::Pin;
use std::rc::Rc;

use capnp::any_pointer;
use capnp::capability::{Params, Promise};
use capnp::traits::HasTypeId;
use capstead_client::sturdyref::Method;

use super::table::{Entry, View};
use super::{Closed, Message, Socket, SocketHandler};
use crate::error::{Result, disconnected, failed, no_such_method};
use crate::schema::http_capnp::web_socket;

/// The methods of the interface `WebSocket`.
const SEND_TEXT: u16 = 0;
/// See [`SEND_TEXT`].
const SEND_DATA: u16 = 1;
/// See [`SEND_TEXT`].
const CLOSE: u16 = 2;

pub(super) type Handling = Pin<Box<dyn Future<Output = Result<()>>>>;

/// The functions of a [`SocketHandler`]. None of them runs on the value of another class.
pub(super) trait Handles {
    fn opened(&self, object: Rc<dyn Any>, socket: Socket) -> Option<Handling>;
    fn message(&self, object: Rc<dyn Any>, socket: Socket, message: Message) -> Option<Handling>;
    fn closed(&self, object: Rc<dyn Any>, socket: Socket, closed: Closed) -> Option<Handling>;
}

/// Those of one class.
struct HandlerOf<C>(PhantomData<C>);

pub(super) fn handler_of<C: SocketHandler>() -> &'static dyn Handles {
    const { &HandlerOf::<C>(PhantomData) }
}

impl<C: SocketHandler> Handles for HandlerOf<C> {
    fn opened(&self, object: Rc<dyn Any>, socket: Socket) -> Option<Handling> {
        Some(Box::pin(object.downcast::<C>().ok()?.opened(socket)))
    }

    fn message(&self, object: Rc<dyn Any>, socket: Socket, message: Message) -> Option<Handling> {
        Some(Box::pin(object.downcast::<C>().ok()?.message(socket, message)))
    }

    fn closed(&self, object: Rc<dyn Any>, socket: Socket, closed: Closed) -> Option<Handling> {
        Some(Box::pin(object.downcast::<C>().ok()?.closed(socket, closed)))
    }
}

/// Begins what a call on a socket's way in asks of the class. Its results are empty.
pub(crate) fn dispatch(
    view: &Rc<View>,
    entry: &Rc<Entry>,
    object: Rc<dyn Any>,
    method: Method,
    params: &Params<any_pointer::Owned>,
) -> Promise<(), capnp::Error> {
    let asked = match read(method, params) {
        Ok(asked) => asked,
        Err(error) => return Promise::err(error),
    };
    match asked {
        Asked::Message(message) => take_message(view, entry, object, message),
        Asked::Close(closed) => close(view, entry, object, closed),
    }
}

/// Tells whether a call sends exactly this text.
pub(crate) fn is_text(method: Method, params: any_pointer::Reader<'_>, text: &str) -> bool {
    let sent = || {
        let params: web_socket::send_text_params::Reader<'_> = params.get_as()?;
        params.get_text()
    };
    (method.interface, method.ordinal) == (web_socket::Client::TYPE_ID, SEND_TEXT)
        && sent().is_ok_and(|sent| sent.as_bytes() == text.as_bytes())
}

/// Tells whether a call says that the socket has ended.
pub(crate) fn is_close(method: Method) -> bool {
    (method.interface, method.ordinal) == (web_socket::Client::TYPE_ID, CLOSE)
}

enum Asked {
    Message(Message),
    Close(Closed),
}

fn read(method: Method, params: &Params<any_pointer::Owned>) -> Result<Asked> {
    let params = params.get()?;
    Ok(match (method.interface, method.ordinal) {
        (web_socket::Client::TYPE_ID, SEND_TEXT) => {
            let params: web_socket::send_text_params::Reader<'_> = params.get_as()?;
            Asked::Message(Message::Text(params.get_text()?.to_str()?.to_owned()))
        }
        (web_socket::Client::TYPE_ID, SEND_DATA) => {
            let params: web_socket::send_data_params::Reader<'_> = params.get_as()?;
            Asked::Message(Message::Data(params.get_data()?.to_owned()))
        }
        (web_socket::Client::TYPE_ID, CLOSE) => {
            let params: web_socket::close_params::Reader<'_> = params.get_as()?;
            let reason = params.get_reason()?.to_str()?.to_owned();
            Asked::Close(Closed { code: params.get_code(), reason })
        }
        _ => return Err(no_such_method(method)),
    })
}

fn take_message(
    view: &Rc<View>,
    entry: &Rc<Entry>,
    object: Rc<dyn Any>,
    message: Message,
) -> Promise<(), capnp::Error> {
    if entry.has_lost() {
        return Promise::err(disconnected("a message before this one was lost"));
    }
    if !view.table.is_open(entry) {
        return Promise::err(failed("no frame follows a close"));
    }
    let socket = view.socket(entry.clone());
    let Some(handling) = entry.handler.message(object, socket.clone(), message) else {
        return Promise::ok(());
    };
    Promise::from_future(async move {
        socket.close_on_error(handling.await);
        Ok(())
    })
}

/// The second time it changes nothing.
fn close(
    view: &Rc<View>,
    entry: &Rc<Entry>,
    object: Rc<dyn Any>,
    closed: Closed,
) -> Promise<(), capnp::Error> {
    if !view.table.remove(entry) {
        return Promise::ok(());
    }
    view.forget_down(entry);
    match entry.handler.closed(object, view.socket(entry.clone()), closed) {
        Some(handling) => Promise::from_future(handling),
        None => Promise::ok(()),
    }
}
