//! Request ids: calls that may be made again after their reply was lost.
//!
//! An id travels in a capability, which is made here; the object does the rest. Nothing is kept, and
//! no call is ever made again here: that is for the caller to decide.

use capnp::capability::{Client, FromClientHook};

use crate::facet_capnp::facet;

/// The same object, where the next call has the request id `id`, of 16 to 64 bytes: it is applied at
/// most once, and made again with the same id it is answered with the reply of the first time.
///
/// Nothing is waited for: call what this returns at once.
///
/// ```no_run
/// # use capstead_client::http_capnp::http_service as counter;
/// # async fn example(counter: counter::Client) -> capnp::Result<()> {
/// let id = capstead_client::request_id()?; // keep it as long as the call may have to be repeated
/// let request = capstead_client::once(&counter, &id).request_request(); // and so on, as ever
/// # drop(request);
/// # Ok(())
/// # }
/// ```
///
/// If no reply comes, restore the object again and repeat the call with the same id. An error that
/// says `unknown:` means that the call was begun and cut short, and will never be begun again. See
/// `schema/facet.capnp` for all that can happen.
pub fn once<C: FromClientHook>(object: &C, id: &[u8]) -> C {
    let facet = facet::Client { client: Client::new(object.as_client_hook().add_ref()) };
    let mut request = facet.once_request();
    request.get().set_id(id);
    request.send().pipeline.get_facet().as_cap().cast_to()
}

/// A fresh request id, which nobody can guess. It is for one call.
///
/// # Errors
/// When the operating system gives no randomness.
pub fn request_id() -> crate::Result<[u8; 16]> {
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(|error| capnp::Error::failed(format!("no randomness: {error}")))?;
    Ok(id)
}
