//! The request ids that an object keeps: their order, their time, and how they are forgotten.
//!
//! Invariants:
//! - An id is forgotten when its time is over by a watched clock, and its call doesn't run. An id
//!   that can't be forgotten is passed by, so that it keeps no other from being forgotten.
//! - An id that was cleared by the operator leaves its number free, and no more.
//! - A forgotten id leaves nothing behind: neither its place in the order nor its part of a share.

use std::ops::Bound;

use crate::error::Result;
use crate::host::base::request_record::{self as record, CallState, ORDER, Record, RequestId};
use crate::host::base::retention::KeptNumbers;
use crate::host::engine::shares::{self, Change, Share};
use crate::host::state::instance::Instance;
use crate::id::ObjectId;
use crate::storage::{PageSize, Range, Space, Store};

/// Ids that are looked at in one go.
const SOME: PageSize = PageSize { entries: 16, bytes: usize::MAX };

/// Ids that are counted in one go.
const MANY: PageSize = PageSize { entries: 4096, bytes: usize::MAX };

/// The most ids that are forgotten for a call that finds no room: they take some milliseconds.
const FORGOTTEN_FOR_ROOM: usize = 1024;

/// The numbers of the calls that are kept. The storage is searched for them once.
pub(super) fn kept(instance: &Instance) -> Result<KeptNumbers> {
    let known = &instance.requests.known().kept;
    if let Some(kept) = known.get() {
        return Ok(kept);
    }
    let ends = instance.vat.turns.store().ends(instance.spec.id, Space::Requests, &[ORDER])?;
    let by_then = instance.read(Space::Requests, &record::BY_THEN)?;
    let by_then = by_then.map(|record| record::decode_by_then(&record)).transpose()?;
    let by_then = by_then.unwrap_or_default();
    let kept = match ends {
        // A number is never given twice, also when all ids were cleared.
        None => KeptNumbers { first: by_then.0, next: by_then.0, by_then },
        Some([first, last]) => KeptNumbers {
            first: record::number_in(&first)?,
            next: record::number_in(&last)?.saturating_add(1).max(by_then.0),
            by_then,
        },
    };
    known.set(Some(kept));
    Ok(kept)
}

/// The number of ids that the object keeps. The storage is searched for them once, and again after
/// some were cleared.
pub(super) fn count(instance: &Instance) -> Result<u64> {
    let known = &instance.requests.known().count;
    if let Some(count) = known.get() {
        return Ok(count);
    }
    let (mut range, mut count) = (Range::all().within(&[ORDER]), 0);
    loop {
        let store = instance.vat.turns.store();
        let page = store.records(instance.spec.id, Space::Requests, &range, MANY)?;
        let (some, last) = (0..)
            .map_while(|at| page.get(at))
            .fold((0, None), |(some, _), (key, _)| (some + 1, Some(key)));
        let Some(last) = last else { break };
        count += some;
        range.start = Bound::Excluded(last.to_vec());
    }
    known.set(Some(count));
    Ok(count)
}

/// The fate of the oldest id.
pub(super) enum Oldest {
    /// There is none.
    Nothing,
    Kept,
    /// It was begun by a clock that was ahead, which nobody has noticed yet.
    Ahead,
    /// It can be forgotten.
    Over(RequestId),
}

/// The oldest id from number `first` on that isn't passed by, and its number. Ids are passed by
/// whose time is over while their calls run.
pub(super) fn oldest(instance: &Instance, first: u64) -> Result<(u64, Oldest)> {
    let kept = kept(instance)?;
    let mut range = Range::all().within(&[ORDER]);
    range.start = Bound::Included(record::order_key(first).to_vec());
    loop {
        let page =
            instance.vat.turns.store().records(instance.spec.id, Space::Requests, &range, SOME)?;
        let mut last = None;
        for (key, record) in (0..).map_while(|at| page.get(at)) {
            let (number, (began, id)) = (record::number_in(key)?, record::decode_order(record)?);
            let oldest = fate(instance, kept, (number, began, id));
            if let Some(oldest) = oldest {
                return Ok((number, oldest));
            }
            last = Some(key.to_vec());
        }
        let Some(last) = last else { return Ok((kept.next, Oldest::Nothing)) };
        range.start = Bound::Excluded(last);
    }
}

/// The fate of one id; none if it is passed by.
fn fate(
    instance: &Instance,
    kept: KeptNumbers,
    (number, began, id): (u64, u64, RequestId),
) -> Option<Oldest> {
    let retention = &instance.vat.retention;
    let (by_number, by_time) = kept.by_then;
    if retention.is_ahead(began) && (number >= by_number || retention.is_ahead(by_time)) {
        return Some(Oldest::Ahead);
    }
    if !retention.is_call_over(number, began, kept) {
        return Some(Oldest::Kept);
    }
    (!instance.requests.runs(&id)).then_some(Oldest::Over(id))
}

/// Forgets up to `most` ids whose time is over, the oldest first, in the open turn of the object.
/// Gives their number. If the oldest was begun by a clock that was ahead, that is noted.
///
/// Something else must be written in the turn as well, if it is the instance's.
pub(super) fn forget_oldest(instance: &Instance, most: usize) -> Result<usize> {
    let KeptNumbers { mut first, next, mut by_then } = kept(instance)?;
    let mut forgotten = 0;
    while forgotten < most {
        let (number, oldest) = oldest(instance, first)?;
        first = number;
        match oldest {
            Oldest::Nothing | Oldest::Kept => break,
            Oldest::Ahead => {
                by_then = (next, instance.vat.retention.now_ms());
                let (mut store, by_then) = (instance.vat.turns.store_mut(), by_then);
                let record = record::by_then_record(by_then.0, by_then.1);
                store.put_record(instance.spec.id, Space::Requests, &record::BY_THEN, &record)?;
                break;
            }
            Oldest::Over(id) => {
                forget_in_turn(instance, number, &id)?;
                (first, forgotten) = (number.saturating_add(1), forgotten + 1);
            }
        }
    }
    instance.requests.known().kept.set(Some(KeptNumbers { first, next, by_then }));
    Ok(forgotten)
}

/// Forgets ids whose time is over, since there is no room for another one, in a turn of the
/// server's own. Gives their number.
///
/// # Errors
/// When the storage can't be read or written.
pub(super) fn forget_over(instance: &Instance) -> Result<usize> {
    if let (_, Oldest::Nothing | Oldest::Kept) = oldest(instance, kept(instance)?.first)? {
        return Ok(0);
    }
    instance.vat.write_of_server(instance.spec.id, || forget_oldest(instance, FORGOTTEN_FOR_ROOM))
}

/// Takes an id away, in the open turn of the object.
pub(super) fn forget(
    store: &mut Store,
    object: ObjectId,
    number: u64,
    id: &RequestId,
) -> Result<()> {
    store.delete_record(object, Space::Requests, &record::order_key(number))?;
    let Some(bytes) = store.get(object, Space::Requests, &id.key())? else { return Ok(()) };
    let record = Record::decode(&bytes)?;
    // The same id may have come again since.
    if record.number == number {
        store.delete_record(object, Space::Requests, &id.key())?;
        let less = Change::Less(part(&record, bytes.len()));
        shares::change(store, object, &record.lineage, less)?;
    }
    Ok(())
}

/// As [`forget`], in the instance's present turn. Something else must be written in it as well.
pub(super) fn forget_in_turn(instance: &Instance, number: u64, id: &RequestId) -> Result<()> {
    let count = &instance.requests.known().count;
    count.set(count.get().map(|count| count.saturating_sub(1)));
    forget(&mut instance.vat.turns.store_mut(), instance.spec.id, number, id)
}

/// The part of an id in the shares. Its bytes count once its call has ended.
pub(super) fn part(record: &Record<CallState>, length: usize) -> Share {
    let bytes = if matches!(record.state, CallState::Ended(_)) { length as u64 } else { 0 };
    Share { grants: 0, ids: 1, bytes }
}
