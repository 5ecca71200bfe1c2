//! The objects of a vat: their places, their classes, which are awake, and which wait for which.
//!
//! Most objects of a vat are asleep, and nobody holds them. So an object has a slot only while it
//! is awake or somebody holds a facet of it, and a host has room for many more objects than for
//! slots.
//!
//! Invariants:
//! - An object has one slot at most, and so one instance at most.
//! - The slot of a sleeping object goes with its last holder.
//! - The classes are those that the server was put together with, each with a number, by which the
//!   watchdog names it.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use capstead_client::sturdyref::GrantId;

use super::awake::{Awake, AwakeLimits};
use super::class::{Class, numbered};
use super::exclusive::Waits;
use super::instance::Instance;
use super::slot::{ObjectSpec, Slot};
use crate::error::{Result, failed};
use crate::host::base::quota::class_accounts;
use crate::id::ObjectId;
use crate::storage::{ClassAccount, StorageError, Store};
use crate::sturdyref::root_grant;

/// See the head of the file.
pub(in crate::host) struct Objects {
    slots: RefCell<HashMap<ObjectId, Rc<Slot>>>,
    classes: HashMap<&'static str, Rc<Class>>,
    /// The root grants of the classes.
    roots: HashSet<GrantId>,
    /// The sums of what the objects of a class store together, where that is limited.
    class_accounts: HashMap<&'static str, Rc<ClassAccount>>,
    awake: Awake,
    waits: Waits,
}

impl Objects {
    /// # Errors
    /// When the storage can't be read.
    pub(in crate::host) fn new(
        store: &Store,
        classes: Vec<Class>,
        limits: AwakeLimits,
    ) -> std::result::Result<Self, StorageError> {
        let limited = classes.iter().filter_map(|class| Some((class.name, class.total_limit?)));
        let limited: Vec<_> = limited.collect();
        Ok(Self {
            slots: RefCell::default(),
            roots: classes.iter().map(|class| root_grant(class.name)).collect(),
            class_accounts: class_accounts(store, &limited)?,
            classes: numbered(classes),
            awake: Awake::new(limits),
            waits: Waits::new(),
        })
    }

    /// # Errors
    /// When no class of that name is registered.
    pub(in crate::host) fn class(&self, name: &str) -> Result<Rc<Class>> {
        let class = self.classes.get(name).cloned();
        class.ok_or_else(|| failed(format!("this server has no class named {name}")))
    }

    /// The sum of what the objects of the class store together, if that is limited.
    pub(in crate::host) fn class_account(&self, name: &str) -> Option<Rc<ClassAccount>> {
        self.class_accounts.get(name).cloned()
    }

    pub(in crate::host) fn classes(&self) -> impl Iterator<Item = &Rc<Class>> {
        self.classes.values()
    }

    /// Tells whether it is a root grant, which each namespace has from the start.
    pub(in crate::host) fn is_root(&self, grant: &GrantId) -> bool {
        self.roots.contains(grant)
    }

    /// The slot of an object, a new one if it has none.
    pub(in crate::host) fn slot(&self, spec: &ObjectSpec) -> Rc<Slot> {
        let mut slots = self.slots.borrow_mut();
        slots.entry(spec.id).or_insert_with(|| Slot::new(spec.clone())).clone()
    }

    /// The slot of an object that is awake or held.
    pub(in crate::host) fn find(&self, id: ObjectId) -> Option<Rc<Slot>> {
        self.slots.borrow().get(&id).cloned()
    }

    /// The slots of all objects that are awake or held.
    pub(in crate::host) fn all(&self) -> Vec<Rc<Slot>> {
        self.slots.borrow().values().cloned().collect()
    }

    /// Takes all slots out, at the end of the vat.
    pub(in crate::host) fn take_all(&self) -> Vec<Rc<Slot>> {
        self.slots.take().into_values().collect()
    }

    /// The caller is about to drop `slot`, perhaps as its last holder.
    pub(in crate::host) fn release(&self, slot: &Rc<Slot>) {
        const MAP_AND_CALLER: usize = 2;
        if slot.is_asleep() && Rc::strong_count(slot) == MAP_AND_CALLER {
            self.slots.borrow_mut().remove(&slot.spec.id);
        }
    }

    /// The instance of an object that is awake, or wakes.
    pub(in crate::host) fn instance_of(&self, id: ObjectId) -> Option<Rc<Instance>> {
        let slot = self.find(id)?;
        let awake = slot.awake().map(|(instance, _)| instance);
        awake.or_else(|| slot.waking())
    }

    /// The objects that are awake, and the bounds of these.
    pub(in crate::host) fn awake(&self) -> &Awake {
        &self.awake
    }

    /// The calls that wait for objects.
    pub(in crate::host) fn waits(&self) -> &Waits {
        &self.waits
    }

    /// Objects that are awake or held.
    #[cfg(test)]
    pub(in crate::host) fn count(&self) -> usize {
        self.slots.borrow().len()
    }
}
