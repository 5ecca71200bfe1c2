//! A class as its host knows it: a name, plain function pointers, and the classes that it may
//! reach.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use capnp::any_pointer;
use capnp::capability::{Params, Promise, Results};
use capstead_client::sturdyref::Method;

use super::facet::Facet;
use super::instance::Instance;
use crate::error::Result;
use crate::host::base::alarm::Alarm;
use crate::limits::OBJECT_BYTES_MAX;
use crate::membrane::Dispatch;

/// The waking of an instance: it gives the code that answers calls.
pub(in crate::host) type Waking = Pin<Box<dyn Future<Output = Result<Rc<dyn Dispatch>>>>>;

/// Wakes the object of an instance.
pub(in crate::host) type Wake = fn(Rc<Instance>) -> Waking;

/// Begins the class's method for an alarm, on the value of an instance.
pub(in crate::host) type FireAlarm = fn(Rc<dyn Any>, Alarm) -> Promise<(), capnp::Error>;

/// Answers the calls of the interfaces `Facet` and `Persistent` that are turns of the object.
pub(in crate::host) type GrantCalls = fn(
    &Rc<Instance>,
    &Facet,
    Method,
    Params<any_pointer::Owned>,
    Results<any_pointer::Owned>,
) -> Promise<(), capnp::Error>;

/// A class as registered. It holds no state but what all threads share, so that every host thread
/// can have it.
#[derive(Clone)]
pub(crate) struct Class {
    pub(crate) name: &'static str,
    pub(in crate::host) wake: Wake,
    pub(in crate::host) alarm: FireAlarm,
    pub(in crate::host) grant_calls: GrantCalls,
    pub(crate) is_exclusive: bool,
    /// The methods of its objects; empty if they aren't known.
    pub(in crate::host) methods: &'static [(u64, u16, &'static str)],
    /// The id of its objects' interface, and the schema of that interface.
    pub(in crate::host) schema: (u64, &'static [u8]),
    /// Its number among the host's classes.
    pub(in crate::host) number: u32,
    pub(crate) bindings: Vec<Binding>,
    /// The most that one object may store, in bytes.
    pub(crate) object_limit: u64,
    /// The most that all objects of a host may store together, in bytes.
    pub(crate) total_limit: Option<u64>,
    /// A value of the server for all of its objects.
    pub(crate) setting: Option<Arc<dyn Any + Send + Sync>>,
    /// The gateway holds its namespace.
    pub(crate) is_open_to_http: bool,
    /// The names of objects that wake when the server starts.
    pub(crate) woken_at_start: Vec<String>,
}

/// The right of one class to reach the objects of another, under a name of its own.
#[derive(Clone, Debug)]
pub(crate) struct Binding {
    pub(crate) name: String,
    pub(crate) class: &'static str,
}

impl Class {
    /// A class whose calls interleave, without bindings, and with the limits of all.
    pub(in crate::host) fn new(
        name: &'static str,
        methods: &'static [(u64, u16, &'static str)],
        schema: (u64, &'static [u8]),
        (wake, alarm, grant_calls): (Wake, FireAlarm, GrantCalls),
    ) -> Self {
        Self {
            name,
            wake,
            alarm,
            grant_calls,
            is_exclusive: false,
            methods,
            schema,
            number: 0,
            bindings: Vec::new(),
            object_limit: OBJECT_BYTES_MAX,
            total_limit: None,
            setting: None,
            is_open_to_http: true,
            woken_at_start: Vec::new(),
        }
    }
}

impl fmt::Debug for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Class")
            .field("name", &self.name)
            .field("bindings", &self.bindings)
            .finish_non_exhaustive()
    }
}

/// The classes of a host by their names, each with its number.
pub(in crate::host) fn numbered(classes: Vec<Class>) -> HashMap<&'static str, Rc<Class>> {
    let numbered = (0..).zip(classes).map(|(number, mut class)| {
        class.number = number;
        (class.name, Rc::new(class))
    });
    numbered.collect()
}
