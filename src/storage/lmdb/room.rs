//! The room to grow: a reserve of the disk, and of the engine's map, is kept free.
//!
//! The engine needs free pages even to delete, and a really full disk ends the process. So growth
//! is refused while there is still room for everything that was accepted, and for deleting. The
//! commit thread measures after its commits; what waits for it is taken off that. While room is
//! low, a write that is about to be refused measures again, so that growth resumes as soon as there
//! is room.
//!
//! This is a precaution, not a promise: other programs may fill the disk in between.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::limits::IMPORT_RESERVE_BYTES;
use crate::storage::error::{Result, StorageError};

/// The most bytes written between two measurements while there is plenty of room.
const MEASURE_EVERY_BYTES: u64 = 1 << 20;

/// The room that a byte takes which waits for the log: there once, and about twice in the
/// environment, since records don't fill their pages.
pub(crate) const QUEUED_FACTOR: u64 = 3;

/// Measures how many bytes the storage can still take, after the given number of bytes that were
/// accepted and aren't in the log yet.
pub(crate) type Measure = Box<dyn Fn(u64) -> Result<u64> + Send + Sync>;

/// The free room on disk and in the map; shared by the vat thread and the commit thread.
pub(crate) struct Room {
    reserve: u64,
    measure: Measure,
    /// The bytes left at the last measurement, if nothing is queued.
    left: AtomicU64,
    /// Bytes written since the last measurement.
    written: AtomicU64,
}

impl Room {
    /// Keeps `reserve` bytes free, of those that `measure` finds left.
    pub(crate) fn new(reserve: u64, measure: Measure) -> Self {
        let (left, written) = (AtomicU64::new(0), AtomicU64::new(0));
        let room = Self { reserve, measure, left, written };
        room.refresh();
        room
    }

    /// Unlimited room, for a log without a disk.
    #[cfg(test)]
    pub(crate) fn endless() -> std::sync::Arc<Self> {
        std::sync::Arc::new(Self::new(0, Box::new(|_| Ok(u64::MAX))))
    }

    /// The bytes that are kept free.
    pub(crate) fn reserve(&self) -> u64 {
        self.reserve
    }

    /// Called after a commit of this many bytes, by the thread that made it.
    pub(crate) fn committed(&self, bytes: u64) {
        let written = self.written.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if written >= MEASURE_EVERY_BYTES.min(self.reserve / 4) {
            self.refresh();
        }
    }

    /// Checks that objects may store more than they do, when this many bytes that were accepted
    /// aren't in the log yet.
    ///
    /// # Errors
    /// `LowSpace`.
    pub(crate) fn check_growth(&self, queued: u64) -> Result<()> {
        let taken = queued.saturating_mul(QUEUED_FACTOR);
        let left = self.left.load(Ordering::Relaxed).saturating_sub(taken);
        if left >= self.reserve { Ok(()) } else { self.check(self.reserve, queued) }
    }

    /// Checks that an import may write its next step.
    ///
    /// # Errors
    /// `LowSpace`.
    pub(crate) fn check_import(&self, queued: u64) -> Result<()> {
        self.check(self.reserve.max(IMPORT_RESERVE_BYTES), queued)
    }

    fn check(&self, reserve: u64, queued: u64) -> Result<()> {
        self.refresh();
        match (self.measure)(queued) {
            Ok(left) if left < reserve => Err(StorageError::LowSpace { left, reserve }),
            // A failed measurement counts as enough: the commit notices a really full disk.
            _ => Ok(()),
        }
    }

    fn refresh(&self) {
        self.written.store(0, Ordering::Relaxed);
        self.left.store((self.measure)(0).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room")
            .field("reserve", &self.reserve)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn start(reserve: u64) -> (Room, Arc<AtomicU64>) {
        let left = Arc::new(AtomicU64::new(5_000));
        let measured = left.clone();
        let measure = move |queued: u64| {
            Ok(measured.load(Ordering::Relaxed).saturating_sub(queued * QUEUED_FACTOR))
        };
        (Room::new(reserve, Box::new(measure)), left)
    }

    #[test]
    fn growth_is_refused_while_little_is_left_and_goes_on_when_there_is_room() {
        let (room, left) = start(4_000);
        room.check_growth(0).unwrap();
        left.store(3_999, Ordering::Relaxed);
        room.committed(999);
        room.check_growth(0).unwrap();
        room.committed(1);
        let refused = room.check_growth(0).unwrap_err();
        assert!(matches!(refused, StorageError::LowSpace { left: 3_999, reserve: 4_000 }));
        left.store(4_000, Ordering::Relaxed);
        room.check_growth(0).unwrap();
    }

    #[test]
    fn bytes_that_were_accepted_and_wait_for_the_log_take_room() {
        let (room, left) = start(4_000);
        room.check_growth(333).unwrap();
        let refused = room.check_growth(334).unwrap_err();
        assert!(matches!(refused, StorageError::LowSpace { left: 3_998, reserve: 4_000 }));
        left.store(6_000, Ordering::Relaxed);
        room.check_growth(334).unwrap();
    }

    #[test]
    fn what_cannot_be_measured_is_not_refused() {
        let room = Room::new(1, Box::new(|_| Err(StorageError::MapFull)));
        room.check_growth(0).unwrap();
    }
}
