//! Decides whether one order of the calls on a counter explains everything that its clients saw.
//!
//! Such an order keeps real time: a call that returned before another was invoked comes first. It
//! contains no failed call, and any of the unknown ones. The counter starts at 0.
//!
//! There are two judges. [`search`] tries all orders; it knows only how a counter works, and is for
//! small histories. [`check`] relies on increments being positive, so that values show the order;
//! it takes as long as sorting. Both are exact: neither passes a bad history or refuses a good one.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::history::{Call, Operation, Outcome};

/// The largest number of calls that [`search`] takes: one bit each.
pub(crate) const SEARCH_MAX: usize = 128;

/// Steps after which the search for an assignment of unknown calls gives up.
const STEPS_MAX: usize = 2_000_000;

/// Tries all orders, and remembers the pairs of done calls and value that failed.
pub(crate) fn search(history: &[Operation]) -> Result<(), String> {
    assert!(history.len() <= SEARCH_MAX, "the search is for small histories");
    let mut seen = HashSet::new();
    if explains(history, 0, 0, &mut seen) {
        return Ok(());
    }
    Err(format!("no order explains these {} calls", history.len()))
}

/// Tells whether the calls that aren't in `done` can follow on `value`.
fn explains(
    history: &[Operation],
    done: u128,
    value: i64,
    seen: &mut HashSet<(u128, i64)>,
) -> bool {
    let left = || history.iter().enumerate().filter(move |(at, _)| done >> at & 1 == 0);
    let returned = left().filter_map(|(_, call)| match call.outcome {
        Outcome::Ok { returned, .. } => Some(returned),
        Outcome::Failed | Outcome::Unknown => None,
    });
    // The next call must be invoked before any remaining call has returned: a later one can't come
    // first.
    let Some(horizon) = returned.min() else { return true };
    if !seen.insert((done, value)) {
        return false;
    }
    left().filter(|(_, call)| call.invoked <= horizon).any(|(at, call)| {
        let next = match (call.call, call.outcome) {
            (Call::Increment(by), Outcome::Ok { value: new, .. }) if value + by == new => new,
            (Call::Read, Outcome::Ok { value: read, .. }) if read == value => value,
            (Call::Increment(by), Outcome::Unknown) => value + by,
            _ => return false,
        };
        explains(history, done | 1 << at, next, seen)
    })
}

/// A call that returned: the counter went from `before` to `after`.
#[derive(Clone, Copy, Debug)]
struct Seen {
    before: i64,
    after: i64,
    invoked: u64,
    returned: u64,
}

/// A step of the counter that no call acknowledged: unknown calls must make it up.
#[derive(Clone, Copy, Debug)]
struct Gap {
    size: i64,
    /// A call that was invoked later follows a result in which the gap was already closed.
    deadline: u64,
}

/// Judges by the values; increments must be at least 1.
pub(crate) fn check(history: &[Operation]) -> Result<(), String> {
    let (mut seen, mut unknown) = (Vec::new(), Vec::new());
    for operation in history {
        let by = match operation.call {
            Call::Increment(by) if by < 1 => return Err(format!("{by} is no increment")),
            Call::Increment(by) => by,
            Call::Read => 0,
        };
        let invoked = operation.invoked;
        match operation.outcome {
            Outcome::Ok { value, returned } => {
                seen.push(Seen { before: value - by, after: value, invoked, returned });
            }
            Outcome::Unknown if by > 0 => unknown.push((by, invoked)),
            Outcome::Unknown | Outcome::Failed => {}
        }
    }
    check_real_time(&seen)?;
    fill(&gaps(&seen)?, unknown)
}

/// A call that is invoked after a value was seen sees that value or a later one.
fn check_real_time(seen: &[Seen]) -> Result<(), String> {
    let (mut invoked, mut returned) = (seen.to_vec(), seen.to_vec());
    invoked.sort_by_key(|call| call.invoked);
    returned.sort_by_key(|call| call.returned);
    let (mut returned, mut latest) = (returned.iter().peekable(), i64::MIN);
    for call in invoked {
        while let Some(earlier) = returned.next_if(|other| other.returned < call.invoked) {
            latest = latest.max(earlier.after);
        }
        if call.before < latest {
            let Seen { before, invoked, .. } = call;
            return Err(format!(
                "a call that was invoked at {invoked} found the value {before}, after another had \
                 returned {latest}"
            ));
        }
    }
    Ok(())
}

/// The steps between the seen values, without the acknowledged ones.
fn gaps(seen: &[Seen]) -> Result<Vec<Gap>, String> {
    let mut acknowledged = BTreeMap::new();
    let mut values = BTreeSet::from([0]);
    // By value: the time of the first return that showed it or a later one.
    let mut known = BTreeMap::new();
    for call in seen {
        values.extend([call.before, call.after]);
        if call.after > call.before && acknowledged.insert(call.before, call.after).is_some() {
            return Err(format!("two increments were made on the same value {}", call.before));
        }
        let first = known.entry(call.after).or_insert(call.returned);
        *first = call.returned.min(*first);
    }
    if let Some(lowest) = values.first().filter(|lowest| **lowest < 0) {
        return Err(format!("the value {lowest} is less than what the counter began with"));
    }
    let mut deadline = u64::MAX;
    for returned in known.values_mut().rev() {
        deadline = deadline.min(*returned);
        *returned = deadline;
    }
    let mut gaps = Vec::new();
    for (low, high) in values.iter().zip(values.iter().skip(1)) {
        match acknowledged.get(low) {
            Some(after) if after == high => {}
            Some(after) => {
                return Err(format!(
                    "{high} was seen, but one increment led from {low} to {after}"
                ));
            }
            None => {
                let deadline = known.range(high..).next().map_or(u64::MAX, |(_, at)| *at);
                gaps.push(Gap { size: high - low, deadline });
            }
        }
    }
    Ok(gaps)
}

/// Checks that each gap is the sum of unknown increments, each used at most once.
///
/// A call that can fill one gap can fill all later ones, so unused calls of the same size are
/// interchangeable, and it is enough to count them.
fn fill(gaps: &[Gap], unknown: Vec<(i64, u64)>) -> Result<(), String> {
    let mut sizes: BTreeMap<i64, Vec<u64>> = BTreeMap::new();
    for (by, invoked) in unknown {
        sizes.entry(by).or_default().push(invoked);
    }
    for invoked in sizes.values_mut() {
        invoked.sort_unstable();
    }
    let available = |gap: &Gap| -> Vec<usize> {
        sizes.values().map(|all| all.partition_point(|at| *at <= gap.deadline)).collect()
    };
    let sizes: Vec<i64> = sizes.keys().copied().collect();
    let mut open = vec![(0, vec![0; sizes.len()])];
    let (mut seen, mut furthest) = (HashSet::new(), 0);
    while let Some((at, used)) = open.pop() {
        let Some(gap) = gaps.get(at) else { return Ok(()) };
        furthest = furthest.max(at);
        if !seen.insert((at, used.clone())) {
            continue;
        }
        if seen.len() > STEPS_MAX {
            return Err(format!("it took too long to explain the value after gap {at}"));
        }
        sums(gap.size, &sizes, &available(gap), &used, &mut |used| open.push((at + 1, used)));
    }
    let Gap { size, deadline } = gaps[furthest];
    Err(format!(
        "the value went up by {size} before {deadline}, and no calls that may have happened add up \
         to that"
    ))
}

/// All ways to add up to `size`; the ways with the largest numbers come last.
fn sums(
    size: i64,
    sizes: &[i64],
    available: &[usize],
    used: &[usize],
    found: &mut impl FnMut(Vec<usize>),
) {
    let mut open = vec![(sizes.len(), size, used.to_vec())];
    while let Some((kind, left, used)) = open.pop() {
        if kind == 0 {
            if left == 0 {
                found(used);
            }
            continue;
        }
        let by = sizes[kind - 1];
        let free = available[kind - 1].saturating_sub(used[kind - 1]);
        let most = free.min(usize::try_from(left / by).unwrap_or(0));
        // The last entry is tried first, so the way with the fewest numbers comes last, and is
        // found first.
        for count in (0..=most).rev() {
            let mut used = used.clone();
            used[kind - 1] += count;
            open.push((kind - 1, left - by * i64::try_from(count).unwrap_or(0), used));
        }
    }
}
