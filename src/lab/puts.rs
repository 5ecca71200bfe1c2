//! Repeated rounds of puts, each of one value for each of some objects, in a turn of its own.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use crate::error::{Result, failed};
use crate::id::{ObjectId, Pool};
use crate::storage::{Account, Before, LogOptions, Presence, Store, StoreOptions, Ticket};

/// A storage with its objects, driven turn by turn as a vat drives it.
#[derive(Debug)]
pub struct Puts {
    store: RefCell<Store>,
    progress: Receiver<()>,
    objects: Vec<ObjectId>,
    accounts: Vec<Rc<Account>>,
    /// Rounds that may wait for the disk while the next one is made.
    ahead: u64,
}

impl Puts {
    /// Makes a storage in an empty directory, with this many objects.
    ///
    /// # Errors
    /// It can't be made.
    pub fn open(dir: &Path, objects: usize, ahead: u64) -> Result<Self> {
        let objects: Vec<_> = (0..objects)
            .map(|n| ObjectId::named(Pool::default(), "Bench", &n.to_string()))
            .collect();
        let (told, progress) = channel();
        let on_progress = Box::new(move || told.send(()).unwrap_or_default());
        let options = StoreOptions {
            name: "bench".into(),
            log: LogOptions::default(),
            metrics: Arc::default(),
        };
        let store = Store::open(dir, options, on_progress)?;
        let account = |id: &ObjectId| Ok(store.account(*id, Presence::Absent, u64::MAX, None)?);
        let accounts = objects.iter().map(account).collect::<Result<_>>()?;
        Ok(Self { store: RefCell::new(store), progress, objects, accounts, ahead })
    }

    /// The shard and id of each object, as its keys on disk begin.
    pub fn objects(&self) -> impl Iterator<Item = ([u8; 2], [u8; 16])> {
        self.objects.iter().map(|id| (id.home_shard().0.to_be_bytes(), *id.as_bytes()))
    }

    /// Puts `value` under `key` of each object, in a turn of its own; then waits until all but the
    /// last `ahead` of such rounds are durable.
    ///
    /// # Errors
    /// The storage fails.
    pub fn put_all(&self, key: &[u8], value: &[u8]) -> Result<()> {
        let mut store = self.store.borrow_mut();
        let mut last = Ticket::default();
        for account in &self.accounts {
            store.begin(account.clone());
            store.put(account, key, value, Before::Known(Some(value.len())))?;
            last = store.submit_turn().unwrap_or(last);
        }
        store.commit_submitted();
        let last = Ticket(last.0.saturating_sub(self.ahead * self.accounts.len() as u64));
        while store.settle() < last {
            if let Some(error) = store.failure() {
                return Err(error.into());
            }
            self.progress.recv().map_err(|_| failed("the commit thread has ended"))?;
        }
        Ok(())
    }
}
