//! The calls with request ids of an awake object: those that run, and the numbers of those that are
//! stored.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;

use crate::host::base::request_record::RequestId;
use crate::host::base::retention::KeptNumbers;

/// An instance's knowledge of its calls with ids, beside what is stored. Most objects have none.
#[derive(Default)]
pub(in crate::host) struct Requests(OnceCell<Box<KnownRequests>>);

#[derive(Default)]
pub(in crate::host) struct KnownRequests {
    /// The numbers of the calls that are kept; none before the storage was searched.
    pub(in crate::host) kept: Cell<Option<KeptNumbers>>,
    /// The number of ids that are kept; none before they were counted.
    pub(in crate::host) count: Cell<Option<u64>>,
    /// The calls that run, each with the numbers of the callers who made it again, as
    /// `Instance::owe` gives them.
    pub(in crate::host) running: RefCell<HashMap<RequestId, Vec<u64>>>,
}

impl Requests {
    pub(in crate::host) fn known(&self) -> &KnownRequests {
        self.0.get_or_init(Box::default)
    }

    /// Tells whether the call with this id runs.
    pub(in crate::host) fn runs(&self, id: &RequestId) -> bool {
        self.0.get().is_some_and(|known| known.running.borrow().contains_key(id))
    }

    /// Ids were forgotten without the instance.
    pub(in crate::host) fn were_cleared(&self) {
        if let Some(known) = self.0.get() {
            known.count.set(None);
        }
    }
}
