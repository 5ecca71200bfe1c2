//! Cutting: what was made from a grant that is revoked ends at once, calls under way included, and
//! WebSockets that were opened by it.
//!
//! Everything that was made from an object's grant is on its own host. A namespace's grant is used
//! on other hosts too: `authority/giving` tells them all (`cluster/joining`, `supervisor/router`),
//! and each of them comes here.
//!
//! Invariants:
//! - An object's own turn cuts nothing before it has ended well: one that panics, or is aborted,
//!   has taken nothing back, and neither has a transaction that is undone.
//! - A call that is cut is answered at once, and with nothing of the object. Its handler runs to
//!   its end, and an exclusive object goes on only then.
//! - Nothing is decided here: the caller has revoked before.
//! - Nobody is told of it before that is durable, so that no crash takes back what they were told.
//! - However many grants are cut, they hold up nobody: one walk over all objects ends the calls of
//!   all that were cut before it began, in steps.

use std::rc::Rc;

use capstead_client::sturdyref::GrantId;

use super::sockets;
use crate::host::base::right::{GrantRef, revoked_under_way};
use crate::host::state::slot::Slot;
use crate::host::state::vat::Vat;
use crate::id::ObjectId;
use crate::storage::Space;

/// A turn of an object has ended, and its writes are on their way: the grants of the object that
/// it took back are cut.
pub(in crate::host) fn after_turn(vat: &Rc<Vat>) {
    for GrantRef { target, grant } in vat.live_grants.take_revoked() {
        let record = vat.turns.store().length(target, Space::Grants, grant.as_bytes());
        // It is still there if a transaction around the revocation was undone.
        if matches!(record, Ok(Some(_))) {
            continue;
        }
        vat.metrics.grants_revoked_total.add(1);
        cut(vat, target, &[grant]);
    }
}

/// The slots of one step of a walk.
const STEP: usize = 1024;

/// Nobody begins to use these grants, or what depends on them, from now on. Calls and WebSockets of
/// an object's own grants end at once, and those of a namespace's grants by the time at which
/// [`CutWalks::caught_up`](crate::host::state::cut_walks::CutWalks::caught_up) resolves.
pub(in crate::host) fn cut(vat: &Rc<Vat>, target: ObjectId, grants: &[GrantId]) {
    let cut = grants.iter().map(|grant| vat.live_grants.cut(GrantRef::new(target, *grant)));
    // A holder who uses a grant uses those that it depends on.
    if cut.filter(|was_used| *was_used).count() == 0 {
        return;
    }
    // From an object's grant only that object was made; from a namespace's, any.
    if let Some(own) = vat.objects.find(target) {
        return end_cut(vat, [own]);
    }
    if vat.cut_walks.want() {
        tokio::task::spawn_local(walk(vat.clone()));
    }
}

/// Ends everything of these objects that was made from grants that are cut.
fn end_cut(vat: &Rc<Vat>, slots: impl IntoIterator<Item = Rc<Slot>>) {
    // All replies are taken out first, since those who are answered may call back.
    let mut cut = Vec::new();
    for slot in slots {
        sockets::cut(vat, &slot);
        slot.take_cut(&mut cut);
        if let Some((instance, _)) = slot.awake() {
            instance.take_cut(&mut cut);
            if let Some(exclusive) = &instance.exclusive {
                exclusive.take_cut(&mut cut);
            }
            instance.parked.take_cut(&instance, &mut cut);
        }
        // Its last holder may have gone during the walk.
        vat.objects.release(&slot);
    }
    vat.busy(|| {
        for reply in cut {
            vat.tell_when_durable(reply, revoked_under_way());
        }
    });
}

async fn walk(vat: Rc<Vat>) {
    loop {
        let upto = vat.cut_walks.wanted();
        let mut slots = vat.objects.all().into_iter();
        while slots.len() > 0 {
            end_cut(&vat, slots.by_ref().take(STEP));
            tokio::task::yield_now().await;
        }
        if vat.cut_walks.end(upto) {
            return;
        }
    }
}
