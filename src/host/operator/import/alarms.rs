//! The alarms of imported objects: an archive has them, and their times follow from them.

use std::ops::Bound;

use crate::error::{Result, failed};
use crate::host::base::alarm::{AlarmRecord, BY_NAME, COUNT};
use crate::id::ObjectId;
use crate::limits::ALARMS_MAX;
use crate::storage::{PageSize, Range, Space, StorageError, Store};

/// Tells whether the record is an alarm. The number of an object's alarms is none, and is counted
/// anew.
///
/// # Errors
/// When a record of an archive is no alarm that a host could have written.
pub(super) fn is_alarm(key: &[u8], record: &[u8]) -> Result<bool> {
    if key == COUNT && record.len() == size_of::<u32>() {
        return Ok(false);
    }
    let alarm = AlarmRecord::decode(key, record).ok();
    alarm.filter(AlarmRecord::is_within_bounds).ok_or_else(|| failed("an alarm can't be read"))?;
    Ok(true)
}

/// # Errors
/// When an object has more alarms than it may.
pub(super) fn check_number(number: u32) -> Result<()> {
    if number > ALARMS_MAX {
        return Err(failed(format!("an object has more than {ALARMS_MAX} alarms")));
    }
    Ok(())
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

/// Writes an alarm and its time, in the open turn.
pub(super) fn put(
    store: &mut Store,
    object: ObjectId,
    key: &[u8],
    record: &[u8],
) -> std::result::Result<(), StorageError> {
    let Ok(alarm) = AlarmRecord::decode(key, record) else { return Ok(()) };
    let alarm = alarm.at_free_time(object, |key| store.get(object, Space::Due, key))?;
    store.put_record(object, Space::Alarms, key, &alarm.encode())?;
    if let Some(due) = alarm.due(object) {
        store.put_record(object, Space::Due, &due.key(), &due.record())?;
    }
    Ok(())
}

/// Writes the number of an object's alarms, in the open turn.
pub(super) fn put_number(
    store: &mut Store,
    object: ObjectId,
    number: u32,
) -> std::result::Result<(), StorageError> {
    if number == 0 {
        return Ok(());
    }
    store.put_record(object, Space::Alarms, &COUNT, &number.to_be_bytes()).map(drop)
}
