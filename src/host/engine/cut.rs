//! Cutting: what was made from a grant that is revoked ends at once, calls under way included, and
//! WebSockets that were opened by it.
//!
//! Everything that was made from an object's grant is on its own host. A namespace's grant is used
//! on other hosts too: `authority/records` tells them all (`cluster/membership`,
//! `supervisor/router`), and each of them comes here.
//!
//! Invariants:
//! - A call that is cut is answered at once, and with nothing of the object. Its handler runs to
//!   its end, and an exclusive object goes on only then.
//! - Nothing is decided here: the caller has revoked before.
//! - Nobody is told of it before that is durable, so that no crash takes back what they were told.
//! - However many grants are cut, they hold up nobody: one walk over all objects ends the calls of
//!   all that were cut before it began, in steps.

use std::cell::Cell;
use std::rc::Rc;

use capstead_client::sturdyref::GrantId;
use tokio::sync::watch;

use super::right::{GrantRef, revoked_under_way};
use super::slot::{QueuedCall, Slot};
use super::sockets;
use super::vat::Vat;
use crate::id::ObjectId;
use crate::membrane::Reply;

/// The slots of one step of a walk.
const STEP: usize = 1024;

/// Nobody begins to use these grants, or what depends on them, from now on. Calls and WebSockets of
/// an object's own grants end at once, and those of a namespace's grants by the time at which
/// [`CutWalks::caught_up`] resolves.
pub(in crate::host) fn cut(vat: &Rc<Vat>, target: ObjectId, grants: &[GrantId]) {
    let cut = grants.iter().map(|grant| vat.live_grants.cut(GrantRef::new(target, *grant)));
    // A holder who uses a grant uses those that it depends on.
    if cut.filter(|was_used| *was_used).count() == 0 {
        return;
    }
    // From an object's grant only that object was made; from a namespace's, any.
    match vat.objects.find(target) {
        Some(own) => end_cut(vat, [own]),
        None => vat.cut_walks.want(vat),
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
    vat.busy(|| cut.into_iter().for_each(|reply| tell(vat, reply, revoked_under_way())));
}

/// The walks over all objects that end the calls of namespaces' grants: one at a time.
#[derive(Default)]
pub(in crate::host) struct CutWalks {
    /// The number of times that grants were cut.
    wanted: Cell<u64>,
    /// As many of these as the last walk has ended.
    ended: watch::Sender<u64>,
    is_under_way: Cell<bool>,
}

impl CutWalks {
    fn want(&self, vat: &Rc<Vat>) {
        self.wanted.set(self.wanted.get() + 1);
        if !self.is_under_way.replace(true) {
            tokio::task::spawn_local(walk(vat.clone()));
        }
    }

    /// Resolves when everything has ended that was made from grants that are cut by now.
    pub(in crate::host) async fn caught_up(&self) {
        let wanted = self.wanted.get();
        // The sender is `self`.
        let _ = self.ended.subscribe().wait_for(|ended| *ended >= wanted).await;
    }
}

async fn walk(vat: Rc<Vat>) {
    let walks = &vat.cut_walks;
    loop {
        let wanted = walks.wanted.get();
        let mut slots = vat.objects.all().into_iter();
        while slots.len() > 0 {
            end_cut(&vat, slots.by_ref().take(STEP));
            tokio::task::yield_now().await;
        }
        walks.ended.send_replace(wanted);
        if walks.wanted.get() == wanted {
            return walks.is_under_way.set(false);
        }
    }
}

/// Tells a caller that the grant was taken back, once that is durable.
pub(in crate::host) fn tell(vat: &Rc<Vat>, reply: Reply, error: capnp::Error) {
    if vat.turns.is_settled() {
        return reply.send(Err(error));
    }
    let vat = vat.clone();
    // Ends when all that was written by now is durable, or the storage has failed.
    tokio::task::spawn_local(async move {
        vat.turns.outside_turns().await;
        let flushed = vat.turns.flush().await;
        vat.busy(|| reply.send(Err(flushed.map_or_else(Into::into, |()| error))));
    });
}

/// Takes the replies of calls that were cut; the calls stay where they are, and end without one.
pub(in crate::host) fn take_cut<'a>(
    waiting: impl IntoIterator<Item = &'a mut QueuedCall>,
    cut: &mut Vec<Reply>,
) {
    for queued in waiting {
        if queued.facet.right.is_cut() {
            cut.push(queued.call.reply.take());
        }
    }
}
