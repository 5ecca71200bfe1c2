//! The abilities of an object: to use its own storage, and to reach the classes that are bound to
//! its own.

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use capnp::capability::{FromClientHook, FromServer};
use capstead_client::Terms;
use capstead_client::sturdyref::GrantId;

use super::alarms::Alarms;
use super::storage::Storage;
use super::stored::{Storable, Stored};
use crate::error::Result;
use crate::host::authority::calls::{self, Granted};
use crate::host::authority::giving::Grantor;
use crate::host::base::right::Right;
use crate::host::engine::ending;
use crate::host::engine::gated::{self, Gated};
use crate::host::state::facet::Maker;
use crate::host::state::instance::Instance;
use crate::http::Sockets;
use crate::membrane::dispatch;

/// An object's access to everything outside its fields. Cheap to clone.
///
/// A context belongs to one instance: when that ends, whatever is done with it fails.
///
/// ```
/// use capstead::classes::Counter;
/// use capstead::counter_capnp::counter;
/// use capstead::{Context, Result};
///
/// /// A counter of the object's own, anonymous and made when it is first needed. The class of the
/// /// object is bound to `Counter` where the server is put together.
/// async fn own_counter(ctx: &Context) -> Result<counter::Client> {
///     if let Some(counter) = ctx.storage().get_ref("counter")? {
///         return Ok(counter);
///     }
///     let counter = ctx.create::<Counter>()?;
///     ctx.storage().put_ref("counter", &counter).await?;
///     Ok(counter)
/// }
/// ```
#[derive(Clone)]
pub struct Context(pub(super) Rc<Instance>);

impl Context {
    pub(in crate::host) fn new(instance: Rc<Instance>) -> Self {
        Self(instance)
    }

    /// The object's name in its namespace; none if it is anonymous.
    pub fn name(&self) -> Option<&str> {
        self.0.spec.name.as_deref()
    }

    /// Milliseconds since 1970, by the clock of the host: it may be put back.
    pub fn now_ms(&self) -> u64 {
        self.0.vat.clock.now_ms()
    }

    /// The object's private, ordered, transactional storage.
    pub fn storage(&self) -> Storage {
        Storage::new(self.0.clone())
    }

    /// The object's durable timers.
    pub fn alarms(&self) -> Alarms {
        Alarms::new(self.0.clone())
    }

    /// The value under `key` in the storage, kept in memory too; the default if there is none.
    ///
    /// # Errors
    /// When the storage can't be read, or holds something else than a `T` under `key`.
    pub fn stored<T: Storable>(&self, key: &str) -> Result<Stored<T>> {
        Stored::load(self.0.clone(), key)
    }

    /// Ends this instance now: what the present turn wrote is dropped, and so is what it sent after
    /// that. Writes of earlier turns become durable, and their replies still leave. All other
    /// callers, and everybody who holds a capability to the object, get a `disconnected` that says
    /// `reason`; a restored reference reaches a fresh instance.
    ///
    /// The method that aborts should return this error; nobody sees another one.
    pub fn abort(&self, reason: impl AsRef<str>) -> capnp::Error {
        ending::abort(&self.0, &format!("was aborted: {}", reason.as_ref()));
        self.0.why_ended()
    }

    /// A capability that the object makes, to give away: a session or a subscription, for instance.
    ///
    /// Calls on it are turns of the object, it keeps the object awake, and it breaks when the
    /// instance ends. `capnp_rpc::new_client` makes one too, but there a streaming method that
    /// fails breaks the capability for all its holders, and calls that waited for a stream may be
    /// overtaken.
    pub fn capability<C: FromServer<S>, S: 'static>(&self, server: Rc<S>) -> C {
        let made = gated::made(&self.0, Maker::Context(dispatch::<C, S>(server)));
        C::new(Gated::wrap(&self.0, made))
    }

    /// The object's WebSockets: it accepts them, and sends on all of them. They outlive this
    /// instance, so [`Object::wake`](crate::Object::wake) finds those that were open before.
    pub fn sockets(&self) -> Sockets {
        Sockets::new(self.0.clone())
    }

    /// Makes a reference to this object, a text to give away, in the present turn. **The text is a
    /// secret**: every holder of it can use it. It is good once the turn is durable, and until it
    /// is revoked.
    ///
    /// ```
    /// use capstead::{Context, Result, Terms, counter_capnp::counter};
    ///
    /// /// A link that can read this counter, and do nothing else.
    /// fn read_only(ctx: &Context) -> Result<String> {
    ///     let terms = Terms::new("readers").methods::<counter::Client>(["read"])?;
    ///     Ok(ctx.grant(terms)?.text)
    /// }
    /// ```
    ///
    /// # Errors
    /// When the label is too long; outside a turn of this object, on a limit, or when the instance
    /// ended. Nothing is written then.
    pub fn grant(&self, terms: Terms) -> Result<Granted> {
        calls::save(&self.0, (&Right::default(), Grantor::Owner), terms)
    }

    /// Takes a grant of this object back, with the present turn: when that ends, its reference, all
    /// that was made from it, and the calls that are made by it end; their callers are told when it
    /// is durable. A turn that panics or is aborted takes nothing back, and neither does a
    /// transaction that is undone.
    ///
    /// # Errors
    /// When there is no such grant; outside a turn of this object, or when the instance ended.
    pub fn revoke(&self, grant: GrantId) -> Result<()> {
        calls::revoke(&self.0, &Right::default(), grant)
    }

    /// The value that the server has for all objects of the class, if it is of this type.
    pub(crate) fn setting<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        self.0.spec.class.setting.clone()?.downcast().ok()
    }

    /// The object's own capability, to give away.
    pub fn this<C: FromClientHook>(&self) -> C {
        C::new(Gated::wrap(&self.0, self.0.vat.facet(&self.0.spec, Right::default())))
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("class", &self.0.spec.class.name).finish_non_exhaustive()
    }
}
