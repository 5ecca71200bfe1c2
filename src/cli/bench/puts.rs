//! Durable puts of many objects at once, and of one alone, against bare LMDB with the same records.
//!
//! The storage is used as the vat uses it, without calls around it; the bare program commits the
//! same records in one transaction on one thread.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use super::Bench;
use super::baseline_lmdb::BareLmdb;
use super::measure::{Sample, drive_here};
use super::row::{Row, Target};
use crate::error::{Result, failed};
use crate::id::{ObjectId, Pool};
use crate::storage::{Account, Before, LogOptions, Store, StoreOptions, Ticket};

/// The rows of this file.
pub(crate) const NAMES: [&str; 3] = ["durable-puts-64", "durable-puts-512", "durable-put-1"];

/// The key that the bare program writes too.
const KEY: &[u8] = b"value";
const VALUE_BYTES: usize = 100;
/// Puts of each object that may wait for the disk, beside the one that is being made.
const AHEAD: u64 = 2;

/// Measures the rows that are wanted.
///
/// # Errors
/// When a storage can't be made, or fails.
pub(crate) async fn measure(bench: &mut Bench) -> Result<()> {
    for (name, objects) in [("durable-puts-64", 64), ("durable-puts-512", 512)] {
        if bench.wants(name) {
            let rounds = rounds(bench, name, objects).await?;
            bench.add(Row::rates(name, &rounds).target(Target::AtLeast(0.8)));
        }
    }
    let name = "durable-put-1";
    if bench.wants(name) {
        let rounds = rounds(bench, name, 1).await?;
        let p50 = |sample: &Sample| sample.percentile_us(50);
        let pairs = rounds.iter().map(|(bare, ours)| (p50(bare), p50(ours))).collect();
        let row = Row::paired(name, "us", pairs).latency(rounds.iter().map(|(_, ours)| ours));
        bench.add(row.target(Target::AtMost(1.3)));
    }
    Ok(())
}

/// Rounds in which every step makes one put of each object durable.
async fn rounds(bench: &Bench, name: &str, objects: usize) -> Result<Vec<(Sample, Sample)>> {
    let ids: Vec<ObjectId> =
        (0..objects).map(|n| ObjectId::named(Pool::default(), "Bench", &n.to_string())).collect();
    let bare = BareLmdb::open(&bench.scratch.directory(&format!("bare-{name}"))?)?;
    // Many objects go on writing while a sync runs; a lone put is waited for.
    let ahead = if objects > 1 { AHEAD } else { 0 };
    let storage = Puts::open(bench, name, &ids, ahead)?;
    let baseline = async |until| bare.commit_puts(&ids, KEY, VALUE_BYTES, until);
    let measured = async |until| drive_here(until, |n| storage.put_all(n));
    bench.plan.alternate(name, baseline, measured).await
}

/// A storage with its objects.
struct Puts {
    store: RefCell<Store>,
    progress: Receiver<()>,
    accounts: Vec<Rc<Account>>,
    /// Rounds that may wait for the disk while the next one is made.
    ahead: u64,
}

impl Puts {
    fn open(bench: &Bench, name: &str, ids: &[ObjectId], ahead: u64) -> Result<Self> {
        let (told, progress) = channel();
        let on_progress = Box::new(move || told.send(()).unwrap_or_default());
        let options = StoreOptions {
            name: "bench".into(),
            log: LogOptions::default(),
            metrics: Arc::default(),
        };
        let store = Store::open(&bench.scratch.directory(name)?, options, on_progress)?;
        let account = |id: &ObjectId| Ok(store.account(*id, false, u64::MAX, None)?);
        let accounts = ids.iter().map(account).collect::<Result<_>>()?;
        Ok(Self { store: RefCell::new(store), progress, accounts, ahead })
    }

    /// One put of each object, in a turn of its own; then waits until all but the last so many of
    /// such rounds are durable.
    fn put_all(&self, n: u64) -> Result<()> {
        let mut store = self.store.borrow_mut();
        let mut last = Ticket::default();
        let value = [n as u8; VALUE_BYTES];
        for account in &self.accounts {
            store.begin(account.clone());
            store.put(account, KEY, &value, Before::Known(Some(VALUE_BYTES)))?;
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
