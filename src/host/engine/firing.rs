//! The firing of alarms: one task of each vat reads which are due, and makes a call of each.
//!
//! The call waits its turn like every other one: it wakes the object, and an exclusive object runs
//! it after those before it. The turn that ends the class's method also ends the alarm, or writes
//! when it is tried again. If there was no such turn, since the object panicked, was aborted or
//! didn't wake, the host writes that in a turn of its own.
//!
//! Invariants:
//! - The clock alone says what is due, and is asked again at least twice a second while anything
//!   is: one that was set fires nothing twice, and at most half a second late.
//! - A bounded number of alarms is fired at once, those that were due first before the others, and
//!   an object has a bounded part of these places.
//! - An alarm that could not begin is tried again later, and no failure is counted.
//! - An alarm that can't be read or written holds up no other one.
//! - Nothing is begun or written while too much waits for the disk.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use capnp::ErrorKind;
use tokio::sync::Notify;

use crate::error::{Result, failed};
use crate::host::base::alarm::{self, ALARM, AlarmRecord};
use crate::host::base::header::Header;
use crate::host::engine::alarms;
use crate::host::state::alarms::Firing;
use crate::host::state::facet::Facet;
use crate::host::state::slot::ObjectSpec;
use crate::host::state::vat::Vat;
use crate::id::ObjectId;
use crate::limits::{ALARM_LOOK, ALARM_SLOW, ALARMS_AT_ONCE_OF_OBJECT, ALARMS_READ};
use crate::storage::{Due, DueAlarms, Space};

/// Fires alarms from now on, until the vat ends.
pub(in crate::host) fn fire(vat: &Rc<Vat>) {
    vat.fault.watch(fire_due(Rc::downgrade(vat), vat.alarms.changed()));
}

/// Ends with the vat.
async fn fire_due(vat: Weak<Vat>, changed: Rc<Notify>) {
    loop {
        let Some(present) = vat.upgrade() else { return };
        let wait = if present.scheduler.is_closing() { None } else { fire_some(&present) };
        drop(present);
        match wait {
            // Others have their turn.
            Some(Duration::ZERO) => tokio::task::yield_now().await,
            Some(wait) => drop(tokio::time::timeout(wait, changed.notified()).await),
            None => changed.notified().await,
        }
    }
}

/// Fires those that are due, as many as there is room for. Gives the time until the next look; none
/// if no alarm is set.
fn fire_some(vat: &Rc<Vat>) -> Option<Duration> {
    let fired = fire_ready(vat);
    fired.unwrap_or_else(|error| {
        tracing::warn!(%error, "alarms can't be read or written, and will be tried again");
        vat.alarms.ready().borrow_mut().clear();
        Some(ALARM_LOOK)
    })
}

fn fire_ready(vat: &Rc<Vat>) -> Result<Option<Duration>> {
    let alarms = &vat.alarms;
    if alarms.ready().borrow().is_empty() {
        let now = vat.clock.now_ms();
        let due = look(vat, now)?;
        if due.now.is_empty() {
            let until = |next: u64| Duration::from_millis(next.saturating_sub(now));
            let next = due.next_ms.map(|next| until(next).min(ALARM_LOOK));
            return Ok(next.or_else(|| alarms.forget_old_aside().then_some(ALARM_LOOK)));
        }
        alarms.ready().borrow_mut().extend(due.now);
    }
    while alarms.has_room() {
        if !vat.turns.has_room() {
            alarms.wait_for_disk();
            return Ok(Some(ALARM_LOOK));
        }
        let next = alarms.ready().borrow_mut().pop_front();
        let Some(due) = next else { return Ok(Some(Duration::ZERO)) };
        if let Err(error) = fire_one(vat, &due) {
            let (object, alarm) = (&due.object, &due.name);
            tracing::warn!(?object, %alarm, %error, "an alarm can't be fired, and is left alone for some minutes");
            alarms.put_aside(&due);
        }
    }
    Ok(Some(ALARM_LOOK))
}

/// Reads the next alarms that are due and can be fired, of each object as many as it has places.
fn look(vat: &Vat, now: u64) -> Result<DueAlarms> {
    let alarms = &vat.alarms;
    alarms.forget_old_aside();
    let (first, of_objects) = (Cell::new(now), RefCell::<HashMap<_, _>>::default());
    let is_wanted = |due: &Due| {
        if alarms.is_classless(due.object) {
            return false;
        }
        first.set(first.get().min(due.at_ms));
        if alarms.is_firing(due.object, &due.name) || alarms.is_aside(due) {
            return false;
        }
        let mut of_objects = of_objects.borrow_mut();
        let under_way = || alarms.under_way_of(due.object);
        let number = of_objects.entry(due.object).or_insert_with(under_way);
        *number += 1;
        *number <= ALARMS_AT_ONCE_OF_OBJECT
    };
    let due = vat.turns.store().due((alarms.first_ms(), now), ALARMS_READ, &is_wanted)?;
    alarms.looked(first.get(), due.next_ms);
    Ok(due)
}

fn fire_one(vat: &Rc<Vat>, due: &Due) -> Result<()> {
    let alarms = &vat.alarms;
    if alarms.is_firing(due.object, &due.name)
        || alarms.under_way_of(due.object) >= ALARMS_AT_ONCE_OF_OBJECT
    {
        return Ok(());
    }
    let record = record_of(vat, due.object, &due.name)?;
    let Some(record) = record.filter(|record| record.due(due.object).as_ref() == Some(due)) else {
        return forget_time(vat, due);
    };
    let spec = match spec_of(vat, due.object) {
        Ok(Some(spec)) => spec,
        Ok(None) => return Ok(()),
        Err(error) => {
            if !record.is_postponed() {
                let (object, alarm) = (&due.object, &due.name);
                tracing::warn!(?object, %alarm, %error, "an alarm can't be fired, and will be tried again");
            }
            let later = record.clone().postponed(vat.clock.now_ms());
            return write(vat, due.object, (&record, later));
        }
    };
    let firing = alarms.begin(due, record.alarm.setting);
    let facet = Facet::alarm(vat, vat.objects.slot(&spec), firing.clone());
    let call = facet.new_call(ALARM.interface, ALARM.ordinal, None).send();
    drop(facet);
    let vat = Rc::downgrade(vat);
    // Ends with the call.
    tokio::task::spawn_local(async move {
        let mut answer = call.promise;
        let in_time = tokio::time::timeout(ALARM_SLOW, &mut answer).await;
        let outcome = if let Ok(outcome) = in_time {
            outcome
        } else {
            let (class, name, alarm) = (spec.class.name, &spec.name, &firing.name);
            tracing::warn!(class, ?name, %alarm, "an alarm takes longer than {ALARM_SLOW:?}");
            if let Some(vat) = vat.upgrade() {
                vat.alarms.turned_slow(&firing);
            }
            answer.await
        };
        let Some(vat) = vat.upgrade() else { return };
        if let Err(error) = outcome {
            end_unsettled(&vat, &firing, &error);
        }
        vat.alarms.end(&firing);
    });
    Ok(())
}

/// The alarm was cancelled or set for another time since it was read. If its time is still there,
/// nothing belongs to it, and it would be read again and again.
fn forget_time(vat: &Rc<Vat>, due: &Due) -> Result<()> {
    let key = due.key();
    if vat.turns.store().get(due.object, Space::Due, &key)?.is_none() {
        return Ok(());
    }
    tracing::warn!("a time without an alarm was removed");
    vat.write_of_server(due.object, || {
        Ok(vat.turns.store_mut().delete_record(due.object, Space::Due, &key).map(drop)?)
    })
}

/// No turn of the object wrote what becomes of the alarm.
fn end_unsettled(vat: &Rc<Vat>, firing: &Firing, error: &capnp::Error) {
    if firing.is_settled.get() {
        return;
    }
    let written = record_of(vat, firing.object, &firing.name).and_then(|record| {
        let Some(record) = record.filter(|record| record.alarm.setting == firing.setting) else {
            return Ok(());
        };
        let now = vat.clock.now_ms();
        let could_not = matches!(error.kind, ErrorKind::Overloaded | ErrorKind::Disconnected);
        let after = if could_not && !firing.is_tried.get() {
            record.clone().postponed(now)
        } else {
            vat.metrics.alarms_failed_total.add(1);
            record.clone().failed(now, &error.extra)
        };
        let is_dead = after.alarm.is_dead();
        write(vat, firing.object, (&record, after))?;
        if is_dead {
            alarms::died(vat);
        }
        Ok(())
    });
    if let Err(error) = written {
        tracing::warn!(%error, "an alarm that failed will be tried again at once");
    }
}

fn record_of(vat: &Vat, object: ObjectId, name: &str) -> Result<Option<AlarmRecord>> {
    let key = alarm::key(name)?;
    let record = vat.turns.store().get(object, Space::Alarms, &key)?;
    record.map(|record| AlarmRecord::decode(&key, &record)).transpose()
}

/// Replaces an alarm in a turn of the host's own.
fn write(vat: &Rc<Vat>, object: ObjectId, (old, new): (&AlarmRecord, AlarmRecord)) -> Result<()> {
    let next_ms = new.alarm.next_ms;
    vat.write_of_server(object, || {
        let read = |space, key: &[u8]| Ok(vat.turns.store().get(object, space, key)?);
        alarm::replace(object, (Some(old), Some(new)), &read, &mut |space, key, record| {
            let mut store = vat.turns.store_mut();
            Ok(match record {
                Some(record) => store.put_record(object, space, key, record),
                None => store.delete_record(object, space, key),
            }
            .map(drop)?)
        })
    })?;
    if let Some(next_ms) = next_ms {
        vat.alarms.was_set(next_ms);
    }
    Ok(())
}

/// None if this server doesn't have its class: its alarms are passed over from then on.
fn spec_of(vat: &Vat, id: ObjectId) -> Result<Option<ObjectSpec>> {
    let header = vat.turns.store().get(id, Space::Header, &[])?;
    let header = header.ok_or_else(|| failed("the object of an alarm is gone"))?;
    let Header { class, name } = Header::decode(&header)?;
    let Ok(found) = vat.objects.class(class) else {
        if vat.alarms.has_no_class(id, class) {
            tracing::warn!(
                class,
                "alarms of a class that this server doesn't have wait until it has it"
            );
        }
        return Ok(None);
    };
    Ok(Some(ObjectSpec { id, class: found, name: name.map(Into::into) }))
}
