//! The calls with request ids of an awake object: those that run, and the numbers of those that are
//! stored.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use crate::host::base::request_record::RequestId;
use crate::host::base::retention::KeptNumbers;

/// An instance's knowledge of its calls with ids, beside what is stored.
#[derive(Default)]
pub(in crate::host) struct Requests {
    /// The numbers of the calls that are kept; none before the storage was searched.
    pub(in crate::host) kept: Cell<Option<KeptNumbers>>,
    /// The calls that run, each with the numbers of the callers who made it again, as
    /// `Instance::owe` gives them.
    pub(in crate::host) running: RefCell<HashMap<RequestId, Vec<u64>>>,
}

impl Requests {
    /// Tells whether the call with this id runs.
    pub(in crate::host) fn runs(&self, id: &RequestId) -> bool {
        self.running.borrow().contains_key(id)
    }
}
