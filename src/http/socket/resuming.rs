//! The frames of sockets that survive, on their way to the client, and a socket that is taken up
//! again: what its gateway hasn't got goes out once more.

use std::rc::Rc;

use capnp::capability::{FromClientHook, Promise};
use futures::future::{FutureExt, TryFutureExt};

use super::surviving::{Frame, Lease, Surviving, corrupt};
use super::table::{Entry, View};
use super::{Sending, Socket, over};
use crate::error::{Result, failed};
use crate::http::stream::keep;
use crate::schema::http_capnp::web_socket;

impl Socket {
    /// Sends a frame that survives: it is stored in this turn, and leaves when there is a way.
    pub(super) fn send_surviving(&self, surviving: &Surviving, frame: &Frame<'_>) -> Sending {
        if !self.view.table.is_open(&self.entry) {
            return Sending(Promise::err(over()));
        }
        match surviving.keep(&*self.view.holder, frame) {
            Ok(number) => Sending(send_kept(&self.view, &self.entry, frame, number)),
            Err(error) => {
                if error.kind == capnp::ErrorKind::Overloaded {
                    self.view.holder.lose(&self.view.table, &self.entry);
                }
                Sending(Promise::err(error))
            }
        }
    }
}

/// Sends a frame that is stored, if there is a way; else it leaves when there is one.
fn send_kept(
    view: &View,
    entry: &Rc<Entry>,
    frame: &Frame<'_>,
    number: u64,
) -> Promise<(), capnp::Error> {
    let sent = view.with_down(entry, |down| frame.send(down, number));
    let Some(sent) = sent else { return Promise::ok(()) };
    let entry = entry.clone();
    let acknowledged = sent.map_ok(move |()| {
        entry.surviving.iter().for_each(|surviving| surviving.acknowledge(number));
    });
    let acknowledged = acknowledged.shared();
    keep(acknowledged.clone());
    Promise::from_future(acknowledged)
}

/// Takes a socket up again by a new way, and sends what the gateway hasn't got. Gives the number of
/// the last message that the object has.
///
/// # Errors
/// When the socket isn't there any more, or ends by this.
pub(crate) fn resume(
    view: &Rc<View>,
    id: &[u8],
    received: u64,
    down: &web_socket::Client,
    lease: Option<Rc<dyn Lease>>,
) -> Result<(Rc<Entry>, u64)> {
    let gone = || failed("the socket has ended");
    let entry = view.table.surviving(id).ok_or_else(gone)?;
    let surviving = entry.surviving.as_deref().ok_or_else(gone)?;
    if entry.has_lost() {
        view.holder.lose(&view.table, &entry);
        return Err(failed("a message of the socket was cut short"));
    }
    let holder = &*view.holder;
    let (begun, unsent) = surviving.go_on(holder, received, lease)?;
    entry.set_down(holder.ungated(down.as_client_hook()));
    view.forget_down(&entry);
    for number in unsent {
        let record = surviving.frame(holder, number)?;
        let frame = Frame::decode(&record).ok_or_else(corrupt)?;
        drop(send_kept(view, &entry, &frame, number));
    }
    Ok((entry.clone(), begun))
}
