//! Giving away less than one has: as a reference that lasts, or as a live capability.
//!
//! The object does the work: every object answers the calls `save` and `attenuate`.

use std::time::{SystemTime, UNIX_EPOCH};

use capnp::capability::{Client, FromClientHook};
use capnp::struct_list;

use crate::facet_capnp::{caveats, facet, methods, persistent, terms};
use crate::interface::Interface;
use crate::sturdyref::{Caveats, Methods, VerifyingKey};

/// The terms of a grant: its receiver, and the little that it allows.
///
/// By default a grant allows all that its maker has, and ends with the grant that it was made from.
///
/// ```
/// use std::time::{Duration, SystemTime};
///
/// use capstead_client::{Result, Terms};
/// use capstead_client::http_capnp::http_service; // in your own crate: the client of your objects
///
/// /// For Ada, who may ask for a day and do nothing else.
/// fn for_ada() -> Result<Terms> {
///     let tomorrow = SystemTime::now() + Duration::from_secs(24 * 60 * 60);
///     Terms::new("Ada").until(tomorrow).methods::<http_service::Client>(["request"])
/// }
/// # assert_eq!(for_ada().unwrap().label(), "Ada");
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Terms {
    label: String,
    restrictions: Caveats,
    independent: bool,
    allows_independent: bool,
}

impl Terms {
    /// Terms without restrictions. The label, of at most 256 bytes, names the receiver or the
    /// purpose.
    pub fn new(label: impl Into<String>) -> Self {
        Self { label: label.into(), ..Self::default() }
    }

    /// Only these methods may be called: names in the schema of `C`, such as `read` or
    /// `Counter.read`, or in the interfaces that every object answers, such as `Facet.grants`.
    ///
    /// # Errors
    /// A name has no method, or more than one; the error lists the methods that exist.
    pub fn methods<'a, C: Interface>(
        self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> crate::Result<Self> {
        Ok(self.caveats(&Caveats::none().with_methods_of::<C>(names)?))
    }

    /// For a namespace: only these methods of its objects may be called, named as for
    /// [`methods`](Self::methods).
    ///
    /// # Errors
    /// As for [`methods`](Self::methods).
    pub fn object_methods<'a, C: Interface>(
        self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> crate::Result<Self> {
        Ok(self.caveats(&Caveats::none().with_object_methods_of::<C>(names)?))
    }

    /// The grant is valid up to and including this time.
    pub fn until(self, time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        self.caveats(&Caveats::not_after(ms))
    }

    /// Restoring the reference takes a proof with the secret of this key.
    ///
    /// # Errors
    /// The key is weak.
    pub fn holder(self, key: VerifyingKey) -> crate::Result<Self> {
        Ok(self.caveats(&Caveats::none().with_holder(key)?))
    }

    /// Adds these restrictions to those that the terms already have.
    pub fn caveats(mut self, caveats: &Caveats) -> Self {
        self.restrictions = self.restrictions.and(caveats);
        self
    }

    /// The grant survives the one that it is made from, which must allow that.
    pub fn independent(mut self) -> Self {
        self.independent = true;
        self
    }

    /// Grants made from this one may survive it.
    pub fn allow_independent(mut self) -> Self {
        self.allows_independent = true;
        self
    }

    /// The receiver's name, or the purpose.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// All restrictions of the terms together.
    pub fn restrictions(&self) -> &Caveats {
        &self.restrictions
    }

    /// Tells whether the grant survives the one that it is made from.
    pub fn is_independent(&self) -> bool {
        self.independent
    }

    /// Tells whether grants made from this one may survive it.
    pub fn allows_independent(&self) -> bool {
        self.allows_independent
    }

    /// Writes the terms into a call's parameters.
    #[doc(hidden)]
    pub fn write(&self, mut to: terms::Builder<'_>) {
        to.set_label(&*self.label);
        to.set_independent(self.independent);
        to.set_allow_independent(self.allows_independent);
        write_caveats(to.init_caveats(), &self.restrictions);
    }
}

/// Makes a reference, a text to give away, to the object or namespace that `of` stands for. **The
/// text is a secret**: anyone who has it can use it, until its grant expires or is revoked.
///
/// The call is made at once, even if the returned future is never polled.
///
/// ```no_run
/// use capstead_client::{Result, Terms, namespace};
///
/// /// A reference by which Ada reaches objects that are there, and makes no new ones.
/// async fn for_ada(rooms: &namespace::Client) -> Result<String> {
///     let terms = Terms::new("Ada").methods::<namespace::Client>(["tryGet"])?;
///     capstead_client::share(rooms, terms).await
/// }
/// # drop(for_ada);
/// ```
///
/// # Errors
/// The object can't be reached, or its server refused: see `Persistent` in `schema/facet.capnp`.
/// After `disconnected` there may be a grant with a reference that nobody has.
pub fn share<C: FromClientHook>(
    of: &C,
    terms: Terms,
) -> impl Future<Output = crate::Result<String>> + use<C> {
    let of = persistent::Client { client: Client::new(of.as_client_hook().add_ref()) };
    let mut request = of.save_request();
    terms.write(request.get().init_seal_for());
    let reply = request.send().promise;
    async move { Ok(reply.await?.get()?.get_sturdy_ref()?.to_string()?) }
}

/// The same object with less authority: a capability that ends with the grant of `of`. This waits
/// for nothing: call the result at once, or give it away.
///
/// ```no_run
/// use capstead_client::sturdyref::Caveats;
/// use capstead_client::{Result, namespace};
///
/// /// The same rooms, where no new ones can be made.
/// fn without_making(rooms: &namespace::Client) -> Result<namespace::Client> {
///     let less = Caveats::none().with_methods_of::<namespace::Client>(["tryGet"])?;
///     Ok(capstead_client::attenuate(rooms, &less))
/// }
/// # drop(without_making);
/// ```
pub fn attenuate<C: FromClientHook>(of: &C, caveats: &Caveats) -> C {
    let of = facet::Client { client: Client::new(of.as_client_hook().add_ref()) };
    let mut request = of.attenuate_request();
    write_caveats(request.get().init_caveats(), caveats);
    request.send().pipeline.get_facet().as_cap().cast_to()
}

/// Writes restrictions into the message of a call or an answer.
pub fn write_caveats(mut to: caveats::Builder<'_>, caveats: &Caveats) {
    if let Some(last) = caveats.not_after_ms() {
        to.set_not_after(last);
    }
    to.set_dependent(caveats.is_dependent());
    let holders = caveats.holders();
    let mut keys = to.reborrow().init_holders(holders.len() as u32);
    for (at, holder) in (0..).zip(holders) {
        keys.set(at, holder.as_bytes());
    }
    if let Some(methods) = caveats.methods() {
        write_methods(methods, |count| to.reborrow().init_methods(count));
    }
    if let Some(methods) = caveats.object_methods() {
        write_methods(methods, |count| to.reborrow().init_object_methods(count));
    }
}

fn write_methods<'a>(
    methods: &Methods,
    init: impl FnOnce(u32) -> struct_list::Builder<'a, methods::Owned>,
) {
    let by_interface = methods.by_interface();
    let mut list = init(by_interface.len() as u32);
    for (at, (interface, methods)) in (0..).zip(by_interface) {
        let mut of_interface = list.reborrow().get(at);
        of_interface.set_interface(interface);
        let mut ordinals = of_interface.init_ordinals(methods.len() as u32);
        for (at, ordinal) in (0..).zip(methods) {
            ordinals.set(at, *ordinal);
        }
    }
}
