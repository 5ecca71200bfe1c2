//! Cutting: what was made from a grant that is revoked ends at once, calls under way included, and
//! WebSockets that were opened by it.
//!
//! Everything that was made from an object's grant is on its own host. A namespace's grant is used
//! on other hosts too: `authority/records` tells them all (`cluster/membership`,
//! `supervisor/router`), and each of them comes here.
//!
//! Invariants:
//! - An object's own turn cuts nothing before it has ended well: one that panics, or is aborted,
//!   has taken nothing back, and neither has a transaction that is undone.
//! - A call that is cut is answered at once, and with nothing of the object. Its handler runs to
//!   its end, and an exclusive object goes on only then.
//! - Nothing is decided here: the caller has revoked before.
//! - Nobody is told of it before that is durable, so that no crash takes back what they were told.

use std::rc::Rc;

use capstead_client::sturdyref::GrantId;

use super::sockets;
use crate::host::base::right::{GrantRef, revoked_under_way};
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

/// Nobody uses these grants, or what depends on them, from now on.
pub(in crate::host) fn cut(vat: &Rc<Vat>, target: ObjectId, grants: &[GrantId]) {
    let cut = grants.iter().map(|grant| vat.live_grants.cut(GrantRef::new(target, *grant)));
    // A holder who uses a grant uses those that it depends on.
    if cut.filter(|was_used| *was_used).count() == 0 {
        return;
    }
    // All replies are taken out first, since those who are answered may call back.
    let mut cut = Vec::new();
    // From an object's grant only that object was made; from a namespace's, any.
    let own = vat.objects.find(target);
    let slots = own.map_or_else(|| vat.objects.all(), |own| vec![own]);
    for slot in slots {
        sockets::cut(vat, &slot);
        slot.take_cut(&mut cut);
        let Some((instance, _)) = slot.awake() else { continue };
        instance.take_cut(&mut cut);
        if let Some(exclusive) = &instance.exclusive {
            exclusive.take_cut(&mut cut);
        }
        instance.parked.take_cut(&instance, &mut cut);
    }
    vat.busy(|| {
        cut.into_iter().for_each(|reply| vat.tell_when_durable(reply, revoked_under_way()))
    });
}
