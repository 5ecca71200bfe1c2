//! An object's alarms as its own turns see them: set, read and cancelled, and the call that an
//! alarm is when it fires.
//!
//! Invariants:
//! - An alarm is there exactly if the turn is that set it.
//! - The turn that ends the class's method also writes what becomes of the alarm, unless it was set
//!   again or cancelled meanwhile: then the method's end changes nothing of it.

use std::any::Any;
use std::ops::Bound;
use std::rc::Rc;

use capnp::Error;
use capnp::capability::Promise;

use crate::error::{Result, failed};
use crate::host::base::alarm::{self, AlarmRecord, BY_NAME, COUNT};
use crate::host::state::alarms::Firing;
use crate::host::state::instance::Instance;
use crate::host::state::vat::Vat;
use crate::id::ObjectId;
use crate::limits::ALARM_LIMIT;
use crate::storage::{PageSize, Range, Space};

/// Sets an alarm in the present turn, in the place of the one with that name.
///
/// # Errors
/// `key-length:`, `over-quota:`, `batch-size:`, `low-space:`; outside a turn of this object, or
/// when the instance ended: nothing is written.
pub(in crate::host) fn set(instance: &Instance, name: &str, at_ms: u64) -> Result<()> {
    let old = get(instance, name)?;
    {
        let store = instance.vat.turns.store();
        store.check_turn()?;
        if old.is_none() {
            store.check_room()?;
        }
    }
    if old.is_none() {
        count(instance, (1, 0))?;
    }
    let vat = &instance.vat;
    let new = AlarmRecord::new(name, vat.alarms.next_setting(), at_ms, vat.clock.now_ms());
    put(instance, (old.as_ref(), Some(new)))
}

/// Removes an alarm in the present turn. False if there is none.
///
/// # Errors
/// `key-length:`; outside a turn of this object, or when the instance ended.
pub(in crate::host) fn cancel(instance: &Instance, name: &str) -> Result<bool> {
    let Some(old) = get(instance, name)? else { return Ok(false) };
    remove(instance, &old)?;
    Ok(true)
}

/// # Errors
/// `key-length:`, `damaged:`, or that the storage can't be read.
pub(in crate::host) fn get(instance: &Instance, name: &str) -> Result<Option<AlarmRecord>> {
    let key = alarm::key(name)?;
    let record = instance.read(Space::Alarms, &key)?;
    record.map(|record| AlarmRecord::decode(&key, &record)).transpose()
}

/// All alarms, in the order of their names.
///
/// # Errors
/// `damaged:`, or that the storage can't be read.
pub(in crate::host) fn list(instance: &Instance) -> Result<Vec<AlarmRecord>> {
    instance.check_alive()?;
    stored(&instance.vat, instance.spec.id)
}

/// The same of any object.
///
/// # Errors
/// As for [`list`].
pub(in crate::host) fn stored(vat: &Vat, object: ObjectId) -> Result<Vec<AlarmRecord>> {
    records(vat, object)?.into_iter().map(|(_, record)| record).collect()
}

/// The keys of an object's alarms, each with what can be read of it.
fn records(vat: &Vat, object: ObjectId) -> Result<Vec<(Vec<u8>, Result<AlarmRecord>)>> {
    const SOME: PageSize = PageSize { entries: 256, bytes: 1 << 20 };
    let (mut range, mut alarms) = (Range::all().within(&[BY_NAME]), Vec::new());
    loop {
        let page = vat.turns.store().records(object, Space::Alarms, &range, SOME)?;
        let mut last = None;
        for (key, record) in (0..).map_while(|at| page.get(at)) {
            alarms.push((key.to_vec(), AlarmRecord::decode(key, record)));
            last = Some(key.to_vec());
        }
        let Some(last) = last else { return Ok(alarms) };
        range.start = Bound::Excluded(last);
    }
}

/// Removes all alarms in the present turn, also those that can't be read.
///
/// # Errors
/// That the storage can't be read: nothing was removed; outside a turn of this object, or when the
/// instance ended.
pub(in crate::host) fn remove_all(instance: &Instance) -> Result<()> {
    instance.check_alive()?;
    let id = instance.spec.id;
    for (key, record) in records(&instance.vat, id)? {
        instance.write_record(Space::Alarms, &key, None)?;
        // The time of one that can't be read goes when it comes.
        if let Some(due) = record.ok().and_then(|record| record.due(id)) {
            instance.write_record(Space::Due, &due.key(), None)?;
        }
    }
    match instance.read(Space::Alarms, &COUNT)? {
        Some(_) => instance.write_record(Space::Alarms, &COUNT, None),
        None => Ok(()),
    }
}

/// Removes an alarm of any object for the operator, also one that can't be read. False if there is
/// none.
///
/// # Errors
/// `key-length:`, or that the storage can't be read. Nothing was removed.
pub(in crate::host) fn cancel_of(vat: &Vat, object: ObjectId, name: &str) -> Result<bool> {
    let key = alarm::key(name)?;
    let stored = |key: &[u8]| vat.turns.store().get(object, Space::Alarms, key);
    let Some(record) = stored(&key)? else { return Ok(false) };
    let due = AlarmRecord::decode(&key, &record).ok().and_then(|record| record.due(object));
    let number = stored(&COUNT)?;
    vat.write_of_server(object, || {
        let mut store = vat.turns.store_mut();
        let mut write = |space, key: &[u8], record: Option<&[u8]>| {
            Ok(match record {
                Some(record) => store.put_record(object, space, key, record),
                None => store.delete_record(object, space, key),
            }
            .map(drop)?)
        };
        write(Space::Alarms, &key, None)?;
        if let Some(due) = due {
            write(Space::Due, &due.key(), None)?;
        }
        alarm::count((0, 1), number, &mut write)
    })?;
    Ok(true)
}

fn count(instance: &Instance, change: (u32, u32)) -> Result<()> {
    let stored = instance.read(Space::Alarms, &COUNT)?;
    alarm::count(change, stored, &mut |space, key, record| {
        instance.write_record(space, key, record)
    })
}

fn put(instance: &Instance, change: (Option<&AlarmRecord>, Option<AlarmRecord>)) -> Result<()> {
    let next_ms = change.1.as_ref().and_then(|new| new.alarm.next_ms);
    let read = |space, key: &[u8]| instance.read(space, key);
    alarm::replace(instance.spec.id, change, &read, &mut |space, key, record| {
        instance.write_record(space, key, record)
    })?;
    if let Some(next_ms) = next_ms {
        instance.vat.alarms.was_set(next_ms);
    }
    Ok(())
}

/// Removes this alarm, which is there, in the present turn.
///
/// # Errors
/// Outside a turn of this object, or when the instance ended.
pub(in crate::host) fn remove(instance: &Instance, old: &AlarmRecord) -> Result<()> {
    count(instance, (0, 1))?;
    put(instance, (Some(old), None))
}

/// Begins the class's method for an alarm, in a turn of the instance whose value is `object`.
pub(in crate::host) fn call(
    firing: &Rc<Firing>,
    instance: &Rc<Instance>,
    object: Option<Rc<dyn Any>>,
) -> Promise<(), Error> {
    if firing.is_settled.get() {
        // Its object was replaced while the call waited.
        return Promise::ok(());
    }
    let record = match (present(instance, firing), object) {
        (Ok(Some(record)), Some(object)) => (record, object),
        // It was cancelled, or set again, while the call waited.
        (Ok(None), _) => {
            firing.is_settled.set(true);
            return Promise::ok(());
        }
        (Ok(Some(_)), None) => return Promise::err(instance.why_ended()),
        (Err(error), _) => return Promise::err(error),
    };
    let (AlarmRecord { alarm, .. }, object) = record;
    firing.is_tried.set(true);
    let (vat, now) = (&instance.vat, instance.vat.clock.now_ms());
    vat.metrics.alarms_fired_total.add(1);
    let late = now.saturating_sub(alarm.next_ms.unwrap_or(now));
    vat.metrics.alarms_late_milliseconds_total.add(late);
    let handler = (instance.spec.class.alarm)(object, alarm);
    let (instance, firing) = (instance.clone(), firing.clone());
    Promise::from_future(async move {
        let outcome = tokio::time::timeout(ALARM_LIMIT, handler).await;
        let outcome = outcome.unwrap_or_else(|_| {
            Err(failed(format!("the alarm took longer than {ALARM_LIMIT:?}, and was cut short")))
        });
        settle(&instance, &firing, outcome.as_ref().err())?;
        outcome
    })
}

/// The setting of the alarm that is fired, if it is still there.
fn present(instance: &Instance, firing: &Firing) -> Result<Option<AlarmRecord>> {
    let record = get(instance, &firing.name)?;
    Ok(record.filter(|record| record.alarm.setting == firing.setting && !record.alarm.is_dead()))
}

/// Writes what becomes of the alarm in the turn that ends its method.
fn settle(instance: &Instance, firing: &Firing, error: Option<&Error>) -> Result<()> {
    if let Some(record) = present(instance, firing)? {
        match error {
            None => remove(instance, &record)?,
            Some(error) => {
                let now = instance.vat.clock.now_ms();
                let failed = record.clone().failed(now, &error.extra);
                let is_dead = failed.alarm.is_dead();
                put(instance, (Some(&record), Some(failed)))?;
                if is_dead {
                    died(&instance.vat);
                }
            }
        }
    }
    if error.is_some() {
        instance.vat.metrics.alarms_failed_total.add(1);
    }
    firing.is_settled.set(true);
    Ok(())
}

/// An alarm isn't tried any more.
pub(in crate::host) fn died(vat: &Vat) {
    vat.metrics.alarms_dead_total.add(1);
    tracing::warn!(
        "an alarm failed too often and is dead: `capstead alarms` shows those of an object"
    );
}
