//! Panics. In one of the tasks without which a vat stands still it is a bug of this crate: the host
//! can't go on, and says so instead of leaving its callers without an answer.

use std::panic::AssertUnwindSafe;
use std::rc::Rc;

use futures::FutureExt;
use tokio::sync::SetOnce;

use crate::error::panic_reason;

/// The reason why a vat can't go on, other than by its storage, once there is one.
#[derive(Default)]
pub(in crate::host) struct Fault(SetOnce<String>);

impl Fault {
    /// Starts a task that must not panic before the vat ends.
    pub(in crate::host) fn watch(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        let fault = Rc::downgrade(self);
        tokio::task::spawn_local(async move {
            let Err(panic) = AssertUnwindSafe(task).catch_unwind().await else { return };
            if let Some(fault) = fault.upgrade() {
                // The first fault is the reason.
                let _ = fault.0.set(format!("a task panicked: {}", panic_reason(&*panic)));
            }
        });
    }

    /// Resolves with the reason.
    pub(in crate::host) async fn reason(&self) -> String {
        self.0.wait().await.clone()
    }
}

/// Runs code whose panic must end nothing else.
pub(in crate::host) fn catch_panic(what: &str, work: impl FnOnce()) {
    if std::panic::catch_unwind(AssertUnwindSafe(work)).is_err() {
        tracing::error!("{what} panicked");
    }
}
