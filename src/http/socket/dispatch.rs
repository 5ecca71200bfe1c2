//! The way by which messages of a WebSocket reach the class, and the end of each socket.
//!
//! The class is found by its type, and its value is that of the instance which is awake now: the
//! way to it outlives every instance.

use std::any::Any;
use std::marker::PhantomData;
use std::rc::Rc;

use capnp::any_pointer;
use capnp::capability::{Params, Promise};
use capnp::traits::HasTypeId;
use capstead_client::sturdyref::Method;

use super::table::{Entry, Handles, Handling, View};
use super::{Closed, Message, Socket, SocketHandler};
use crate::error::{Result, disconnected, failed, no_such_method};
use crate::schema::http_capnp::web_socket;
use crate::schema::surviving_capnp::numbered_socket;

/// The methods of the interface `WebSocket`.
const SEND_TEXT: u16 = 0;
/// See [`SEND_TEXT`].
const SEND_DATA: u16 = 1;
/// See [`SEND_TEXT`].
const CLOSE: u16 = 2;

/// The methods of the interface `NumberedSocket`.
const TEXT_AT: u16 = 0;
/// See [`TEXT_AT`].
const DATA_AT: u16 = 1;
/// See [`TEXT_AT`].
const CLOSE_AT: u16 = 2;

/// The functions of one class.
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
    let begun = read(method, params).and_then(|(number, asked)| {
        // A close without a number is the host's own word.
        let is_wrong = number.is_some() != entry.surviving.is_some();
        if is_wrong && (number.is_some() || matches!(asked, Asked::Message(_))) {
            return Err(no_such_method(method));
        }
        let (Some(number), Some(surviving)) = (number, &entry.surviving) else {
            return Ok(Some((None, asked)));
        };
        check_not_lost(entry)?;
        let is_new = surviving.begin(&*view.holder, number)?;
        Ok(is_new.then_some((Some(number), asked)))
    });
    match begun {
        Ok(Some((number, Asked::Message(message)))) => {
            take_message(view, entry, object, (number, message))
        }
        Ok(Some((_, Asked::Close(closed)))) => close(view, entry, object, closed),
        Ok(None) => Promise::ok(()),
        Err(error) => Promise::err(error),
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
    let close_at = (numbered_socket::Client::TYPE_ID, CLOSE_AT);
    [(web_socket::Client::TYPE_ID, CLOSE), close_at].contains(&(method.interface, method.ordinal))
}

enum Asked {
    Message(Message),
    Close(Closed),
}

/// The matter of a call, and the number of a message that has one.
fn read(method: Method, params: &Params<any_pointer::Owned>) -> Result<(Option<u64>, Asked)> {
    let params = params.get()?;
    let asked = match (method.interface, method.ordinal) {
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
        (numbered_socket::Client::TYPE_ID, TEXT_AT) => {
            let params: numbered_socket::text_at_params::Reader<'_> = params.get_as()?;
            let text = params.get_text()?.to_str()?.to_owned();
            return Ok((Some(params.get_number()), Asked::Message(Message::Text(text))));
        }
        (numbered_socket::Client::TYPE_ID, DATA_AT) => {
            let params: numbered_socket::data_at_params::Reader<'_> = params.get_as()?;
            let data = params.get_data()?.to_owned();
            return Ok((Some(params.get_number()), Asked::Message(Message::Data(data))));
        }
        (numbered_socket::Client::TYPE_ID, CLOSE_AT) => {
            let params: numbered_socket::close_at_params::Reader<'_> = params.get_as()?;
            let reason = params.get_reason()?.to_str()?.to_owned();
            let closed = Closed { code: params.get_code(), reason };
            return Ok((Some(params.get_number()), Asked::Close(closed)));
        }
        _ => return Err(no_such_method(method)),
    };
    Ok((None, asked))
}

fn check_not_lost(entry: &Entry) -> Result<()> {
    if entry.has_lost() {
        return Err(disconnected("a message before this one was lost"));
    }
    Ok(())
}

fn take_message(
    view: &Rc<View>,
    entry: &Rc<Entry>,
    object: Rc<dyn Any>,
    (number, message): (Option<u64>, Message),
) -> Promise<(), capnp::Error> {
    if let Err(error) = check_not_lost(entry) {
        return Promise::err(error);
    }
    if !view.table.is_open(entry) {
        return Promise::err(failed("no frame follows a close"));
    }
    let socket = view.socket(entry.clone());
    let reply = number
        .and_then(|_| view.table.automatic(|request| message == Message::Text(request.to_owned())));
    if let Some(reply) = reply {
        entry.replied_by_itself(view.holder.now_ms());
        drop(socket.send_text(&reply));
        return finish(&socket, number).map_or_else(Promise::err, Promise::ok);
    }
    let Some(handling) = entry.handler.message(object, socket.clone(), message) else {
        return Promise::ok(());
    };
    Promise::from_future(async move {
        socket.close_on_error(handling.await);
        finish(&socket, number)
    })
}

/// A message was handled.
fn finish(socket: &Socket, number: Option<u64>) -> Result<()> {
    let Socket { entry, view } = socket;
    match (&entry.surviving, number) {
        // With its socket's end nothing of it is stored any more.
        (Some(surviving), Some(number)) if view.table.is_open(entry) => {
            surviving.finish(&*view.holder, number)
        }
        _ => Ok(()),
    }
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
    if let Some(surviving) = &entry.surviving
        && let Err(error) = surviving.delete(&*view.holder)
    {
        return Promise::err(error);
    }
    match entry.handler.closed(object, view.socket(entry.clone()), closed) {
        Some(handling) => Promise::from_future(handling),
        None => Promise::ok(()),
    }
}
