//! The right by which somebody holds an object: a grant and caveats, or neither.
//!
//! Invariants:
//! - A right that was derived from another one allows nothing that the other one doesn't.
//! - Once a grant is cut, no right by it, or by one that depends on it, is good again. If the grant
//!   itself comes back, by an import for instance, it is looked up anew.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::{Rc, Weak};
use std::time::Duration;

use capnp::traits::HasTypeId;
use capstead_client::sturdyref::{Caveats, GrantId, Method};
use tokio_util::task::AbortOnDropHandle;

use super::sweeps::Sweeps;
use crate::clock::Clock;
use crate::error::{self, Reason, Result};
use crate::limits::HOLDERS_MAX;
use crate::membrane::Keeper;
use crate::schema::facet_capnp::{facet, persistent};
use crate::schema::http_capnp::http_service;
use crate::schema::surviving_capnp::socket_resumption;
pub(in crate::host) use crate::sturdyref::GrantRef;

/// In the place of a grant's id: the share of all who have a capability without a grant. Objects
/// give such ones away of themselves, and over HTTP `?save=` has grants made of them. It stands in
/// the row of those that a grant was made from, where such a holder had the first of them made.
pub(in crate::host) const WITHOUT_GRANT: GrantId = GrantId::from_bytes([0; 16]);

/// The most grants that are remembered as cut lately, so that an answer from before the cut isn't
/// believed.
const CUT_LATELY_MAX: usize = 1024;

/// The clock may be set meanwhile, and the machine may sleep.
const LOOK_AGAIN: Duration = Duration::from_mins(1);

/// Why somebody may call.
#[derive(Clone, Default)]
pub(in crate::host) struct Right {
    /// None: the server was put together so that its holder has it, by a binding or as the object
    /// itself.
    pub(in crate::host) grant: Option<Rc<LiveGrant>>,
    /// None: no restriction.
    caveats: Option<Rc<Caveats>>,
}

impl Right {
    pub(in crate::host) fn new(grant: Option<Rc<LiveGrant>>, caveats: Caveats) -> Self {
        Self { grant, caveats: (!caveats.is_none()).then(|| Rc::new(caveats)) }
    }

    /// # Errors
    /// When its grant was revoked, or its time is over.
    pub(in crate::host) fn check(&self, clock: &Clock) -> Result<()> {
        if self.is_cut() { Err(revoked()) } else { self.check_time(clock) }
    }

    /// # Errors
    /// When its time is over.
    #[inline]
    pub(in crate::host) fn check_time(&self, clock: &Clock) -> Result<()> {
        if self.until_ms().is_some_and(|last| clock.now_ms() > last) {
            return Err(error::expired());
        }
        Ok(())
    }

    #[inline]
    pub(in crate::host) fn is_cut(&self) -> bool {
        self.grant.as_ref().is_some_and(|grant| grant.is_cut())
    }

    /// The last millisecond of its time; none if it has no end.
    #[inline]
    pub(in crate::host) fn until_ms(&self) -> Option<u64> {
        self.caveats.as_ref().and_then(|caveats| caveats.not_after_ms())
    }

    /// Runs `end` when its time is over, unless the handle is dropped before. None if that has no
    /// end.
    pub(in crate::host) fn at_end(
        &self,
        clock: &Clock,
        end: impl FnOnce() + 'static,
    ) -> Option<AbortOnDropHandle<()>> {
        let until_ms = self.until_ms()?;
        let clock = clock.clone();
        let task = tokio::task::spawn_local(async move {
            while let Some(left_ms) = until_ms.checked_sub(clock.now_ms()) {
                let left = Duration::from_millis(left_ms.saturating_add(1));
                tokio::time::sleep(left.min(LOOK_AGAIN)).await;
            }
            end();
        });
        Some(AbortOnDropHandle::new(task))
    }

    #[inline]
    pub(in crate::host) fn allows(&self, method: Method) -> bool {
        let allows = |caveats: &Rc<Caveats>| caveats.allows(method.interface, method.ordinal);
        self.caveats.as_ref().is_none_or(allows)
    }

    /// All that restricts it.
    pub(in crate::host) fn caveats(&self) -> Caveats {
        self.caveats.as_deref().cloned().unwrap_or_default()
    }

    /// The same right with less.
    ///
    /// # Errors
    /// When it would be bound to too many holders.
    pub(in crate::host) fn narrowed(&self, caveats: &Caveats) -> Result<Self> {
        let caveats = self.caveats().and(caveats);
        if caveats.holders().len() > HOLDERS_MAX {
            return Err(Reason::TooManyHolders.error(format_args!("at most {HOLDERS_MAX} keys")));
        }
        Ok(Self::new(self.grant.clone(), caveats))
    }

    /// Its grant and those from which that was made, the nearest first.
    pub(in crate::host) fn lineage(&self) -> impl Iterator<Item = GrantId> {
        let grant = self.grant.as_deref();
        grant.into_iter().flat_map(|live| {
            [live.grant_ref.grant].into_iter().chain(live.may_give.before.iter().copied())
        })
    }

    /// The right to what a call by this right opens: it ends with this one, and is not restricted
    /// otherwise.
    pub(in crate::host) fn of_what_it_opens(&self) -> Self {
        let caveats = self.until_ms().map_or_else(Caveats::none, Caveats::not_after);
        Self::new(self.grant.clone(), caveats)
    }

    /// The right to what the holder of a namespace reaches through it.
    pub(in crate::host) fn of_objects(&self) -> Self {
        Self::new(self.grant.clone(), self.caveats().for_objects())
    }

    /// Tells whether there is anything that it doesn't allow.
    pub(in crate::host) fn is_restricted(&self) -> bool {
        self.caveats.is_some()
    }
}

/// The one answer to everybody who uses a grant that was taken back.
pub(in crate::host) fn revoked() -> capnp::Error {
    error::revoked(TAKEN_BACK)
}

/// As [`revoked`], for a call that may have begun.
pub(in crate::host) fn revoked_under_way() -> capnp::Error {
    error::revoked_under_way(TAKEN_BACK)
}

const TAKEN_BACK: &str = "the grant of this reference was taken back";

/// The rights that a grant takes from the one from which it is made.
#[derive(Clone, Default)]
pub(in crate::host) struct MayGive {
    /// Grants that survive it.
    pub(in crate::host) independent: bool,
    /// The number of grants that it was made from, in a row.
    pub(in crate::host) depth: u8,
    /// The grants that it was made from, the nearest first, whether it depends on them or not.
    pub(in crate::host) before: Vec<GrantId>,
}

/// The methods of the interface `Facet` that are turns.
pub(in crate::host) const GRANTS: u16 = 3;
/// See [`GRANTS`].
pub(in crate::host) const REVOKE: u16 = 4;
/// The method of the interface `Persistent`.
pub(in crate::host) const SAVE: u16 = 0;

/// Tells whether a call is about grants: it is answered for the class.
pub(in crate::host) fn is_granting(method: Method) -> bool {
    [facet::Client::TYPE_ID, persistent::Client::TYPE_ID].contains(&method.interface)
}

/// The method by which an object gets an HTTP request.
const HTTP_REQUEST: Method = Method { interface: http_service::Client::TYPE_ID, ordinal: 1 };

/// Tells whether the holder of `right` may make a call. A method that the caveats leave out looks
/// as if it weren't there. A call that makes a capability or a reference no stronger than the
/// holder's own is never left out.
#[inline]
pub(in crate::host) fn may_call(right: &Right, method: Method) -> bool {
    match (method.interface, method.ordinal) {
        (persistent::Client::TYPE_ID, _) => true,
        (facet::Client::TYPE_ID, GRANTS | REVOKE) => right.allows(method),
        (facet::Client::TYPE_ID, _) => true,
        // A socket is resumed by those who could have opened it.
        (socket_resumption::Client::TYPE_ID, _) => right.allows(HTTP_REQUEST),
        _ => right.allows(method),
    }
}

/// A grant that somebody in this vat uses. Invariant: there is one of each that isn't cut.
pub(in crate::host) struct LiveGrant {
    pub(in crate::host) grant_ref: GrantRef,
    /// The grant on which it depends.
    parent: Option<Rc<LiveGrant>>,
    pub(in crate::host) may_give: MayGive,
    is_cut: Cell<bool>,
    /// The time of its last restore; 0: none since that was written down.
    restored_ms: Cell<u64>,
    /// The keeper of its calls, once there were any.
    pub(in crate::host) keeper: OnceCell<Rc<Keeper>>,
    all: Weak<LiveGrants>,
}

impl LiveGrant {
    /// Its reference was restored.
    pub(in crate::host) fn was_restored(&self, now_ms: u64) {
        self.restored_ms.set(now_ms);
    }

    /// Tells whether it, or a grant that it depends on, was cut.
    #[inline]
    pub(in crate::host) fn is_cut(&self) -> bool {
        self.with_parents().any(|live| live.is_cut.get())
    }

    /// It, and then those that it depends on.
    pub(in crate::host) fn with_parents(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |live| live.parent.as_deref())
    }
}

impl Drop for LiveGrant {
    fn drop(&mut self) {
        let Some(all) = self.all.upgrade() else { return };
        if self.restored_ms.get() > 0 && !self.is_cut.get() {
            all.restored.borrow_mut().insert(self.grant_ref, self.restored_ms.get());
        }
        let mut by_id = all.by_id.borrow_mut();
        // After a cut another one may have its place.
        if by_id.get(&self.grant_ref).is_some_and(|live| std::ptr::eq(live.as_ptr(), self)) {
            by_id.remove(&self.grant_ref);
        }
    }
}

/// A moment in the order of the cuts of a vat.
#[derive(Clone, Copy)]
pub(in crate::host) struct Moment(u64);

/// The grants that are in use in a vat.
#[derive(Default)]
pub(in crate::host) struct LiveGrants {
    by_id: RefCell<BTreeMap<GrantRef, Weak<LiveGrant>>>,
    /// The times of the last restores of grants that nobody uses any more, until they are written
    /// down.
    restored: RefCell<HashMap<GrantRef, u64>>,
    cut_lately: RefCell<VecDeque<GrantRef>>,
    /// Those that the open turn took back. They are cut when it has ended.
    revoked: RefCell<Vec<GrantRef>>,
    /// The number of all cuts so far.
    cuts: Cell<u64>,
    pub(in crate::host) sweeps: Sweeps,
}

impl LiveGrants {
    /// The grant, if somebody uses it and it is in force.
    pub(in crate::host) fn get(&self, grant_ref: GrantRef) -> Option<Rc<LiveGrant>> {
        let live = self.by_id.borrow().get(&grant_ref)?.upgrade()?;
        let revoked = self.revoked.borrow();
        let is_revoked = live.with_parents().any(|live| revoked.contains(&live.grant_ref));
        (!live.is_cut() && !is_revoked).then_some(live)
    }

    /// The open turn of an object took a grant of it back.
    pub(in crate::host) fn revoke(&self, grant_ref: GrantRef) {
        self.revoked.borrow_mut().push(grant_ref);
    }

    /// Those that the turn which has just ended took back.
    pub(in crate::host) fn take_revoked(&self) -> Vec<GrantRef> {
        self.revoked.take()
    }

    /// Adds a grant that was found to be in force. There is one of each, also if it was found twice
    /// at once.
    pub(in crate::host) fn add(
        self: &Rc<Self>,
        grant_ref: GrantRef,
        parent: Option<Rc<LiveGrant>>,
        may_give: MayGive,
    ) -> Rc<LiveGrant> {
        if let Some(live) = self.get(grant_ref) {
            return live;
        }
        let (is_cut, restored_ms, all) = (Cell::default(), Cell::default(), Rc::downgrade(self));
        let keeper = OnceCell::new();
        let live = LiveGrant { grant_ref, parent, may_give, is_cut, restored_ms, keeper, all };
        let live = Rc::new(live);
        self.by_id.borrow_mut().insert(grant_ref, Rc::downgrade(&live));
        live
    }

    /// The time of the grant's last restore, if that isn't written down yet.
    pub(in crate::host) fn restored(&self, grant_ref: GrantRef) -> Option<u64> {
        let live = self.by_id.borrow().get(&grant_ref).and_then(Weak::upgrade);
        let live = live.map(|live| live.restored_ms.get()).filter(|restored| *restored > 0);
        live.or_else(|| self.restored.borrow().get(&grant_ref).copied())
    }

    /// All grants that were restored since the last time this was asked, and the times.
    pub(in crate::host) fn take_restored(&self) -> Vec<(GrantRef, u64)> {
        let mut restored: Vec<_> = self.restored.take().into_iter().collect();
        let live = self.by_id.borrow().values().filter_map(Weak::upgrade).collect::<Vec<_>>();
        let live = live.iter().map(|live| (live.grant_ref, live.restored_ms.take()));
        restored.extend(live.filter(|(_, restored)| *restored > 0));
        restored
    }

    /// This moment in the order of all cuts.
    pub(in crate::host) fn moment(&self) -> Moment {
        Moment(self.cuts.get())
    }

    /// Tells whether the grant was cut since then, so that an answer to a question from then may be
    /// out of date. For a grant that was cut before, the answer tells whether it is in force again.
    pub(in crate::host) fn was_cut_since(&self, grant_ref: GrantRef, then: Moment) -> bool {
        let since = self.cuts.get() - then.0;
        let cut_lately = self.cut_lately.borrow();
        // Beyond what is remembered, it may have been.
        let known = usize::try_from(since).ok().filter(|since| *since <= cut_lately.len());
        known.is_none_or(|since| cut_lately.iter().rev().take(since).any(|cut| *cut == grant_ref))
    }

    /// From now on nobody can use the grant, or what depends on it. True if anybody did.
    pub(in crate::host) fn cut(&self, grant_ref: GrantRef) -> bool {
        let live = self.by_id.borrow_mut().remove(&grant_ref).and_then(|live| live.upgrade());
        if let Some(live) = &live {
            live.is_cut.set(true);
        }
        let mut cut_lately = self.cut_lately.borrow_mut();
        if cut_lately.len() == CUT_LATELY_MAX {
            cut_lately.pop_front();
        }
        cut_lately.push_back(grant_ref);
        self.cuts.set(self.cuts.get() + 1);
        live.is_some()
    }
}
