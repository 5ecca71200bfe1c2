//! Turns the text of a reference into a live capability, over shared connections.
//!
//! It verifies nothing: the owner of the target does. It keeps no capability, and doesn't restore
//! one again when a connection breaks, because only the caller knows what that means.

use crate::connection::Connection;
use crate::restorer_capnp::{restoration, restorer};
use crate::sturdyref::{ClusterId, SigningKey, TextReference};
use capnp::Error;
use capnp::capability::FromClientHook;
use futures::FutureExt;
use futures::future::{LocalBoxFuture, Shared};
use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

type Dialling = Shared<LocalBoxFuture<'static, capnp::Result<Connection>>>;

thread_local! {
    /// The connections by address, and by the cluster that the listener there had to prove to
    /// belong to. An entry stays from the start of its dial until the connection has ended.
    static POOL: RefCell<HashMap<(String, Option<ClusterId>), Dialling>> = RefCell::default();
    /// The addresses of owners that could not be reached, and until when nobody dials them again.
    static UNREACHABLE: RefCell<HashMap<String, Instant>> = RefCell::default();
}

/// A dial that nobody answers takes seconds, and the listener passes calls on.
const UNREACHABLE_FOR: Duration = Duration::from_mins(1);

/// Turns the text of a reference into a capability of the type `C`.
///
/// Dials the listener that the text names, asks it where the owner of the target is, and restores
/// there. To other machines, and on this one where the text says so, it uses TLS, and only with
/// servers that prove to belong to the reference's cluster. Calls can be made on the result at
/// once. The connections belong to the thread and are shared: all references to one address use one
/// connection.
///
/// # Errors
/// `failed` if the text isn't that of a reference, or this isn't running in
/// `#[tokio::main(flavor = "local")]`, a `LocalRuntime` or a `LocalSet`; `disconnected` if the
/// listener can't be reached, or doesn't prove its cluster. The refusal of a reference shows either
/// here or in the first call on the result.
pub async fn restore<C: FromClientHook>(text: &str) -> capnp::Result<C> {
    nearest(text).await?.restore(text)
}

/// As [`restore`], for a reference that may be bound to holders: `keys` has the secret keys of all
/// of them.
///
/// # Errors
/// As for [`restore`], and `failed` if a holder's key is not among `keys`.
pub async fn restore_with<C: FromClientHook>(text: &str, keys: &[SigningKey]) -> capnp::Result<C> {
    nearest(text).await?.restore_with(text, keys).await
}

impl Connection {
    /// Turns the text of a reference into a capability of the type `C`, by the peer's
    /// [`Restorer`](crate::restorer_capnp::restorer). The address in the text is ignored.
    ///
    /// Calls can be made on the result at once. The refusal of a reference shows in the first of
    /// them.
    ///
    /// # Errors
    /// The message could not be made.
    pub fn restore<C: FromClientHook>(&self, text: &str) -> capnp::Result<C> {
        let mut request = self.bootstrap::<restorer::Client>().restore_request();
        request.get().set_sturdy_ref(text);
        let answer = request.send();
        let cap = answer.pipeline.get_cap().as_cap();
        // Once the answer is there, calls take the direct way. It comes, or fails with the
        // connection.
        tokio::task::spawn_local(answer.promise.map(drop));
        Ok(C::new(cap))
    }

    /// As [`Connection::restore`], for a reference that may be bound to holders. If it is, the peer
    /// asks for their proofs, and `keys` has the secret keys of all of them. Keys that the
    /// reference doesn't name are not used.
    ///
    /// # Errors
    /// A holder's key is not among `keys`, the reference was refused, or the connection has ended.
    /// The refusal of a proof shows in the first call on the result.
    pub async fn restore_with<C: FromClientHook>(
        &self,
        text: &str,
        keys: &[SigningKey],
    ) -> capnp::Result<C> {
        let parsed = read(text)?;
        if parsed.reference().claimed_caveats()?.holders().is_empty() {
            return self.restore(text);
        }
        let mut request = self.bootstrap::<restorer::Client>().challenge_request();
        request.get().set_sturdy_ref(text);
        let answer = request.send().promise.await?;
        let challenge = answer.get()?.get_challenge()?.try_into();
        let challenge = challenge.map_err(|_| Error::failed("no challenge of 32 bytes".into()))?;
        let signatures = parsed.reference().prove(challenge, keys)?;
        Ok(finish(&answer.get()?.get_restoration()?, &signatures))
    }

    /// Asks the peer where the owner of the reference's target listens, as `host:port`.
    ///
    /// # Errors
    /// The reference was refused, or the connection has ended.
    pub async fn locate(&self, text: &str) -> capnp::Result<String> {
        let mut request = self.bootstrap::<restorer::Client>().locate_request();
        request.get().set_sturdy_ref(text);
        let answer = request.send().promise.await?;
        Ok(answer.get()?.get_address()?.to_str()?.to_owned())
    }
}

fn finish<C: FromClientHook>(restoration: &restoration::Client, signatures: &[[u8; 64]]) -> C {
    let mut request = restoration.finish_request();
    let mut list = request.get().init_signatures(signatures.len() as u32);
    for (index, signature) in (0..).zip(signatures) {
        list.set(index, signature);
    }
    let answer = request.send();
    let cap = answer.pipeline.get_cap().as_cap();
    // As in `restore`.
    tokio::task::spawn_local(answer.promise.map(drop));
    C::new(cap)
}

/// Reads a text that belongs to the caller. Unlike a client of a server, the caller may know what
/// is wrong with it.
///
/// # Errors
/// A sentence that says what is wrong, as far as the text alone shows.
fn read(text: &str) -> capnp::Result<TextReference> {
    let say = |why: &str| {
        Error::failed(format!("the reference was refused: {why}; copy the whole text once more"))
    };
    let parsed = TextReference::parse(text).map_err(|refused| say(refused.reason()))?;
    let changed = |_| say("its text was changed");
    parsed.reference().check_holders_part().map_err(changed)?;
    Ok(parsed)
}

/// The connection to the host that restores the reference with the fewest hops.
async fn nearest(text: &str) -> capnp::Result<Connection> {
    let parsed = read(text)?;
    let at = |address: &str| connect(address.to_owned(), parsed.proof_needed_at(address));
    let listener = at(parsed.address()).await?;
    let owner = listener.locate(text).await?;
    if owner == parsed.address() {
        return Ok(listener);
    }
    // The owner's address is a hint: any listener of the cluster passes calls on.
    let now = Instant::now();
    if UNREACHABLE.with_borrow_mut(|all| {
        all.retain(|_, until| now < *until);
        all.contains_key(&owner)
    }) {
        return Ok(listener);
    }
    Ok(at(&owner).await.unwrap_or_else(|_| {
        UNREACHABLE.with_borrow_mut(|all| all.insert(owner, Instant::now() + UNREACHABLE_FOR));
        listener
    }))
}

/// The thread's connection to `address`. All callers during a dial wait for the same connection.
async fn connect(address: String, prove: Option<ClusterId>) -> capnp::Result<Connection> {
    let dialling = POOL.with_borrow_mut(|pool| {
        pool.retain(|_, dialling| match dialling.peek() {
            Some(Ok(connection)) => !connection.is_closed(),
            Some(Err(_)) => false,
            None => true,
        });
        pool.entry((address.clone(), prove))
            .or_insert_with(|| dial(address, prove).boxed_local().shared())
            .clone()
    });
    dialling.await
}

async fn dial(address: String, prove: Option<ClusterId>) -> capnp::Result<Connection> {
    match prove {
        Some(cluster) => Connection::dial_tls(&address, cluster).await,
        None => Connection::dial(&address).await,
    }
}

#[cfg(test)]
mod tests;
