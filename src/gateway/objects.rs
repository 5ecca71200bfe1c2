//! The objects that requests have asked for lately: a capability that is held need not be asked
//! for.
//!
//! Invariant: after [`Objects::forget_all`] nothing is used that was got before.

use std::cell::RefCell;
use std::collections::HashMap;
use std::num::NonZeroUsize;

use capnp::capability::FromClientHook;
use lru::LruCache;

use super::route::Route;
use crate::error::Result;
use crate::schema::http_capnp::http_service;
use crate::schema::restorer_capnp::{namespace, restorer};

/// Holding a capability keeps no object awake, so a few too many do no harm.
const KNOWN_MAX: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// A class as a gateway was given it.
pub(crate) struct Given {
    /// As it got it at first; none if its grant was revoked before.
    pub(crate) namespace: Option<namespace::Client>,
    /// Restores its reference again. The answer isn't waited for.
    pub(crate) again: Box<dyn Fn() -> Result<namespace::Client>>,
}

/// One that is used.
struct Held {
    /// None while nobody has asked for it since it was forgotten.
    namespace: RefCell<Option<namespace::Client>>,
    again: Box<dyn Fn() -> Result<namespace::Client>>,
}

impl Held {
    fn get(&self) -> Result<namespace::Client> {
        if let Some(namespace) = &*self.namespace.borrow() {
            return Ok(namespace.clone());
        }
        let namespace = (self.again)()?;
        self.namespace.replace(Some(namespace.clone()));
        Ok(namespace)
    }
}

/// The namespaces of a gateway, and capabilities that they gave, or that references stand for.
pub(super) struct Objects {
    restorer: restorer::Client,
    /// By the lower-case name of the class.
    namespaces: HashMap<String, Held>,
    /// By the part of the path that names the object.
    known: RefCell<LruCache<Box<str>, http_service::Client>>,
}

impl Objects {
    pub(super) fn new(
        namespaces: impl Iterator<Item = (String, Given)>,
        restorer: restorer::Client,
    ) -> Self {
        let namespaces = namespaces.map(|(class, Given { namespace, again })| {
            (class.to_lowercase(), Held { namespace: RefCell::new(namespace), again })
        });
        let known = RefCell::new(LruCache::new(KNOWN_MAX));
        Self { restorer, namespaces: namespaces.collect(), known }
    }

    /// `None`: there is no such class.
    ///
    /// # Errors
    /// When the namespace had to be asked for, and couldn't be.
    pub(super) fn get(&self, route: &Route<'_>) -> Result<Option<http_service::Client>> {
        if let Some(object) = self.known.borrow_mut().get(&*route.object) {
            return Ok(Some(object.clone()));
        }
        let object = if let Some(reference) = &route.reference {
            let mut restore = self.restorer.restore_request();
            restore.get().set_sturdy_ref(reference.expose());
            restore.send().pipeline.get_cap().as_cap()
        } else {
            let held = self.namespaces.get(&route.class.to_lowercase());
            let Some(held) = held else { return Ok(None) };
            let mut by_name = held.get()?.by_name_request();
            by_name.get().set_key(&*route.name);
            by_name.send().pipeline.get_object().as_cap()
        };
        let object: http_service::Client = FromClientHook::new(object);
        // The drop of the one that makes room may call back.
        let dropped = self.known.borrow_mut().push((*route.object).into(), object.clone());
        drop(dropped);
        Ok(Some(object))
    }

    /// Makes sure that the reference of a route was restored lately.
    ///
    /// # Errors
    /// When it isn't restored.
    pub(super) async fn restore(&self, route: &Route<'_>) -> Result<()> {
        let Some(reference) = &route.reference else { return Ok(()) };
        if self.known.borrow_mut().get(&*route.object).is_some() {
            return Ok(());
        }
        let mut restore = self.restorer.restore_request();
        restore.get().set_sturdy_ref(reference.expose());
        let restored = restore.send().promise.await?;
        let object = restored.get()?.get_cap().get_as_capability()?;
        let dropped = self.known.borrow_mut().push((*route.object).into(), object);
        drop(dropped);
        Ok(())
    }

    /// The namespace of a class; none if there is no such class.
    ///
    /// # Errors
    /// As for [`get`](Self::get).
    pub(super) fn namespace(&self, class: &str) -> Result<Option<namespace::Client>> {
        self.namespaces.get(&class.to_lowercase()).map(Held::get).transpose()
    }

    /// Tells whether there is a class of that name, in lower case.
    pub(super) fn has(&self, class: &str) -> bool {
        self.namespaces.contains_key(class)
    }

    fn forget_known(&self) {
        let dropped = self.known.replace(LruCache::new(KNOWN_MAX));
        drop(dropped);
    }

    /// The namespace of a class broke, or its grant was revoked.
    pub(super) fn forget_namespace(&self, class: &str) {
        // Those of other classes are asked for again, too.
        self.forget_known();
        self.forget_broken(class);
    }

    /// The namespace of a class may have broken, and what it gave may work on.
    pub(super) fn forget_broken(&self, class: &str) {
        let held = self.namespaces.get(&class.to_lowercase());
        let dropped = held.and_then(|held| held.namespace.take());
        drop(dropped);
    }

    /// A capability broke, which it stays for ever: the next request gets another.
    pub(super) fn forget(&self, route: &Route<'_>) {
        let dropped = self.known.borrow_mut().pop(&*route.object);
        drop(dropped);
    }

    /// The grant of the class's namespace, or of the reference, was revoked. It may be in force
    /// again when its reference is restored the next time.
    pub(super) fn forget_revoked(&self, route: &Route<'_>) {
        if route.reference.is_some() {
            return self.forget(route);
        }
        self.forget_namespace(route.class);
    }

    /// Some of all capabilities broke, namespaces perhaps too.
    pub(super) fn forget_all(&self) {
        self.forget_known();
        for held in self.namespaces.values() {
            drop(held.namespace.take());
        }
    }
}
