//! By which right somebody holds an object: a grant and caveats, or neither.
//!
//! Invariants:
//! - A right that was derived from another one allows nothing that the other one doesn't.
//! - Once a grant is cut, no right of it or of those that depend on it is good again, in this process.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::{Rc, Weak};

use capstead_client::sturdyref::{Caveats, GrantId};

use crate::clock::Clock;
use crate::error::{self, Result, failed};
use crate::id::ObjectId;
use crate::limits::HOLDERS_MAX;

/// Grants of other hosts that were cut lately, and are remembered so that what was asked before isn't
/// believed afterwards.
const CUT_LATELY_MAX: usize = 1024;

/// Which grant is meant: of which target, and which of its own.
pub(super) type Of = (ObjectId, GrantId);

/// Why somebody may call.
#[derive(Clone, Default)]
pub(super) struct Right {
    /// None: the server was put together so that he holds it, by a binding or as the object itself.
    pub(super) grant: Option<Rc<Live>>,
    /// None: no restriction.
    caveats: Option<Rc<Caveats>>,
}

impl Right {
    pub(super) fn new(grant: Option<Rc<Live>>, caveats: Caveats) -> Self {
        Self { grant, caveats: (!caveats.is_none()).then(|| Rc::new(caveats)) }
    }

    /// # Errors
    /// When its grant was revoked, or its time is over.
    pub(super) fn check(&self, clock: &Clock) -> Result<()> {
        if self.is_cut() { Err(revoked()) } else { self.check_time(clock) }
    }

    /// # Errors
    /// When its time is over.
    #[inline]
    pub(super) fn check_time(&self, clock: &Clock) -> Result<()> {
        let last = self.caveats.as_ref().and_then(|caveats| caveats.not_after_ms());
        if last.is_some_and(|last| clock.now_ms() > last) {
            return Err(failed("expired: the time of this capability is over"));
        }
        Ok(())
    }

    #[inline]
    pub(super) fn is_cut(&self) -> bool {
        self.grant.as_ref().is_some_and(|grant| grant.is_cut())
    }

    #[inline]
    pub(super) fn allows(&self, interface: u64, method: u16) -> bool {
        self.caveats.as_ref().is_none_or(|caveats| caveats.allows(interface, method))
    }

    /// All that restricts it.
    pub(super) fn caveats(&self) -> Caveats {
        self.caveats.as_deref().cloned().unwrap_or_default()
    }

    /// The same right with less.
    ///
    /// # Errors
    /// When it would be bound to too many holders.
    pub(super) fn narrowed(&self, caveats: &Caveats) -> Result<Self> {
        let caveats = self.caveats().and(caveats);
        if caveats.holders().len() > HOLDERS_MAX {
            return Err(failed(format!("too-many-holders: at most {HOLDERS_MAX} keys")));
        }
        Ok(Self::new(self.grant.clone(), caveats))
    }

    /// The right to what the holder of a namespace reaches through it: the methods of the namespace are
    /// no methods of its objects, and all else restricts those too.
    pub(super) fn of_objects(&self) -> Self {
        Self::new(self.grant.clone(), self.caveats().without_methods())
    }
}

/// The one answer to who uses what was taken back.
pub(super) fn revoked() -> capnp::Error {
    error::revoked("the grant of this reference was taken back")
}

/// A grant that somebody in this vat uses.
pub(super) struct Live {
    pub(super) of: Of,
    /// What it depends on.
    parent: Option<Rc<Live>>,
    pub(super) allows_independent: bool,
    is_cut: Cell<bool>,
    all: Weak<Grants>,
}

impl Live {
    #[inline]
    fn is_cut(&self) -> bool {
        self.with_parents().any(|live| live.is_cut.get())
    }

    /// It, and the grants that it depends on.
    pub(super) fn with_parents(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |live| live.parent.as_deref())
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let Some(all) = self.all.upgrade() else { return };
        let mut by_id = all.by_id.borrow_mut();
        // After a cut another one may have its place.
        if by_id.get(&self.of).is_some_and(|live| std::ptr::eq(live.as_ptr(), self)) {
            by_id.remove(&self.of);
        }
    }
}

/// The grants that are in use in a vat.
#[derive(Default)]
pub(super) struct Grants {
    by_id: RefCell<HashMap<Of, Weak<Live>>>,
    cut_lately: RefCell<VecDeque<Of>>,
}

impl Grants {
    /// The grant, if somebody uses it and it is in force.
    pub(super) fn get(&self, of: Of) -> Option<Rc<Live>> {
        let live = self.by_id.borrow().get(&of)?.upgrade()?;
        (!live.is_cut()).then_some(live)
    }

    /// A grant that was found to be in force.
    pub(super) fn add(
        self: &Rc<Self>,
        of: Of,
        parent: Option<Rc<Live>>,
        allows_independent: bool,
    ) -> Rc<Live> {
        let (is_cut, all) = (Cell::new(false), Rc::downgrade(self));
        let live = Rc::new(Live { of, parent, allows_independent, is_cut, all });
        self.by_id.borrow_mut().insert(of, Rc::downgrade(&live));
        live
    }

    /// Whether the grant was cut since anybody could have asked for it.
    pub(super) fn was_cut(&self, of: Of) -> bool {
        self.cut_lately.borrow().contains(&of)
    }

    /// From now on nobody can use it, or what depends on it.
    pub(super) fn cut(&self, of: Of) {
        let live = self.by_id.borrow_mut().remove(&of);
        if let Some(live) = live.and_then(|live| live.upgrade()) {
            live.is_cut.set(true);
        }
        let mut cut_lately = self.cut_lately.borrow_mut();
        if cut_lately.len() == CUT_LATELY_MAX {
            cut_lately.pop_front();
        }
        cut_lately.push_back(of);
    }
}
