//! The alarms of imported objects: an archive has them, and their times follow from them.

use std::ops::Bound;

use crate::error::{Result, failed};
use crate::host::base::alarm::{AlarmRecord, BY_NAME, COUNT};
use crate::id::ObjectId;
use crate::storage::{PageSize, Range, Space, StorageError, Store};

/// # Errors
/// When a record of an archive is no alarm.
pub(super) fn check(key: &[u8], record: &[u8]) -> Result<()> {
    if key == COUNT && record.len() == size_of::<u32>() {
        return Ok(());
    }
    AlarmRecord::decode(key, record).map(drop).map_err(|_| failed("an alarm can't be read"))
}

/// Removes, in the open turn, the alarms that an object has.
pub(super) fn clear(store: &mut Store, object: ObjectId) -> std::result::Result<(), StorageError> {
    const SOME: PageSize = PageSize { entries: 256, bytes: 1 << 20 };
    let (mut range, mut due) = (Range::all().within(&[BY_NAME]), Vec::new());
    loop {
        let page = store.records(object, Space::Alarms, &range, SOME)?;
        let mut last = None;
        for (key, record) in (0..).map_while(|at| page.get(at)) {
            // The time of one that can't be read goes when it comes.
            let record = AlarmRecord::decode(key, record).ok();
            due.extend(record.and_then(|record| record.due(object)));
            last = Some(key.to_vec());
        }
        let Some(last) = last else { break };
        range.start = Bound::Excluded(last);
    }
    for due in due {
        store.delete_record(object, Space::Due, &due.key())?;
    }
    store.clear_records(object, Space::Alarms)
}

/// Writes the time of an alarm that was written, in the open turn.
pub(super) fn put_time(
    store: &mut Store,
    object: ObjectId,
    key: &[u8],
    record: &[u8],
) -> std::result::Result<(), StorageError> {
    let alarm = AlarmRecord::decode(key, record).ok();
    if let Some(due) = alarm.and_then(|alarm| alarm.due(object)) {
        store.put_record(object, Space::Due, &due.key(), &due.record())?;
    }
    Ok(())
}
