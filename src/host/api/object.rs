//! The trait by which an author's code becomes a class.

use std::future::Future;
use std::rc::Rc;

use capnp::capability::FromServer;

use super::context::Context;
use crate::error::Result;
use crate::host::authority::granting;
use crate::host::engine::class::{Class, Waking};
use crate::host::engine::instance::Instance;
use crate::membrane::dispatch;

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

/// The class as a host knows it.
pub(crate) fn class_of<C: Object>() -> Class {
    let calls = (wake::<C> as fn(_) -> _, granting::dispatch as _);
    Class::new(C::CLASS, C::EXCLUSIVE, C::METHODS, calls)
}

fn wake<C: Object>(instance: Rc<Instance>) -> Waking {
    Box::pin(async move {
        let object = Rc::new(C::wake(Context::new(instance)).await?);
        Ok(dispatch::<C::Client, C>(object))
    })
}
