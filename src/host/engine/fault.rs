//! The tasks without which a vat stands still. A panic in one of them is a bug of this crate: the
//! host can't go on, and says so instead of leaving its callers without an answer.

use std::panic::AssertUnwindSafe;
use std::rc::Rc;

use futures::FutureExt;

use super::vat::Vat;
use crate::error::panic_reason;

impl Vat {
    /// Starts a task that must not end before the vat does.
    pub(in crate::host) fn essential(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        let vat = Rc::downgrade(self);
        tokio::task::spawn_local(async move {
            let Err(panic) = AssertUnwindSafe(task).catch_unwind().await else { return };
            if let Some(vat) = vat.upgrade() {
                // The first fault is the reason.
                let _ = vat.fault.set(format!("a task panicked: {}", panic_reason(&*panic)));
            }
        });
    }

    /// Resolves with the reason when the vat can't go on, other than by its storage.
    pub(crate) async fn fault(&self) -> String {
        self.fault.wait().await.clone()
    }

    /// As if one of these tasks had a bug.
    #[cfg(test)]
    pub(crate) fn fail_a_task(self: &Rc<Self>) {
        self.essential(async { panic!("a task of the vat has a bug") });
    }
}
