//! Namespaces as classes have them: the objects of another class, reached through a binding.

use std::fmt;
use std::marker::PhantomData;
use std::rc::Rc;

use capnp::capability::FromClientHook;
use capnp::private::capability::ClientHook;

use super::context::Context;
use super::object::Object;
use crate::error::{Reason, Result, failed};
use crate::host::base::right::Right;
use crate::host::engine::gated::Gated;
use crate::host::state::class::Class;
use crate::host::state::cluster::{Cluster, Existence};
use crate::host::state::instance::Instance;
use crate::host::state::slot::ObjectSpec;
use crate::id::{ObjectId, Pool};
use crate::limits::NAME_BYTES_MAX;

/// The objects of one class, as an object of another class may reach them through its binding.
///
/// ```
/// use capstead::classes::Counter;
/// use capstead::{Context, Result};
///
/// /// Counts a visit of this page. The class got that right by
/// /// `Server::bind::<Page, Counter>("visits")`.
/// async fn count_visit(ctx: &Context, page: &str) -> Result<i64> {
///     let counters = ctx.namespace::<Counter>("visits")?;
///     let reply = counters.get(page)?.increment_request().send().promise.await?;
///     Ok(reply.get()?.get_value())
/// }
///
/// /// As many as were counted; asking makes no counter.
/// async fn visits(ctx: &Context, page: &str) -> Result<i64> {
///     match ctx.namespace::<Counter>("visits")?.try_get(page).await? {
///         Some(counter) => Ok(counter.read_request().send().promise.await?.get()?.get_value()),
///         None => Ok(0),
///     }
/// }
/// ```
pub struct Namespace<C> {
    instance: Rc<Instance>,
    class: Rc<Class>,
    of: PhantomData<C>,
}

impl<C: Object> Namespace<C> {
    fn new(instance: Rc<Instance>) -> Result<Self> {
        let class = instance.vat.objects.class(C::CLASS)?;
        Ok(Self { instance, class, of: PhantomData })
    }

    /// The object called `name`: always the same one. It exists from its first write on.
    ///
    /// # Errors
    /// When the name is empty, or longer than 1,024 bytes.
    pub fn get(&self, name: &str) -> Result<C::Client> {
        let spec = named(&self.class, name)?;
        Ok(self.client(self.agent()?.object(&spec, Existence::Any, &Right::default())?))
    }

    /// The object called `name`, if it exists. Asking never creates it.
    ///
    /// # Errors
    /// As [`Namespace::get`], and when the object's host can't be reached.
    pub async fn try_get(&self, name: &str) -> Result<Option<C::Client>> {
        let spec = named(&self.class, name)?;
        let object = self.agent()?.existing(spec.clone(), Right::default()).await?;
        Ok(object.map(|object| self.client(object)))
    }

    /// A new object without a name, near the one that asks. It exists from its first write on.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn create(&self) -> Result<C::Client> {
        let spec = anonymous(&self.class, self.instance.spec.id)?;
        Ok(self.client(self.agent()?.object(&spec, Existence::Any, &Right::default())?))
    }

    fn agent(&self) -> Result<Rc<dyn Cluster>> {
        self.instance.vat.agent()
    }

    fn client(&self, object: Box<dyn ClientHook>) -> C::Client {
        C::Client::new(Gated::wrap(&self.instance, object))
    }
}

impl Context {
    /// The objects of class `C`, which were bound under `binding` when the server was put together.
    ///
    /// # Errors
    /// When nothing, or another class, is bound under that name. Nothing is created then.
    pub fn namespace<C: Object>(&self, binding: &str) -> Result<Namespace<C>> {
        let class = &self.0.spec.class;
        match class.bindings.iter().find(|bound| bound.name == binding) {
            Some(bound) if bound.class == C::CLASS => Namespace::new(self.0.clone()),
            Some(bound) => Err(Reason::Unbound.error(format_args!(
                "{binding} of class {} leads to {}, not to {}",
                class.name,
                bound.class,
                C::CLASS
            ))),
            None => Err(Reason::Unbound.error(format_args!(
                "class {} has no binding {binding}; add .bind::<{}, {}>({binding:?}) where \
                 the server is put together",
                class.name,
                class.name,
                C::CLASS
            ))),
        }
    }

    /// A new anonymous object of class `C`, through the only binding to it.
    ///
    /// # Errors
    /// When `C` is not bound, or bound more than once. Nothing is created then.
    pub fn create<C: Object>(&self) -> Result<C::Client> {
        let class = &self.0.spec.class;
        let mut bound = class.bindings.iter().filter(|bound| bound.class == C::CLASS);
        match (bound.next(), bound.next()) {
            (Some(_), None) => Namespace::<C>::new(self.0.clone())?.create(),
            (None, _) => Err(Reason::Unbound.error(format_args!(
                "class {} can't reach {}",
                class.name,
                C::CLASS
            ))),
            _ => Err(failed(format!("class {} has several bindings to {}", class.name, C::CLASS))),
        }
    }
}

impl<C: Object> fmt::Debug for Namespace<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Namespace").field("class", &C::CLASS).finish_non_exhaustive()
    }
}

pub(in crate::host) fn named(class: &Rc<Class>, name: &str) -> Result<ObjectSpec> {
    if name.is_empty() {
        return Err(failed("a name must not be empty"));
    }
    if name.len() > NAME_BYTES_MAX {
        let length = name.len();
        return Err(failed(format!(
            "a name of {length} bytes is over the {NAME_BYTES_MAX} allowed"
        )));
    }
    let id = ObjectId::named(Pool::default(), class.name, name);
    Ok(ObjectSpec { id, class: class.clone(), name: Some(name.into()) })
}

pub(in crate::host) fn anonymous(class: &Rc<Class>, near: ObjectId) -> Result<ObjectSpec> {
    let id = ObjectId::anonymous(near.home_shard())
        .map_err(|error| failed(format!("no randomness for a new object: {error}")))?;
    Ok(ObjectSpec { id, class: class.clone(), name: None })
}
