//! The objects that requests have asked for lately: a capability that is held need not be asked for.

use std::cell::RefCell;
use std::collections::HashMap;

use capnp::capability::FromClientHook;

use super::route::Route;
use crate::schema::http_capnp::http_service;
use crate::schema::restorer_capnp::namespace;

/// Holding a capability keeps no object awake, so a few too many do no harm.
const KNOWN_MAX: usize = 4096;

/// The namespaces of a gateway, and capabilities that they gave.
pub(super) struct Objects {
    /// By the lower-case name of the class.
    namespaces: HashMap<String, namespace::Client>,
    /// By the part of the path that names the object.
    known: RefCell<HashMap<Box<str>, http_service::Client>>,
}

impl Objects {
    pub(super) fn new(namespaces: impl Iterator<Item = (String, namespace::Client)>) -> Self {
        let namespaces = namespaces.map(|(class, namespace)| (class.to_lowercase(), namespace));
        Self { namespaces: namespaces.collect(), known: RefCell::default() }
    }

    /// `None`: there is no such class.
    pub(super) fn get(&self, route: &Route<'_>) -> Option<http_service::Client> {
        if let Some(object) = self.known.borrow().get(route.object) {
            return Some(object.clone());
        }
        let mut by_name = self.namespaces.get(&route.class.to_lowercase())?.by_name_request();
        by_name.get().set_key(&*route.key);
        let object = by_name.send().pipeline.get_object().as_cap();
        let object: http_service::Client = FromClientHook::new(object);
        let mut known = self.known.borrow_mut();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(route.object.into(), object.clone());
        Some(object)
    }

    /// A capability broke, which it stays for ever: the next request gets another.
    pub(super) fn forget(&self, route: &Route<'_>) {
        self.known.borrow_mut().remove(route.object);
    }
}
