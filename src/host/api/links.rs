//! References in an object's storage: how a capability becomes a value, and a value a capability
//! again.
//!
//! A citation of each capability is stored, encrypted for the object and the key (`sturdyref`). The
//! facets of this vat are cited at once; for any other capability its far end is asked, which says
//! what it stands for to none but this object's host. Storing writes nothing in the target, and its
//! edge is the storage's affair.
//!
//! **Invariant:** a class sees neither ids nor citations; it gets from a value the capability that
//! it put there, and nothing from a copy of the bytes elsewhere.

use std::future::ready;
use std::rc::Rc;
use std::time::Duration;

use capnp::capability::FromClientHook;
use capnp::private::capability::ClientHook;
use capnp::traits::Owned;
use futures::future::Either;

use super::storage::Storage;
use super::stored::{Parts, Struct};
use crate::error::{Reason, Result, overloaded};
use crate::host::authority::records::{self, Standing};
use crate::host::base::right::{GrantRef, Right, revoked};
use crate::host::engine::citing;
use crate::host::engine::gated::Gated;
use crate::host::state::cluster::Existence;
use crate::host::state::facet::Facet;
use crate::host::state::instance::{Instance, Write};
use crate::host::state::slot::ObjectSpec;
use crate::id::ObjectId;
use crate::membrane;
use crate::schema::facet_capnp::facet as facet_schema;
use crate::storage::Space;
use crate::sturdyref::{Authority, Citation, ReferenceValue, holds_references};
use capstead_client::sturdyref::{Caveats, GrantId};

/// The time that the far end of a capability may take to say what it stands for: it needs no turn
/// for that.
const CITE_WAIT: Duration = Duration::from_secs(5);

/// References to objects as values. A reference is good in its own object under its own key alone:
/// a copy of its bytes is worth nothing elsewhere.
impl Storage {
    /// Sets the value under `key` to a reference to an object.
    ///
    /// A capability to an object of this host is stored by the first poll, in its turn. For any
    /// other one its host is asked first, for at most five seconds, and it is stored in the turn of
    /// the answer.
    ///
    /// # Errors
    /// See [`Storage`]; `not-a-reference:` when the capability is no object of this cluster but,
    /// say, a callback or a session, which ends with its maker, or when it is broken; `overloaded`
    /// when its host didn't answer. Nothing was written.
    pub async fn put_ref<C: FromClientHook>(
        &self,
        key: impl AsRef<[u8]>,
        object: &C,
    ) -> Result<()> {
        let citation = cite(&self.0, object.as_client_hook()).await?;
        put(&self.0, key.as_ref(), &[citation], &[])
    }

    /// The capability to the object under `key`, at once: calls on it find their way when they can.
    ///
    /// # Errors
    /// As [`Storage::get`]; `wrong-type:` when there is another value; `sealed-elsewhere:` when the
    /// value was stored by another object, under another key or in another cluster, or is damaged.
    pub fn get_ref<C: FromClientHook>(&self, key: impl AsRef<[u8]>) -> Result<Option<C>> {
        let key = key.as_ref();
        open(&self.0, key, |opened| match (&*opened.citations, opened.message) {
            ([citation], []) => Ok(C::new(capability(&self.0, citation)?)),
            _ => Err(wrong_type(key)),
        })
    }

    /// Sets the value under `key` to a copy of a Cap'n Proto struct with all references to objects
    /// in it, wherever they stand.
    ///
    /// # Errors
    /// As [`Storage::put_ref`], of the first capability that has one; and when the struct can't be
    /// copied. Nothing was written.
    pub async fn put_struct_with_refs<T: Owned>(
        &self,
        key: impl AsRef<[u8]>,
        value: T::Reader<'_>,
    ) -> Result<()> {
        let Parts { message, capabilities } = Parts::copy::<T>(value)?;
        let objects: Option<Vec<_>> = capabilities.iter().map(Option::as_deref).collect();
        let objects = objects.ok_or_else(|| not_a_reference("it is null"))?;
        // All are asked before the first answer is waited for.
        let cited: Vec<_> = objects.into_iter().map(|object| cite(&self.0, object)).collect();
        let mut citations = Vec::with_capacity(cited.len());
        for citation in cited {
            citations.push(citation.await?);
        }
        put(&self.0, key.as_ref(), &citations, &message)
    }

    /// The struct under `key`, with the capabilities in it.
    ///
    /// # Errors
    /// As [`Storage::get_ref`].
    pub fn get_struct_with_refs<T: Owned>(
        &self,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<Struct<T>>> {
        let key = key.as_ref();
        open(&self.0, key, |opened| {
            if opened.message.is_empty() {
                return Err(wrong_type(key));
            }
            let made = opened.citations.iter().map(|citation| capability(&self.0, citation));
            let capabilities = made.map(|made| made.map(Some)).collect::<Result<_>>()?;
            Struct::parse(opened.message, capabilities)
        })
    }
}

/// A citation of the capability. If its host must be asked, that is asked when this is called.
fn cite(
    instance: &Rc<Instance>,
    object: &dyn ClientHook,
) -> impl Future<Output = Result<Citation>> + use<> {
    let gated = membrane::find::<Gated>(object);
    let raw = gated.as_ref().map_or(object, |gated| &*gated.raw);
    match membrane::find::<Facet>(raw) {
        Some(facet) => Either::Left(ready(citing::cite(&facet))),
        None => Either::Right(ask(instance, object)),
    }
}

fn ask(
    instance: &Rc<Instance>,
    object: &dyn ClientHook,
) -> impl Future<Output = Result<Citation>> + use<> {
    let cipher = instance.vat.reference_cipher.clone();
    let owner = cipher.token(instance.spec.id);
    let object: facet_schema::Client = FromClientHook::new(object.add_ref());
    let mut request = object.cite_request();
    request.get().set_owner(&owner);
    let asked = tokio::time::timeout(CITE_WAIT, request.send().promise);
    async move {
        let answer = asked.await.map_err(|_| {
            overloaded("the object's host did not say what the capability stands for: try later")
        })?;
        let answer = answer.map_err(|error| match error.kind {
            capnp::ErrorKind::Overloaded => error,
            _ => not_a_reference(&error.extra),
        })?;
        let citation = cipher.decrypt_citation(&owner, answer.get()?.get_citation()?);
        citation.ok_or_else(|| not_a_reference("it is not of this cluster"))
    }
}

fn not_a_reference(reason: &str) -> capnp::Error {
    Reason::NotAReference.error(format_args!(
        "only capabilities to objects of this cluster can be stored, and no broken \
         ones; store the object that it comes from, or get it anew: {reason}"
    ))
}

fn wrong_type(key: &[u8]) -> capnp::Error {
    Reason::WrongType.error(format_args!("{} has another type", key.escape_ascii()))
}

fn put(instance: &Instance, key: &[u8], citations: &[Citation], message: &[u8]) -> Result<()> {
    let value = instance.vat.reference_cipher.encrypt(
        instance.spec.id,
        key,
        citations,
        message,
        citing::nonce()?,
    );
    let targets = citations.iter().map(|citation| citation.target).collect();
    let write = Write { targets: Some(targets), ..Write::PLAIN };
    instance.write(key, Some(&value), write).map(drop)
}

fn open<T>(
    instance: &Instance,
    key: &[u8],
    read: impl FnOnce(ReferenceValue<'_>) -> Result<T>,
) -> Result<Option<T>> {
    let Some(value) = instance.read(Space::Data, key)? else { return Ok(None) };
    if !holds_references(&value) {
        return Err(wrong_type(key));
    }
    match instance.vat.reference_cipher.decrypt(instance.spec.id, key, &value) {
        Some(opened) => read(opened).map(Some),
        None => Err(Reason::SealedElsewhere.error(format_args!(
            "what is under {} was stored by another object, under another key or \
             in another cluster, or is damaged",
            key.escape_ascii()
        ))),
    }
}

fn capability(instance: &Rc<Instance>, citation: &Citation) -> Result<Box<dyn ClientHook>> {
    Ok(Gated::wrap(instance, stands_for(instance, citation)?))
}

/// The capability that a citation stands for: a promise, if the object lives elsewhere.
///
/// # Errors
/// When the server no longer has the class, or is ending.
fn stands_for(instance: &Instance, citation: &Citation) -> Result<Box<dyn ClientHook>> {
    let vat = &instance.vat;
    let (class, name) =
        (vat.objects.class(&citation.class)?, citation.name.as_deref().map(Into::into));
    let (agent, spec) = (vat.agent()?, ObjectSpec { id: citation.target, class, name });
    let caveats = Caveats::decode(&citation.caveats)?;
    let grant_ref = match &citation.authority {
        Authority::Binding => {
            return agent.object(&spec, Existence::Any, &Right::new(None, caveats));
        }
        Authority::Grant { target, grant } => GrantRef::new(*target, GrantId::from_bytes(*grant)),
    };
    let owns = |id: ObjectId| agent.owns(id.home_shard());
    if !owns(spec.id) {
        return agent.object_elsewhere(&spec, Existence::Any, Some(grant_ref), &caveats);
    }
    match records::standing(vat, grant_ref, &owns)? {
        Standing::InForce(live) => Ok(vat.facet(&spec, Right::new(Some(live), caveats))),
        Standing::Dead if vat.turns.is_settled() => Ok(membrane::broken(revoked())),
        // By way of the router, which can wait for what another host says, and for the disk.
        Standing::Dead | Standing::DependsOn(_) => {
            agent.object_elsewhere(&spec, Existence::Any, Some(grant_ref), &caveats)
        }
    }
}
