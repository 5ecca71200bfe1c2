//! Request ids: they make a call safe to repeat after its reply was lost.
//!
//! An id travels in a capability, which is made here; the object does the rest. Nothing is kept
//! here, and no call is repeated here: that is the caller's decision.

use capnp::capability::{Client, FromClientHook};

use crate::facet_capnp::facet;

/// The same object, with the request id `id`, of 16 to 64 bytes, for the next call. The call is
/// applied at most once; repeated with the same id, it gets the reply of the first time.
///
/// This waits for nothing: make the call on the result at once.
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
/// begins with `unknown:` means that the call began and was cut short, and will never begin again.
/// `schema/facet.capnp` lists all outcomes.
pub fn once<C: FromClientHook>(object: &C, id: &[u8]) -> C {
    let facet = facet::Client { client: Client::new(object.as_client_hook().add_ref()) };
    let mut request = facet.once_request();
    request.get().set_id(id);
    request.send().pipeline.get_facet().as_cap().cast_to()
}

/// A fresh request id, for one call, which nobody can guess.
///
/// # Errors
/// The operating system gave no randomness.
pub fn request_id() -> crate::Result<[u8; 16]> {
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(|error| capnp::Error::failed(format!("no randomness: {error}")))?;
    Ok(id)
}
