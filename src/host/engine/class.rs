//! A class as its host knows it: a name, plain function pointers, and the classes that it may
//! reach.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use capnp::capability::FromServer;

use crate::host::api::context::Context;
use crate::error::Result;
use crate::limits::OBJECT_BYTES_MAX;
use crate::membrane::{Dispatch, dispatch};

/// A class of durable objects: Rust code behind a Cap'n Proto interface.
///
/// An instance is one value on one thread, so its fields need neither locks nor `Send`. Its methods
/// are those of the generated `Server` trait.
pub trait Object: Sized + 'static {
    /// The name of the class. It is part of the identity of every named object: never change it.
    const CLASS: &'static str;

    /// True if an object runs one call at a time. By default calls of one object interleave where
    /// they await; code without an await is atomic in any case.
    ///
    /// A call to an exclusive object waits until those before it have ended, for at most 30 seconds: then
    /// it is refused as overloaded, and has not happened. A call that would wait for itself, since the
    /// object called somebody who calls it back, gets an error that says `deadlock:`, and so does one of
    /// two exclusive objects that call each other.
    const EXCLUSIVE: bool = false;

    /// The methods that can be called: the id of the interface, the number, and the name of each.
    /// `capstead-build` generates them beside the interface: `counter_capnp::ALL_METHODS`. Where there are some,
    /// the operator's `grant --method` refuses all others.
    const METHODS: &'static [(u64, u16, &'static str)] = &[];

    /// The generated client of the interface, for instance `counter::Client`.
    type Client: FromServer<Self>;

    /// Wakes the object from its storage. It ends before the first call starts.
    ///
    /// It runs for a new object too, which has an empty storage then. It may write. A call to which it leads
    /// back at its own object gets an error that says `deadlock:`, and it may take at most 30 seconds: then
    /// the calls that wait are refused as overloaded, and have not happened.
    ///
    /// # Errors
    /// When it fails, every call that waits for the object gets the error, what it wrote stays,
    /// and the next call tries again.
    fn wake(ctx: Context) -> impl Future<Output = Result<Self>>;
}

type Waking = Pin<Box<dyn Future<Output = Result<Rc<dyn Dispatch>>>>>;

/// A class as registered. It holds no state, so that every host thread can have it.
#[derive(Clone)]
pub(crate) struct Class {
    pub(crate) name: &'static str,
    wake: fn(Context) -> Waking,
    pub(crate) is_exclusive: bool,
    /// Those of its objects; empty if they aren't known.
    pub(in crate::host) methods: &'static [(u64, u16, &'static str)],
    /// Which of the host's classes it is.
    pub(in crate::host) number: u32,
    pub(crate) bindings: Vec<Binding>,
    /// The most that one object may store, in bytes.
    pub(crate) object_limit: u64,
    /// The most that all objects of a host may store together, in bytes.
    pub(crate) total_limit: Option<u64>,
}

/// The right of one class to reach the objects of another, under a name of its own.
#[derive(Clone, Debug)]
pub(crate) struct Binding {
    pub(crate) name: String,
    pub(crate) class: &'static str,
}

impl Class {
    pub(crate) fn of<C: Object>() -> Self {
        let (bindings, object_limit, total_limit) = (Vec::new(), OBJECT_BYTES_MAX, None);
        let (name, wake, is_exclusive) = (C::CLASS, wake::<C> as fn(_) -> _, C::EXCLUSIVE);
        let (methods, number) = (C::METHODS, 0);
        Self { name, wake, is_exclusive, methods, number, bindings, object_limit, total_limit }
    }

    pub(in crate::host) fn wake(&self, ctx: Context) -> Waking {
        (self.wake)(ctx)
    }
}

fn wake<C: Object>(ctx: Context) -> Waking {
    Box::pin(async move {
        let object = Rc::new(C::wake(ctx).await?);
        Ok(dispatch::<C::Client, C>(object))
    })
}

impl fmt::Debug for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Class")
            .field("name", &self.name)
            .field("bindings", &self.bindings)
            .finish_non_exhaustive()
    }
}
