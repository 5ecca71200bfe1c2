//! The bounds of what one socket may ask for in a time.

use tokio::time::Instant;

/// Of messages: somebody who types sends two with each key, and one whenever others have moved.
const MESSAGES: Bucket = Bucket { burst: 1000.0, per_second: 200.0 };
/// Of bytes that come, and of those of whole documents that go.
const BYTES: Bucket = Bucket { burst: 16.0 * MIB, per_second: MIB };

const MIB: f64 = 1_048_576.0;

struct Bucket {
    burst: f64,
    per_second: f64,
}

/// The rest of what one socket may ask for.
pub(super) struct Allowance {
    messages: f64,
    bytes: f64,
    since: Instant,
}

impl Allowance {
    pub(super) fn new() -> Self {
        Self { messages: MESSAGES.burst, bytes: BYTES.burst, since: Instant::now() }
    }

    /// Tells whether one more message is within it.
    pub(super) fn take_message(&mut self, bytes: usize) -> bool {
        let now = Instant::now();
        let seconds = now.duration_since(self.since).as_secs_f64();
        self.since = now;
        let refilled = |left: f64, of: Bucket| (left + seconds * of.per_second).min(of.burst);
        self.messages = refilled(self.messages, MESSAGES) - 1.0;
        self.bytes = refilled(self.bytes, BYTES);
        self.messages >= 0.0 && self.take_bytes(bytes)
    }

    /// Tells whether so many bytes more are within it.
    pub(super) fn take_bytes(&mut self, bytes: usize) -> bool {
        self.bytes -= u32::try_from(bytes).map_or(f64::INFINITY, f64::from);
        self.bytes >= 0.0
    }
}
