//! Makes a program that breaks a rule smaller, so that it can be read.
//!
//! Operations go, and what steps say goes, as long as the program still breaks a rule. Slots keep
//! their numbers: an operation that went leaves the slots empty that it would have filled.

use super::actor::{Answer, Ending, Step};
use super::plan::{Fate, Kind, Op, Plan};

/// The smallest program found that `fails`, which `plan` does.
pub(super) fn shrink(mut plan: Plan, fails: impl Fn(&Plan) -> bool) -> Plan {
    loop {
        let before = format!("{plan:?}");
        for at in (0..plan.ops.len()).rev() {
            shrink_op(&mut plan, at, &fails);
        }
        for client in 0..plan.hops.len() {
            attempt(&mut plan, &fails, |plan| plan.clients[client] = Kind::Rust);
            let nearest = usize::from(plan.clients[client] == Kind::Kj);
            for vat in 0..plan.hops[client].len() {
                attempt(&mut plan, &fails, |plan| {
                    let hops = &mut plan.hops[client][vat];
                    *hops = hops.saturating_sub(1).max(nearest);
                });
            }
        }
        if format!("{plan:?}") == before {
            return plan;
        }
    }
}

/// Keeps a change with which the program still fails.
fn attempt(plan: &mut Plan, fails: &impl Fn(&Plan) -> bool, change: impl FnOnce(&mut Plan)) {
    let mut changed = plan.clone();
    change(&mut changed);
    if fails(&changed) {
        *plan = changed;
    }
}

fn shrink_op(plan: &mut Plan, at: usize, fails: &impl Fn(&Plan) -> bool) {
    let slots = plan.ops[at].slots();
    attempt(plan, fails, |plan| match slots {
        0 => drop(plan.ops.remove(at)),
        _ => plan.ops[at] = Op::Skip { slots },
    });
    let Some(Op::Call { .. }) = plan.ops.get(at) else { return };
    let in_call = |change: fn(&mut Op)| move |plan: &mut Plan| change(&mut plan.ops[at]);
    let changes: [fn(&mut Op); 3] = [
        |op| {
            if let Op::Call { on, .. } = op {
                *on = None;
            }
        },
        |op| {
            if let Op::Call { gift, .. } = op {
                *gift = None;
            }
        },
        |op| {
            if let Op::Call { fate, .. } = op {
                *fate = Fate::Awaited;
            }
        },
    ];
    for change in changes {
        attempt(plan, fails, in_call(change));
    }
    for depth in 0..3 {
        for change in simpler() {
            attempt(plan, fails, |plan| {
                let Op::Call { step, .. } = &mut plan.ops[at] else { return };
                let mut step = Some(step);
                for _ in 0..depth {
                    step = step.and_then(|step| step.next.as_deref_mut());
                }
                step.into_iter().for_each(change);
            });
        }
    }
}

/// The parts that may be left out of a step.
fn simpler() -> [fn(&mut Step); 16] {
    [
        |step| (step.calls, step.next) = (0, None),
        |step| step.calls = step.calls.min(1),
        |step| step.writes = 0,
        |step| step.polls = 0,
        |step| step.polls = step.polls.min(1),
        |step| step.awaits = false,
        |step| step.early = false,
        |step| step.keep = false,
        |step| step.use_kept = false,
        |step| step.streams = false,
        |step| step.passes_gift = false,
        |step| step.tails = false,
        |step| step.kibibytes = 0,
        |step| step.caps = 0,
        |step| step.ending = Ending::Return,
        |step| {
            if step.answer != Answer::Nothing {
                step.answer = Answer::Child;
            }
        },
    ]
}
