//! The share that each holder has of the room for awake objects: how many they may keep awake.
//!
//! An object that runs a call, or whose own capabilities somebody holds, can't sleep. Without a
//! share, the holder of one reference could keep as many as there is room for, and no other object
//! would wake.
//!
//! The calls that led to a turn, and what is made in it, count for the caller who made the first of
//! them. By its grant: for the one below the root from which that was made, since its holder can
//! make others; or for the root itself, by which the gateway calls for all clients of its port. All
//! that comes without a grant has one share, such as calls by bindings of other hosts' objects,
//! with all that comes by grants that were made by somebody without one.
//!
//! Invariants:
//! - Once somebody keeps as much as they may, no further object runs a call of theirs, or wakes for
//!   one. Those that they keep go on, so that what is kept can come to its end.
//! - An object that is kept is in no row of those that may sleep, once it was looked at. It comes
//!   back when it is kept no more.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};

use capstead_client::sturdyref::GrantId;

use super::facet::{Behind, Facet};
use super::instance::Instance;
use super::queued_call::QueuedCall;
use super::slot::Slot;
use super::vat::Vat;
use crate::error::{Reason, Result};
use crate::host::base::right::{Right, WITHOUT_GRANT};
use crate::membrane::{Call, Keeper};

/// The keepers that need an instance awake.
#[derive(Default)]
pub(in crate::host) struct Keepers {
    /// Each of them, and the number of times that it keeps it. There seldom is more than one.
    keepers: RefCell<Vec<(Rc<Keeper>, u32)>>,
    /// The instance is in no row of those that may sleep.
    is_out_of_row: Cell<bool>,
}

impl Keepers {
    pub(in crate::host) fn is_kept(&self) -> bool {
        !self.keepers.borrow().is_empty()
    }

    /// The instance was taken out of its row. True if it stays out until it is kept no more.
    pub(in crate::host) fn stay_out_of_row(&self) -> bool {
        self.is_out_of_row.set(self.is_kept());
        self.is_out_of_row.get()
    }

    /// The instance has another size.
    pub(in crate::host) fn resize(&self, before: usize, now: usize) {
        self.keepers.borrow().iter().for_each(|(keeper, _)| keeper.resize(before, now));
    }

    fn has(&self, keeper: &Rc<Keeper>) -> bool {
        self.keepers.borrow().iter().any(|(of, _)| Rc::ptr_eq(of, keeper))
    }

    fn add(&self, keeper: &Rc<Keeper>, bytes: usize) {
        let mut keepers = self.keepers.borrow_mut();
        if let Some((_, times)) = keepers.iter_mut().find(|(of, _)| Rc::ptr_eq(of, keeper)) {
            *times += 1;
            return;
        }
        keeper.add(bytes);
        keepers.reserve_exact(1);
        keepers.push((keeper.clone(), 1));
    }

    /// True if the instance is kept no more, and has to go back to its row.
    fn remove(&self, keeper: &Rc<Keeper>, bytes: usize) -> bool {
        let mut keepers = self.keepers.borrow_mut();
        let Some(at) = keepers.iter().position(|(of, _)| Rc::ptr_eq(of, keeper)) else {
            return false;
        };
        keepers[at].1 -= 1;
        if keepers[at].1 == 0 {
            keeper.remove(bytes);
            keepers.swap_remove(at);
        }
        keepers.is_empty() && self.is_out_of_row.take()
    }
}

/// Keeps an instance awake until it is dropped.
pub(in crate::host) struct KeptAwake {
    instance: Rc<Instance>,
    keeper: Rc<Keeper>,
}

impl KeptAwake {
    pub(in crate::host) fn new(instance: &Rc<Instance>, keeper: &Rc<Keeper>) -> Self {
        instance.keepers.add(keeper, instance.weight());
        Self { instance: instance.clone(), keeper: keeper.clone() }
    }
}

impl Drop for KeptAwake {
    fn drop(&mut self) {
        let Self { instance, keeper } = self;
        if instance.keepers.remove(keeper, instance.weight()) && instance.broken().is_none() {
            instance.vat.objects.awake().keep_warm(instance);
        }
    }
}

/// The keepers that somebody uses.
#[derive(Default)]
pub(in crate::host) struct AllKeepers {
    by_grant: RefCell<HashMap<GrantId, Weak<Keeper>>>,
    /// That of all who come without a grant.
    without_grant: Rc<Keeper>,
}

impl AllKeepers {
    fn of_grant(&self, grant: GrantId) -> Rc<Keeper> {
        let mut by_grant = self.by_grant.borrow_mut();
        if let Some(keeper) = by_grant.get(&grant).and_then(Weak::upgrade) {
            return keeper;
        }
        if by_grant.len() == by_grant.capacity() {
            by_grant.retain(|_, keeper| keeper.strong_count() > 0);
        }
        let keeper = Rc::default();
        by_grant.insert(grant, Rc::downgrade(&keeper));
        keeper
    }
}

/// The keeper of a call on this facet. A capability that an object made counts for the keeper for
/// which it was made, no matter which caller uses it: it is kept for that one already.
pub(in crate::host) fn keeper(facet: &Facet, call: &mut Call) -> Rc<Keeper> {
    match &facet.behind {
        Behind::Made(made) => made.kept.keeper.clone(),
        _ => call.keeper.take().unwrap_or_else(|| of_right(&facet.vat, &facet.right)),
    }
}

fn of_right(vat: &Vat, right: &Right) -> Rc<Keeper> {
    let all = vat.objects.awake().keepers();
    let Some(live) = &right.grant else { return all.without_grant.clone() };
    let first_keeper = || {
        let (mut first, is_root) = (live.grant_ref.grant, |id: &GrantId| vat.objects.is_root(id));
        for grant in right.lineage() {
            if is_root(&first) || !is_root(&grant) {
                first = grant;
            }
        }
        if first == WITHOUT_GRANT { all.without_grant.clone() } else { all.of_grant(first) }
    };
    live.keeper.get_or_init(first_keeper).clone()
}

/// The keeper of what happens at present.
pub(in crate::host) fn present(vat: &Vat) -> Rc<Keeper> {
    let keeper = vat.keeper.borrow().clone();
    keeper.unwrap_or_else(|| vat.objects.awake().keepers().without_grant.clone())
}

/// Does work that counts for a keeper, outside of turns.
pub(in crate::host) fn on_behalf_of<T>(
    vat: &Vat,
    keeper: Option<&Rc<Keeper>>,
    work: impl FnOnce() -> T,
) -> T {
    let before = vat.keeper.replace(keeper.cloned());
    let done = work();
    vat.keeper.replace(before);
    done
}

/// Checks that the call may keep its object awake.
///
/// # Errors
/// `overloaded:` when its keeper keeps as much as they may, and not this object.
#[inline]
pub(in crate::host) fn check(vat: &Vat, slot: &Slot, queued: &QueuedCall) -> Result<()> {
    if vat.objects.awake().has_room_for(&queued.keeper) {
        return Ok(());
    }
    check_object(vat, slot, queued)
}

#[cold]
fn check_object(vat: &Vat, slot: &Slot, queued: &QueuedCall) -> Result<()> {
    let keeper = &queued.keeper;
    let is_kept = |instance: &Instance| instance.keepers.has(keeper);
    let goes_on = match slot.awake() {
        // A message that was lost would end the WebSocket.
        Some((instance, _)) => is_kept(&instance) || queued.facet.is_of_socket(),
        None => slot.waking().is_some_and(|instance| is_kept(&instance)),
    };
    if goes_on {
        return Ok(());
    }
    vat.metrics.awake_shares_refused_total.add(1);
    let (objects, bytes) = (keeper.objects(), keeper.bytes() >> 20);
    Err(Reason::Overloaded.error(format_args!(
        "your grant, with all that were made from it, keeps {objects} objects awake, which take \
         {bytes} MiB: it may keep a quarter of what --awake-objects and --awake-bytes allow, so \
         try again when some of its calls have ended, or capabilities were let go"
    )))
}
