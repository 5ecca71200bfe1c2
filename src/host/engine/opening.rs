//! The beginning and the end of a vat, and of what runs in it.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::begin::begin;
use super::{ending, firing, rest};
use crate::clock::Clock;
use crate::host::base::retention::Retention;
use crate::host::state::awake::AwakeLimits;
use crate::host::state::class::Class;
use crate::host::state::vat::Vat;
use crate::http::Room;
use crate::metrics::Metrics;
use crate::storage::{LogOptions, StorageError, Store, StoreOptions};
use crate::sturdyref::ReferenceCipher;

/// The parts of a vat.
#[derive(Debug)]
pub(crate) struct VatOptions {
    pub(crate) name: String,
    pub(crate) data: PathBuf,
    pub(crate) classes: Vec<Class>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) log: LogOptions,
    /// The time for which request ids are kept.
    pub(crate) retention: Duration,
    /// Encrypts the references that objects store.
    pub(crate) reference_cipher: ReferenceCipher,
    pub(crate) awake: AwakeLimits,
    /// Room for the bodies of requests that objects wait for: one for all hosts of a server.
    pub(crate) bodies: Arc<Room>,
}

impl Vat {
    /// Opens the host's storage and starts the vat's tasks, which end with the vat.
    ///
    /// # Errors
    /// When the storage can't be opened; it is as it was then.
    pub(crate) fn open(options: VatOptions) -> std::result::Result<Rc<Self>, StorageError> {
        let progress = Arc::new(Notify::new());
        let notify = progress.clone();
        let store = Store::open(
            &options.data,
            StoreOptions { name: options.name, log: options.log, metrics: options.metrics.clone() },
            Box::new(move || notify.notify_one()),
        )?;
        let retention = Retention::new(Clock::real(), options.retention);
        let (metrics, cipher) = (options.metrics, options.reference_cipher);
        let with = (cipher, options.awake);
        let vat = Self::with_store(store, options.classes, metrics, retention, with, progress)?;
        vat.bodies.get_or_init(|| options.bodies);
        Ok(vat)
    }

    pub(in crate::host) fn with_store(
        store: Store,
        classes: Vec<Class>,
        metrics: Arc<Metrics>,
        retention: Retention,
        with: (ReferenceCipher, AwakeLimits),
        progress: Arc<Notify>,
    ) -> std::result::Result<Rc<Self>, StorageError> {
        let parts = (begin as _, progress);
        let vat = Self::new(store, classes, metrics, retention, with, parts)?;
        vat.fault.watch(rest::shrink(Rc::downgrade(&vat), vat.objects.awake().grown()));
        Ok(vat)
    }

    /// Lets objects fall asleep that had no call for `warm`, or up to a quarter longer.
    pub(crate) fn rest_after(self: &Rc<Self>, warm: Duration) {
        rest::rest_after(self, warm);
    }

    /// Fires alarms from now on. Those that were due before fire first, the earliest of them before
    /// the others.
    pub(crate) fn fire_alarms(self: &Rc<Self>) {
        firing::fire(self);
    }

    /// Ends every instance, commits what was submitted, and closes the storage.
    pub(crate) fn close(&self) -> std::result::Result<(), StorageError> {
        self.scheduler.close();
        self.scheduler.drop_behind();
        if let Ok(agent) = self.agent() {
            agent.write_restores();
        }
        for slot in self.objects.take_all() {
            ending::shut_down(&slot);
        }
        self.turns.close()
    }
}
