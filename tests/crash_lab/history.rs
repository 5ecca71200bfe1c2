//! The calls of a counter's clients, with their outcomes: one record for each call, with its times.
//!
//! Times are nanoseconds of one monotonic clock that all clients share. A call is invoked before it
//! is sent and returns after its reply is read, so the moment at which it happens lies in that
//! interval. This module doesn't judge.

/// The kinds of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// Add this number, which is at least 1, and return the new value.
    Increment(i64),
    /// Return the value.
    Read,
}

/// The client's knowledge about a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It happened, and returned this value at that time.
    Ok {
        /// The value that was returned.
        value: i64,
        /// The time of the return.
        returned: u64,
    },
    /// It did not happen, and never will.
    Failed,
    /// It happened at some time after it was invoked, or not at all.
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
