//! An object awake: its gate, the calls that run in it, and whether it still may act.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use capnp::Error;
use tokio::task::AbortHandle;

use super::header::Header;
use super::run::Running;
use super::slot::Birth;
use super::vat::Vat;
use crate::error::{Result, disconnected};
use crate::gate::Gate;
use crate::membrane::Receipt;
use crate::storage::Space;

pub(super) struct Instance {
    pub(super) vat: Rc<Vat>,
    pub(super) birth: Birth,
    pub(super) gate: Rc<Gate<Receipt>>,
    /// Whether the object's header is written, or is in a batch on its way.
    exists: Cell<bool>,
    ended: Cell<bool>,
    /// What is owed to the callers of handlers that wait for something, by the number of the call.
    pub(super) running: RefCell<HashMap<u64, Running>>,
    /// Their tasks, which end with the instance.
    pub(super) tasks: RefCell<HashMap<u64, AbortHandle>>,
    pub(super) calls: Cell<u64>,
}

impl Instance {
    /// # Errors
    /// When the storage can't be read, or holds an object of another class.
    pub(super) fn new(vat: &Rc<Vat>, birth: Birth) -> Result<Rc<Self>> {
        let header = vat.store.borrow().get(birth.id, Space::Header, &[])?;
        let exists = match header {
            Some(header) => Header::decode(&header)?.is_of(&birth)?,
            None => false,
        };
        Ok(Rc::new(Self {
            vat: vat.clone(),
            birth,
            gate: Gate::new(),
            exists: Cell::new(exists),
            ended: Cell::default(),
            running: RefCell::default(),
            tasks: RefCell::default(),
            calls: Cell::default(),
        }))
    }

    /// Writes in the present turn of this object; the object exists from its first write on.
    ///
    /// # Errors
    /// Outside a turn of this object, on a limit, or when the instance ended: nothing is written.
    pub(super) fn write(&self, space: Space, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        if let Some(error) = self.broken() {
            return Err(error);
        }
        let mut store = self.vat.store.borrow_mut();
        if value.is_none() && !self.exists.get() && store.turn_object() == Some(self.birth.id) {
            return Ok(()); // there is nothing to delete, and deleting is no reason to exist
        }
        let ticket = match value {
            Some(value) => store.put(self.birth.id, space, key, value)?,
            None => store.delete(self.birth.id, space, key)?,
        };
        if !self.exists.replace(true) {
            let header = Header::of(&self.birth).encode();
            store.put(self.birth.id, Space::Header, &[], &header)?;
        }
        self.gate.wrote(ticket);
        Ok(())
    }

    /// # Errors
    /// When the storage can't be read or doesn't hold what was written, or the instance ended.
    pub(super) fn read(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.broken() {
            Some(error) => Err(error),
            None => Ok(self.vat.store.borrow().get(self.birth.id, space, key)?),
        }
    }

    /// Why the instance may not act any more, if so.
    pub(super) fn broken(&self) -> Option<Error> {
        self.ended.get().then(|| self.ended())
    }

    pub(super) fn ended(&self) -> Error {
        disconnected(format!("the {} ended: restore its reference", self.birth.class.name))
    }

    /// Nothing that this instance still does has an effect from now on. Its callers are told, after
    /// what waits in its gate.
    pub(super) fn end(&self) {
        self.ended.set(true);
        for task in self.tasks.take().into_values() {
            task.abort();
        }
        let running = std::mem::take(&mut *self.running.borrow_mut());
        for (_, Running { reply, under_way }) in running {
            let error = self.ended();
            self.gate.reply(move || {
                reply.keep(under_way);
                reply.send(Err(error))
            });
        }
    }
}
