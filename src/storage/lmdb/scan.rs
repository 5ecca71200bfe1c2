//! Visits the keys of an object in their order, short and long ones alike.
//!
//! Records of the top level come in order; at a link, the keys that continue from it come next, and
//! so on down (see `layout::keys`). It never writes and keeps no records.

use std::cmp::Ordering;
use std::ops::{Bound, ControlFlow};

use crate::id::ObjectId;
use crate::storage::error::Result;
use crate::storage::lmdb::engine::Snapshot;
use crate::storage::lmdb::layout::keys::{DUE_PREFIX, Level, Step, object_of, object_prefix};
use crate::storage::range::{Direction, Range, Visit, after_prefix};
use crate::storage::space::{DUE_KEY_BYTES, Space};

/// Visits the keys in `range`, until `visit` breaks off.
pub(crate) fn scan(
    snapshot: &Snapshot<'_>,
    object: ObjectId,
    space: Space,
    range: &Range,
    visit: &mut Visit<'_>,
) -> Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    let bounds = (as_slice(&range.start), as_slice(&range.end));
    let mut scan = Scan { snapshot, direction: range.direction, key: Vec::new(), visit };
    scan.level(&Level::top(object, space), bounds).map(drop)
}

/// Visits the times at which alarms of any object are due, until `visit` breaks off.
pub(crate) fn due(snapshot: &Snapshot<'_>, from: &[u8], visit: &mut Visit<'_>) -> Result<()> {
    let (from, until) = ([&DUE_PREFIX[..], from].concat(), after_prefix(&DUE_PREFIX));
    snapshot
        .walk((&from, until.as_deref()), Direction::Up, |engine, record| {
            // Objects may be there too, by another shard than their home.
            Ok(match engine.strip_prefix(&DUE_PREFIX) {
                Some(key) if key.len() == DUE_KEY_BYTES => visit(key, record),
                _ => ControlFlow::Continue(()),
            })
        })
        .map(drop)
}

/// The first object after `last` in the order of records, or the first of all.
pub(crate) fn next_object(
    snapshot: &Snapshot<'_>,
    last: Option<ObjectId>,
) -> Result<Option<ObjectId>> {
    // The environment's own record has a key of one byte, and comes before all shards.
    let behind = last.map_or(Some(vec![0, 0]), |last| after_prefix(&object_prefix(last)));
    let (Some(from), mut found) = (behind, None) else { return Ok(None) };
    let _ = snapshot.walk((&from, None), Direction::Up, |engine, _| {
        found = object_of(engine);
        // A record that isn't an object's is a shard's meta record.
        Ok(if found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(found)
}

/// The least and the greatest remaining part of keys in a level.
type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

struct Scan<'a, 'v> {
    snapshot: &'a Snapshot<'a>,
    direction: Direction,
    /// The beginning of the keys in the present level: the parts of the links that lead to it.
    key: Vec<u8>,
    visit: &'a mut Visit<'v>,
}

impl Scan<'_, '_> {
    fn level(&mut self, level: &Level, bounds: Bounds<'_>) -> Result<ControlFlow<()>> {
        let (from, until) = engine_range(level, bounds);
        let snapshot = self.snapshot;
        let range = (from.as_slice(), until.as_deref());
        snapshot.walk(range, self.direction, |engine, record| match level.step(engine) {
            Step::Link(part) => self.below(level, engine, part, bounds),
            Step::Record(rest) if is_within(rest, bounds) => Ok(self.record(rest, record)),
            Step::Record(_) => Ok(ControlFlow::Continue(())),
        })
    }

    fn record(&mut self, rest: &[u8], record: &[u8]) -> ControlFlow<()> {
        if self.key.is_empty() {
            return (self.visit)(rest, record);
        }
        let length = self.key.len();
        self.key.extend_from_slice(rest);
        let visited = (self.visit)(&self.key, record);
        self.key.truncate(length);
        visited
    }

    /// Visits the keys that continue from a link.
    fn below(
        &mut self,
        level: &Level,
        link: &[u8],
        part: &[u8],
        (start, end): Bounds<'_>,
    ) -> Result<ControlFlow<()>> {
        let (Some(start), Some(end)) =
            (rest_of(start, part, Ordering::Less), rest_of(end, part, Ordering::Greater))
        else {
            return Ok(ControlFlow::Continue(()));
        };
        let length = self.key.len();
        self.key.extend_from_slice(part);
        let visited = self.level(&level.below(link), (start, end));
        self.key.truncate(length);
        visited
    }
}

/// A bound on whole keys, as a bound on the rests of keys that continue from `part`; `None` if it
/// excludes all of them. If the bound is on the side `outer` of `part`, it excludes none.
fn rest_of<'a>(bound: Bound<&'a [u8]>, part: &[u8], outer: Ordering) -> Option<Bound<&'a [u8]>> {
    let (Bound::Included(key) | Bound::Excluded(key)) = bound else { return Some(bound) };
    match key.strip_prefix(part) {
        Some(rest) => Some(bound.map(|_| rest)),
        None if key.cmp(part) == outer => Some(Bound::Unbounded),
        None => None,
    }
}

fn is_within(key: &[u8], (start, end): Bounds<'_>) -> bool {
    let after = match start {
        Bound::Included(start) => key >= start,
        Bound::Excluded(start) => key > start,
        Bound::Unbounded => true,
    };
    after
        && match end {
            Bound::Included(end) => key <= end,
            Bound::Excluded(end) => key < end,
            Bound::Unbounded => true,
        }
}

/// The range of engine keys for these bounds; it may contain a few keys outside the bounds.
fn engine_range(level: &Level, (start, end): Bounds<'_>) -> (Vec<u8>, Option<Vec<u8>>) {
    let prefix = level.prefix();
    let from = match start {
        Bound::Included(key) | Bound::Excluded(key) => [prefix, level.head(key)].concat(),
        Bound::Unbounded => prefix.to_vec(),
    };
    let until = match end {
        // After the key itself, and after a link for its beginning.
        Bound::Included(key) | Bound::Excluded(key) => {
            Some([prefix, level.head(key), &[0, 0]].concat())
        }
        Bound::Unbounded => after_prefix(prefix),
    };
    (from, until)
}

fn as_slice(bound: &Bound<Vec<u8>>) -> Bound<&[u8]> {
    bound.as_ref().map(Vec::as_slice)
}
