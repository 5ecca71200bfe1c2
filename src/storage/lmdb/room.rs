//! The room to grow: a reserve of the disk, and of the engine's map, is kept free.
//!
//! The engine needs free pages even to delete, and a really full disk ends the process. So growth
//! is refused while there is still room for everything that was accepted, and for deleting. The
//! commit thread measures after its commits. While room is low, a write that is about to be refused
//! measures again, so that growth resumes as soon as there is room.
//!
//! This is a precaution, not a promise: other programs may fill the disk in between.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::limits::IMPORT_RESERVE_BYTES;
use crate::storage::error::{Result, StorageError};

/// The most bytes written between two measurements while there is plenty of room.
const MEASURE_EVERY_BYTES: u64 = 1 << 20;

/// Measures how many bytes the storage can still take.
pub(crate) type Measure = Box<dyn Fn() -> Result<u64> + Send + Sync>;

/// The free room on disk and in the map; shared by the vat thread and the commit thread.
pub(crate) struct Room {
    reserve: u64,
    measure: Measure,
    low: AtomicBool,
    /// Bytes written since the last measurement.
    written: AtomicU64,
}

impl Room {
    /// Keeps `reserve` bytes free, of those that `measure` finds left.
    pub(crate) fn new(reserve: u64, measure: Measure) -> Self {
        let room =
            Self { reserve, measure, low: AtomicBool::default(), written: AtomicU64::new(0) };
        room.refresh();
        room
    }

    /// Unlimited room, for a log without a disk.
    #[cfg(test)]
    pub(crate) fn endless() -> std::sync::Arc<Self> {
        std::sync::Arc::new(Self::new(0, Box::new(|| Ok(u64::MAX))))
    }

    /// Called after a commit of this many bytes, by the thread that made it.
    pub(crate) fn committed(&self, bytes: u64) {
        let written = self.written.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if written >= MEASURE_EVERY_BYTES.min(self.reserve / 4) {
            self.refresh();
        }
    }

    /// Checks that objects may store more than they do.
    ///
    /// # Errors
    /// `LowSpace`.
    pub(crate) fn check_growth(&self) -> Result<()> {
        if !self.low.load(Ordering::Relaxed) {
            return Ok(());
        }
        match self.refresh() {
            Some(left) if left < self.reserve => {
                Err(StorageError::LowSpace { left, reserve: self.reserve })
            }
            _ => Ok(()),
        }
    }

    /// Checks that an import may write its next step.
    ///
    /// # Errors
    /// `LowSpace`.
    pub(crate) fn check_import(&self) -> Result<()> {
        let reserve = self.reserve.max(IMPORT_RESERVE_BYTES);
        match self.refresh() {
            Some(left) if left < reserve => Err(StorageError::LowSpace { left, reserve }),
            _ => Ok(()),
        }
    }

    /// The bytes that are left; `None` if they can't be measured, which counts as enough: the
    /// commit notices a really full disk.
    fn refresh(&self) -> Option<u64> {
        self.written.store(0, Ordering::Relaxed);
        let left = (self.measure)().ok();
        self.low.store(left.is_some_and(|left| left < self.reserve), Ordering::Relaxed);
        left
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room")
            .field("reserve", &self.reserve)
            .field("low", &self.low)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn growth_is_refused_while_little_is_left_and_goes_on_when_there_is_room() {
        let left = Arc::new(AtomicU64::new(5_000));
        let measured = left.clone();
        let room = Room::new(4_000, Box::new(move || Ok(measured.load(Ordering::Relaxed))));
        room.check_growth().unwrap();
        left.store(3_999, Ordering::Relaxed);
        room.committed(999);
        room.check_growth().unwrap();
        room.committed(1);
        let refused = room.check_growth().unwrap_err();
        assert!(matches!(refused, StorageError::LowSpace { left: 3_999, reserve: 4_000 }));
        left.store(4_000, Ordering::Relaxed);
        room.check_growth().unwrap();
    }

    #[test]
    fn what_cannot_be_measured_is_not_refused() {
        let room = Room::new(1, Box::new(|| Err(StorageError::MapFull)));
        room.check_growth().unwrap();
    }
}
