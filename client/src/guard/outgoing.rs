//! Outgoing messages, kept within the limits that every receiver has by default.
//!
//! When a message is too large or has too many capabilities, a peer ends the connection, and all
//! its calls with it. So such a message isn't sent, and only its call fails. A call is replaced by
//! a call of a method that no object has, so that both ends agree on the open calls; its caller
//! gets the true reason instead of the answer. A result is replaced by an error.
//!
//! No capability is described as a promise, and none is ever resolved for the peer: its path stays
//! the same as long as it is held.

use super::made;
use super::scatter::ByNumber;
use crate::limits::{CAPABILITIES_SENT_MAX, ERROR_BYTES_MAX, MESSAGE_BYTES_SENT_MAX};
use crate::reason::{Reason, said};
use capnp::message::{Builder, HeapAllocator};
use capnp::{Error, ErrorKind};
use capnp_rpc::rpc_capnp::{
    call, cap_descriptor, exception, message, message_target, resolve, return_,
};
use std::borrow::Cow;
use std::collections::HashSet;

type Outgoing = Builder<HeapAllocator>;
type Caps<'a> = capnp::struct_list::Reader<'a, cap_descriptor::Owned>;

/// The message that is sent in place of another.
pub(super) enum Instead {
    /// The message itself.
    Same,
    /// The same message, with its promises described as [hosted](host_promises).
    Hosted,
    Other(Outgoing),
    /// No message. The RPC system takes back the capabilities that it gave away in the original.
    Nothing(Vec<u32>),
    /// A call that will be refused. The RPC system takes back the capabilities of the original.
    Refused(Outgoing, Vec<u32>),
}

/// Calls and answers that were replaced.
#[derive(Default)]
pub(super) struct Replaced {
    /// Calls of ours, with their errors.
    calls: ByNumber<Error>,
    /// The peer's calls whose results didn't go out: their `Finish` releases the capabilities in
    /// them.
    answers: HashSet<u32>,
}

impl Replaced {
    /// Decides which message is sent for this one.
    ///
    /// # Errors
    /// The message of the RPC system can't be read.
    pub(super) fn instead(
        &mut self,
        message: message::Reader,
        bytes: usize,
    ) -> capnp::Result<Instead> {
        match message.which() {
            Ok(message::Call(call)) => {
                let call = call?;
                let caps = call.get_params()?.get_cap_table()?;
                if let Some(error) = excess(bytes, caps) {
                    self.calls.insert(call.get_question_id(), error);
                    return Ok(Instead::Refused(refused(call)?, given(caps)?));
                }
                if has_promises(caps)? {
                    return Ok(Instead::Hosted);
                }
            }
            Ok(message::Return(answer)) => {
                let answer = answer?;
                match answer.which()? {
                    return_::Results(payload) => {
                        let caps = payload?.get_cap_table()?;
                        if let Some(error) = excess(bytes, caps) {
                            // Without capabilities there is nothing to release, and no `Finish`
                            // comes.
                            if !answer.get_no_finish_needed() {
                                self.answers.insert(answer.get_answer_id());
                            }
                            return Ok(Instead::Other(made::failed(answer, &error)));
                        }
                        if has_promises(caps)? {
                            return Ok(Instead::Hosted);
                        }
                    }
                    return_::Exception(exception) => {
                        if let Some(error) = changed(exception?)? {
                            return Ok(Instead::Other(made::failed(answer, &error)));
                        }
                    }
                    _ => {}
                }
            }
            Ok(message::Abort(abort)) => {
                if let Some(error) = changed(abort?)? {
                    return Ok(Instead::Other(made::abort(&error.extra)));
                }
            }
            Ok(message::Resolve(resolve)) => {
                let given = match resolve?.which()? {
                    resolve::Cap(cap) => export(cap?)?.into_iter().collect(),
                    resolve::Exception(_) => Vec::new(),
                };
                return Ok(Instead::Nothing(given));
            }
            _ => {}
        }
        Ok(Instead::Same)
    }

    /// The message that our call gets in place of this answer, if the call was replaced.
    pub(super) fn answer(&mut self, answer: return_::Reader) -> Option<Outgoing> {
        if self.calls.is_empty() {
            return None;
        }
        let error = self.calls.remove(&answer.get_answer_id())?;
        Some(made::failed(answer, &error))
    }

    /// Tells whether this `Finish` is for a call whose results were replaced.
    pub(super) fn finishes(&mut self, call: u32) -> bool {
        !self.answers.is_empty() && self.answers.remove(&call)
    }
}

/// The error as it may be sent: of bounded length, and without the prefixes that receivers added.
///
/// The text may come from anywhere: a client may choose it, and a class may repeat it.
pub fn error_to_send(error: Error) -> Error {
    match sendable(&error.extra) {
        Cow::Borrowed(same) if same.len() == error.extra.len() => error,
        text => Error { extra: text.into_owned(), kind: error.kind },
    }
}

fn sendable(text: &str) -> Cow<'_, str> {
    let own = said(text);
    if own.len() <= ERROR_BYTES_MAX {
        return Cow::Borrowed(own);
    }
    let note = format!(" ... (cut; it had {} bytes)", own.len());
    let end = own.floor_char_boundary(ERROR_BYTES_MAX - note.len());
    Cow::Owned(format!("{}{note}", &own[..end]))
}

fn changed(exception: exception::Reader) -> capnp::Result<Option<Error>> {
    // Text that isn't UTF-8 is the receiver's problem; its length is bounded elsewhere.
    let reason = exception.get_reason()?;
    let text = String::from_utf8_lossy(reason.as_bytes());
    let kind = match exception.get_type() {
        Ok(exception::Type::Overloaded) => ErrorKind::Overloaded,
        Ok(exception::Type::Disconnected) => ErrorKind::Disconnected,
        Ok(exception::Type::Unimplemented) => ErrorKind::Unimplemented,
        _ => ErrorKind::Failed,
    };
    let sent = sendable(&text);
    let is_same = sent.as_bytes() == reason.as_bytes();
    Ok((!is_same).then(|| Error { extra: sent.into_owned(), kind }))
}

/// The error cut to the length that may be sent, or `None` if it came no longer.
pub(super) fn shortened(exception: exception::Reader) -> capnp::Result<Option<Error>> {
    let is_long = exception.get_reason()?.len() > ERROR_BYTES_MAX;
    if is_long { changed(exception) } else { Ok(None) }
}

/// The reason why a message isn't sent, if there is one.
fn excess(bytes: usize, caps: Caps) -> Option<Error> {
    let capabilities = caps.len() as usize;
    if bytes > MESSAGE_BYTES_SENT_MAX {
        Some(too_large(bytes))
    } else if capabilities > CAPABILITIES_SENT_MAX {
        Some(too_many_capabilities(capabilities))
    } else {
        None
    }
}

/// The error for the caller of a message or answer that would have this many bytes.
pub fn too_large(bytes: usize) -> Error {
    let max = MESSAGE_BYTES_SENT_MAX;
    Reason::TooLarge.error(format_args!("a message of {bytes} bytes; at most {max} can be sent"))
}

/// The error for the caller of a message or answer that would have this many capabilities.
pub fn too_many_capabilities(count: usize) -> Error {
    let max = CAPABILITIES_SENT_MAX;
    Reason::TooManyCapabilities
        .error(format_args!("{count} in one message; at most {max} can be sent"))
}

/// A call of a method that no interface has, in place of another call.
fn refused(call: call::Reader) -> capnp::Result<Outgoing> {
    let mut message = Builder::new_default();
    let mut made = message.init_root::<message::Builder>().init_call();
    made.set_question_id(call.get_question_id());
    made.set_method_id(u16::MAX);
    let mut to = made.init_target();
    match call.get_target()?.which()? {
        message_target::ImportedCap(id) => to.set_imported_cap(id),
        message_target::PromisedAnswer(answer) => to.set_promised_answer(answer?)?,
    }
    Ok(message)
}

/// Our capabilities in a message.
fn given(caps: Caps) -> capnp::Result<Vec<u32>> {
    let mut given = Vec::new();
    for cap in caps {
        given.extend(export(cap)?);
    }
    Ok(given)
}

fn export(cap: cap_descriptor::Reader) -> capnp::Result<Option<u32>> {
    Ok(match cap.which()? {
        cap_descriptor::SenderHosted(id) | cap_descriptor::SenderPromise(id) => Some(id),
        _ => None,
    })
}

fn has_promises(caps: Caps) -> capnp::Result<bool> {
    for cap in caps {
        if let cap_descriptor::SenderPromise(_) = cap.which()? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Describes the promises in a message as capabilities hosted here.
pub(super) fn host_promises(message: &mut Outgoing) -> capnp::Result<()> {
    let payload = match message.get_root::<message::Builder>()?.which()? {
        message::Call(call) => call?.get_params()?,
        message::Return(answer) => match answer?.which()? {
            return_::Results(payload) => payload?,
            _ => return Ok(()),
        },
        _ => return Ok(()),
    };
    let mut caps = payload.get_cap_table()?;
    for at in 0..caps.len() {
        let mut cap = caps.reborrow().get(at);
        if let cap_descriptor::SenderPromise(id) = cap.reborrow_as_reader().which()? {
            cap.set_sender_hosted(id);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_cut_at_a_character_and_say_so() {
        let whole = "x".repeat(ERROR_BYTES_MAX);
        assert_eq!(sendable(&whole), whole);
        let long = "€".repeat(ERROR_BYTES_MAX);
        let cut = sendable(&long);
        assert!(cut.len() <= ERROR_BYTES_MAX && cut.len() > ERROR_BYTES_MAX - 8);
        assert!(cut.ends_with(&format!("€ ... (cut; it had {} bytes)", long.len())), "{cut:.20}");
    }

    #[test]
    fn what_receivers_put_before_an_error_is_not_sent() {
        assert_eq!(sendable("remote exception: remote exception: full"), "full");
        assert_eq!(sendable("a remote exception: full"), "a remote exception: full");
    }
}
