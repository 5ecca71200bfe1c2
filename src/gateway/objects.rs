//! The objects that requests have asked for lately: a held capability need not be asked for.
//!
//! Invariants:
//! - After [`ObjectCache::forget_all`] no capability is used that came before it.
//! - A capability that didn't come is asked for again, for whatever reason.

use std::cell::RefCell;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::rc::Rc;

use capnp::capability::{FromClientHook, Promise, RemotePromise, Response};
use capnp::private::capability::ClientHook;
use lru::LruCache;

use super::route::Route;
use crate::error::Result;
use crate::schema::http_capnp::http_service;
use crate::schema::restorer_capnp::{namespace, restorer};

/// The restore of a namespace.
pub(crate) type NamespaceRestore = RemotePromise<restorer::restore_results::Owned>;

/// Holding a capability keeps no object awake, so a few too many do no harm.
const KNOWN_MAX: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// A class as the gateway was given it.
pub(crate) struct Given {
    /// The namespace that it got at first; none if the grant was revoked before.
    pub(crate) namespace: Option<namespace::Client>,
    /// Restores its reference again.
    pub(crate) again: Box<dyn Fn() -> Result<NamespaceRestore>>,
}

/// One that is used.
struct Held {
    /// None from when it is forgotten until it is asked for.
    namespace: Rc<RefCell<Option<namespace::Client>>>,
    again: Box<dyn Fn() -> Result<NamespaceRestore>>,
}

impl Held {
    fn get(&self) -> Result<namespace::Client> {
        if let Some(namespace) = &*self.namespace.borrow() {
            return Ok(namespace.clone());
        }
        // The answer isn't waited for.
        let NamespaceRestore { promise, pipeline } = (self.again)()?;
        let namespace: namespace::Client = FromClientHook::new(pipeline.get_cap().as_cap());
        self.namespace.replace(Some(namespace.clone()));
        let (held, failed) = (self.namespace.clone(), namespace.clone());
        unless_got(promise, move || {
            let dropped = held.borrow_mut().take_if(|held| is_same(held, &failed));
            drop(dropped);
        });
        Ok(namespace)
    }
}

/// The latest ones, by the part of the path that names the object.
type LatestObjects = LruCache<Box<str>, http_service::Client>;

/// Forgets what was promised if it doesn't come: otherwise it would fail for ever.
fn unless_got<T>(promised: Promise<Response<T>, capnp::Error>, forget: impl FnOnce() + 'static)
where
    T: capnp::traits::Owned + 'static,
{
    // It ends with the answer, or with the link of the answer.
    tokio::task::spawn_local(async move {
        if promised.await.is_err() {
            forget();
        }
    });
}

/// Tells whether both are the same copy of one capability: others may have come in its place.
fn is_same<C: FromClientHook>(one: &C, other: &C) -> bool {
    one.as_client_hook().get_ptr() == other.as_client_hook().get_ptr()
}

/// The namespaces of a gateway, and the capabilities of their objects and of references.
pub(super) struct ObjectCache {
    restorer: restorer::Client,
    /// By the lower-case name of the class.
    namespaces: HashMap<String, Held>,
    known: Rc<RefCell<LatestObjects>>,
}

impl ObjectCache {
    pub(super) fn new(
        namespaces: impl Iterator<Item = (String, Given)>,
        restorer: restorer::Client,
    ) -> Self {
        let namespaces = namespaces.map(|(class, Given { namespace, again })| {
            (class.to_lowercase(), Held { namespace: Rc::new(RefCell::new(namespace)), again })
        });
        let known = Rc::new(RefCell::new(LruCache::new(KNOWN_MAX)));
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
            let RemotePromise { promise, pipeline } = restore.send();
            self.know(route, pipeline.get_cap().as_cap(), promise)
        } else {
            let held = self.namespaces.get(&route.class.to_lowercase());
            let Some(held) = held else { return Ok(None) };
            let mut by_name = held.get()?.by_name_request();
            by_name.get().set_key(&*route.name);
            let RemotePromise { promise, pipeline } = by_name.send();
            self.know(route, pipeline.get_object().as_cap(), promise)
        };
        Ok(Some(object))
    }

    /// The object of a route, which other requests use, too, unless `promised` fails.
    fn know<T>(
        &self,
        route: &Route<'_>,
        object: Box<dyn ClientHook>,
        promised: Promise<Response<T>, capnp::Error>,
    ) -> http_service::Client
    where
        T: capnp::traits::Owned + 'static,
    {
        let object: http_service::Client = FromClientHook::new(object);
        let path: Box<str> = (*route.object).into();
        // Dropping the one that makes room may call back.
        let dropped = self.known.borrow_mut().push(path.clone(), object.clone());
        drop(dropped);
        let (known, failed) = (self.known.clone(), object.clone());
        unless_got(promised, move || {
            let mut known = known.borrow_mut();
            let is_there = known.peek(&path).is_some_and(|object| is_same(object, &failed));
            let dropped = is_there.then(|| known.pop(&path));
            drop(known);
            drop(dropped);
        });
        object
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

    /// The namespace of a class may have broken, while its objects may work on.
    pub(super) fn forget_broken(&self, class: &str) {
        let held = self.namespaces.get(&class.to_lowercase());
        let dropped = held.and_then(|held| held.namespace.take());
        drop(dropped);
    }

    /// A capability broke, for good: the next request gets another one.
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::super::route::Reference;
    use super::*;
    use crate::error::{Reason, conflict};
    use crate::schema::restorer_capnp::restorer as schema;

    /// Fails at first, and gives a capability then.
    struct Later {
        failures: Cell<u32>,
        error: capnp::Error,
    }

    impl schema::Server for Later {
        async fn restore(
            self: Rc<Self>,
            _: schema::RestoreParams,
            mut results: schema::RestoreResults,
        ) -> Result<()> {
            // Callers have the promise before the answer.
            tokio::task::yield_now().await;
            if let Some(left) = self.failures.get().checked_sub(1) {
                self.failures.set(left);
                return Err(self.error.clone());
            }
            let object: http_service::Client = crate::membrane::serve(Rc::new(Answers));
            results.get().init_cap().set_as_capability(object.into_client_hook());
            Ok(())
        }
    }

    /// Exists: the error of its one method says so.
    struct Answers;

    impl http_service::Server for Answers {
        async fn request(
            self: Rc<Self>,
            _: http_service::RequestParams,
            _: http_service::RequestResults,
        ) -> Result<()> {
            Err(conflict("it was called"))
        }
    }

    impl namespace::Server for Answers {
        async fn by_name(
            self: Rc<Self>,
            _: namespace::ByNameParams,
            mut results: namespace::ByNameResults,
        ) -> Result<()> {
            let object: http_service::Client = crate::membrane::serve(Rc::new(Self));
            results.get().init_object().set_as_capability(object.into_client_hook());
            Ok(())
        }
    }

    fn later(error: &capnp::Error) -> restorer::Client {
        let (failures, error) = (Cell::new(1), error.clone());
        crate::membrane::serve(Rc::new(Later { failures, error }))
    }

    /// The reason for which a call of the object fails.
    async fn reason(objects: &ObjectCache, route: &Route<'_>) -> Option<Reason> {
        let object = objects.get(route).unwrap().expect("there is such a class");
        let called = object.request_request().send().promise.await;
        // All that wait for the same answer get it, too.
        tokio::task::yield_now().await;
        Reason::of(&called.err().expect("no request succeeds"))
    }

    /// An import that was going on when somebody asked is no concern of those who ask afterwards.
    #[test]
    fn what_could_not_be_restored_is_restored_again() {
        let runtime = tokio::runtime::LocalRuntime::new().unwrap();
        runtime.block_on(async {
            for word in [Reason::ImportUnfinished, Reason::Damaged, Reason::LowSpace] {
                let objects = ObjectCache::new([].into_iter(), later(&word.error("for now")));
                let route = Route::held("Counter", Reference::new("capstead:x"), "/".into());
                assert_eq!(reason(&objects, &route).await, Some(word));
                for _ in 0..2 {
                    assert_eq!(reason(&objects, &route).await, Some(Reason::Conflict), "{word}");
                }
                assert_eq!(objects.known.borrow().len(), 1);
            }
        });
    }

    #[test]
    fn one_that_came_in_the_place_of_one_that_failed_is_kept() {
        let runtime = tokio::runtime::LocalRuntime::new().unwrap();
        runtime.block_on(async {
            let error = Reason::ImportUnfinished.error("for now");
            let objects = ObjectCache::new([].into_iter(), later(&error));
            let route = Route::held("Counter", Reference::new("capstead:x"), "/".into());
            let failing = objects.get(&route).unwrap().unwrap();
            objects.forget(&route);
            let good = objects.get(&route).unwrap().unwrap();
            for object in [failing, good] {
                assert!(object.request_request().send().promise.await.is_err());
            }
            tokio::task::yield_now().await;
            assert_eq!(objects.known.borrow().len(), 1);
            assert_eq!(reason(&objects, &route).await, Some(Reason::Conflict));
        });
    }

    #[test]
    fn a_namespace_that_could_not_be_restored_is_restored_again() {
        let runtime = tokio::runtime::LocalRuntime::new().unwrap();
        runtime.block_on(async {
            let failed = Cell::new(false);
            let error = Reason::LowSpace.error("for now");
            let (bad, good) = (later(&error), given());
            let again = Box::new(move || {
                let restorer = if failed.replace(true) { &good } else { &bad };
                Ok(restorer.restore_request().send())
            });
            let given = [("Counter".to_owned(), Given { namespace: None, again: again as _ })];
            let objects = ObjectCache::new(given.into_iter(), later(&error));
            let route = super::super::route::route("/counter/x/").expect("it is one");
            assert_eq!(reason(&objects, &route).await, Some(Reason::LowSpace));
            for _ in 0..2 {
                assert_eq!(reason(&objects, &route).await, Some(Reason::Conflict));
            }
        });
    }

    /// Gives a namespace at once.
    fn given() -> restorer::Client {
        struct Gives;
        impl schema::Server for Gives {
            async fn restore(
                self: Rc<Self>,
                _: schema::RestoreParams,
                mut results: schema::RestoreResults,
            ) -> Result<()> {
                let all: namespace::Client = crate::membrane::serve(Rc::new(Answers));
                results.get().init_cap().set_as_capability(all.into_client_hook());
                Ok(())
            }
        }
        crate::membrane::serve(Rc::new(Gives))
    }
}
