//! The calls of the clients of a counter, and what these saw: one record for each call, with its times.
//!
//! Times are nanoseconds of one monotonic clock that all clients share. A call was invoked before
//! it was sent and has returned after its reply was read, so that the interval holds the moment at
//! which it happened. It judges nothing.

/// The calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// Add so much, which is at least 1, and return the new value.
    Increment(i64),
    /// Return the value.
    Read,
}

/// The client's knowledge about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It happened, and returned this value at that time.
    Ok {
        /// The value that was returned.
        value: i64,
        /// When.
        returned: u64,
    },
    /// It did not happen, and never will.
    Failed,
    /// It happened or not, at any time after it was invoked.
    Unknown,
}

/// One call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) client: u32,
    pub(crate) call: Call,
    pub(crate) invoked: u64,
    pub(crate) outcome: Outcome,
}

impl Operation {
    /// The record as one line of JSON.
    pub(crate) fn json(&self, object: &str) -> String {
        let (call, by) = match self.call {
            Call::Increment(by) => ("increment", Some(by)),
            Call::Read => ("read", None),
        };
        let (outcome, value, returned) = match self.outcome {
            Outcome::Ok { value, returned } => ("ok", Some(value), Some(returned)),
            Outcome::Failed => ("fail", None, None),
            Outcome::Unknown => ("unknown", None, None),
        };
        serde_json::json!({
            "object": object, "client": self.client, "call": call, "by": by,
            "invoked": self.invoked, "outcome": outcome, "value": value, "returned": returned,
        })
        .to_string()
    }
}
