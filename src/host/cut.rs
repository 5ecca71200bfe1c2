//! Cutting: what was made from a grant that is revoked ends at once, calls under way included.
//!
//! Invariants:
//! - A call that is cut is answered at once, and with nothing of the object: its handler runs to its end, and
//!   an exclusive object goes on only then.
//! - Nothing is decided here: whoever cuts has revoked before.

use std::rc::Rc;

use capstead_client::sturdyref::GrantId;

use super::right::revoked_under_way;
use super::slot::{Start, State};
use super::vat::Vat;
use crate::id::ObjectId;
use crate::membrane::Reply;

impl Vat {
    /// Nobody uses these grants, or what depends on them, from now on.
    pub(super) fn cut(self: &Rc<Self>, target: ObjectId, grants: &[GrantId]) {
        let cut = grants.iter().map(|grant| self.grants.cut((target, *grant)));
        // Whoever uses a grant uses those that it depends on.
        if cut.filter(|was_used| *was_used).count() == 0 {
            return;
        }
        // First taken out: who is answered may call back.
        let mut cut = Vec::new();
        // What was made from an object's grant is that object; from a namespace's, any.
        let own = self.slots.borrow().get(&target).cloned();
        let slots =
            own.map_or_else(|| self.slots.borrow().values().cloned().collect(), |own| vec![own]);
        for slot in slots {
            if let State::Waking(waiting) = &mut *slot.state.borrow_mut() {
                take_cut(waiting, &mut cut);
            }
            let Some((instance, _)) = slot.awake() else { continue };
            for running in instance.running.borrow_mut().values_mut() {
                if running.facet.right.is_cut() {
                    cut.push(running.reply.take());
                }
            }
            if let Some(exclusive) = &instance.exclusive {
                exclusive.take_cut(&mut cut);
            }
        }
        self.busy(|| cut.into_iter().for_each(|reply| reply.send(Err(revoked_under_way()))));
    }
}

/// Takes the replies of calls that were cut; the calls stay where they are, and end without one.
pub(super) fn take_cut<'a>(waiting: impl IntoIterator<Item = &'a mut Start>, cut: &mut Vec<Reply>) {
    for start in waiting {
        if start.facet.right.is_cut() {
            cut.push(start.call.reply.take());
        }
    }
}
