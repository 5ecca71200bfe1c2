//! The state machine that drives a `Store` over any storage, and checks it against the oracle.
//!
//! Appends are held back, crashes come at any moment, and commits fail; everything that the store
//! reads, counts and reports in between must match the oracle. It waits for the commit thread where
//! a script says so, and never sleeps.

use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use proptest::sample::Index;
use proptest::test_runner::TestRunner;
use proptest_state_machine::{ReferenceStateMachine as _, StateMachineTest};

use super::keys::Pick;
use super::listing::Listing;
use super::oracle::{CLASS_BYTES, OBJECT_BYTES, Oracle, verdict};
use super::script::{Failure, Knows, OBJECTS, Object, Script, Step};
use super::{Backend, Opened, World, cases, edges, targets, usage};
use crate::id::ObjectId;
use crate::storage::error::StorageError;
use crate::storage::lmdb::layout::Usage;
use crate::storage::log::committer::Ticket;
use crate::storage::range::{Direction, Range};
use crate::storage::space::Space;
use crate::storage::store::account::{Account, ClassAccount};
use crate::storage::store::identity::Presence;
use crate::storage::store::page::{Page, PageSize};
use crate::storage::store::transactions::Savepoint;
use crate::storage::store::{Before, Store};
use crate::storage::testing::model::Fault;
use crate::storage::testing::model::gate::{Held, Stage};

/// The first two share a shard.
const IDS: [ObjectId; OBJECTS] = [
    ObjectId::from_bytes([0; 16]),
    ObjectId::from_bytes([0, 0, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ObjectId::from_bytes([0xff; 16]),
];
/// Longer than any commit takes.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn the_store_is_a_map_for_each_object_and_every_crash_a_prefix<B: Backend>() {
    let config = cases(if B::WHOLE_GROUPS { 150 } else { 1_000 });
    let scripts = Script::sequential_strategy(1..80);
    let run = |(script, steps, seen)| {
        Machine::<B>::test_sequential(config.clone(), script, steps, seen);
        Ok(())
    };
    TestRunner::new(config.clone()).run(&scripts, run).unwrap();
}

struct Machine<B>(PhantomData<B>);

/// A store in use, with the state that it must hold.
struct Running<B> {
    // The fields are dropped in this order: a store waits for its commits, and these for the gate.
    held: Option<Held>,
    session: Session,
    oracle: Oracle,
    listings: Vec<(Object, Listing)>,
    savepoints: Vec<Savepoint>,
    /// Set while a group that was submitted with the gate closed is on its way to the gate.
    awaited: bool,
    submitted: bool,
    backend: B,
}

struct Session {
    store: Store,
    accounts: Vec<Rc<Account>>,
    class: Rc<ClassAccount>,
    progress: Receiver<()>,
}

impl<B: Backend> StateMachineTest for Machine<B> {
    type SystemUnderTest = Running<B>;
    type Reference = Script;

    fn init_test(_: &Script) -> Running<B> {
        Running::start(B::make(), Oracle::new(World::new()))
    }

    fn apply(mut running: Running<B>, _: &Script, step: Step) -> Running<B> {
        match step {
            Step::Begin(object) => running.begin(object),
            Step::Put(object, key, value, knows) => running.put(object, key, &value.0, knows),
            Step::Delete(object, key, knows) => running.delete(object, key, knows),
            Step::Clear(object) => running.clear(object),
            Step::Savepoint | Step::Keep | Step::Undo => running.transaction(&step),
            Step::Submit => running.submit(),
            Step::Discard => running.discard(),
            Step::Commit => running.commit(),
            Step::Settle => running.settle(),
            Step::Sync => running.sync(),
            Step::Hold(stage) => running.hold(stage),
            Step::Release => running.release(),
            Step::Get(object, key) => running.get(object, key),
            Step::List(object, wish, size) => {
                let listing = wish.listing(&running.oracle.map(IDS[object]));
                running.listings.push((object, listing));
                running.page(running.listings.len() - 1, size);
            }
            Step::More(list, size) => running.more(list, size),
            Step::Duplicate => drop(running.backend.inject(Fault::Duplicate)),
            Step::Reopen => running = running.reopen(),
            Step::Crash(keep) => running = running.crash(keep),
            Step::Fail(failure, keep) => running = running.fail(failure, keep),
        }
        running
    }

    fn check_invariants(running: &Running<B>, _: &Script) {
        running.check_usage();
    }

    fn teardown(mut running: Running<B>, _: Script) {
        running.held = None;
        drop(running.reopen());
    }
}

impl<B: Backend> Running<B> {
    /// Opens the storage; the state found must be one that the oracle of the last opening allows.
    fn start(backend: B, last: Oracle) -> Self {
        let session = Session::open(&backend);
        let found = session.world();
        last.recover(&found, B::WHOLE_GROUPS);
        for (object, map) in &found {
            backend.check_records(*object, Space::Data, map);
            backend.check_records(*object, Space::Edges, &edges(map));
        }
        let (listings, savepoints) = (Vec::new(), Vec::new());
        let (held, awaited, submitted, oracle) = (None, false, false, Oracle::new(found));
        let running =
            Self { held, session, oracle, listings, savepoints, awaited, submitted, backend };
        running.check_usage();
        running
    }

    fn check_usage(&self) {
        for (object, account) in IDS.into_iter().zip(&self.session.accounts) {
            assert_eq!(account.usage(), self.oracle.usage(object));
        }
        let left = CLASS_BYTES - self.oracle.bytes();
        let probe =
            Account::new(IDS[0], Usage::default(), u64::MAX, Some(self.session.class.clone()));
        let fits = |bytes| probe.check(Usage { keys: 1, bytes, ..Usage::default() }).is_ok();
        assert!(fits(left) && !fits(left + 1), "the class has another sum than its objects");
    }

    fn begin(&mut self, object: Object) {
        let (store, id) = (&mut self.session.store, IDS[object]);
        store.begin(self.session.accounts[object].clone());
        if self.oracle.begin(id) {
            store.put_record(id, Space::Header, b"", &[object as u8]).unwrap();
        }
    }

    fn ticket(&self) -> Ticket {
        Ticket(self.session.store.last_submitted().0 + 1)
    }

    /// A writer's knowledge of a key's previous value, in the store's terms.
    fn before(&self, object: Object, key: &[u8], knows: Knows) -> Before {
        match knows {
            Knows::Before if !key.is_empty() && key.len() <= crate::limits::KEY_BYTES_MAX => {
                Before::Known(self.oracle.map(IDS[object]).get(key).map(Vec::len))
            }
            _ => Before::Unknown,
        }
    }

    fn put(&mut self, object: Object, key: Pick, value: &[u8], knows: Knows) {
        let key = key.key(&self.oracle.map(IDS[object]));
        let (before, ticket) = (self.before(object, &key, knows), self.ticket());
        let account = &self.session.accounts[object];
        let done = self.session.store.put(account, &key, value, before).map(Some);
        assert_eq!(verdict(done, ticket), self.oracle.put(IDS[object], &key, value));
        self.check_key(object, &key);
    }

    fn delete(&mut self, object: Object, key: Pick, knows: Knows) {
        let key = key.key(&self.oracle.map(IDS[object]));
        let (before, ticket) = (self.before(object, &key, knows), self.ticket());
        let done = self.session.store.delete(&self.session.accounts[object], &key, before);
        assert_eq!(verdict(done, ticket), self.oracle.delete(IDS[object], &key));
        self.check_key(object, &key);
    }

    fn clear(&mut self, object: Object) {
        let ticket = self.ticket();
        let done = self.session.store.clear(&self.session.accounts[object]);
        assert_eq!(verdict(done, ticket), self.oracle.clear(IDS[object]));
    }

    fn transaction(&mut self, step: &Step) {
        let store = &mut self.session.store;
        match step {
            Step::Keep => {
                store.keep(self.savepoints.pop().unwrap());
                self.oracle.keep();
            }
            Step::Undo => {
                store.undo(self.savepoints.pop().unwrap());
                self.oracle.undo();
                self.check_lists();
            }
            _ => {
                let object = store.turn_object().unwrap();
                self.savepoints.push(store.savepoint(object).unwrap());
                self.oracle.savepoint();
            }
        }
    }

    fn submit(&mut self) {
        let ticket = self.session.store.submit_turn();
        self.oracle.submit(ticket);
        self.submitted |= ticket.is_some();
    }

    fn discard(&mut self) {
        self.session.store.discard();
        self.oracle.discard();
    }

    fn commit(&mut self) {
        self.session.store.commit_submitted();
        self.awaited |= self.submitted;
        self.submitted = false;
    }

    fn settle(&mut self) {
        let durable = self.session.store.settle();
        assert!(self.held.is_none() || durable == self.oracle.durable, "the disk was held");
        self.oracle.acknowledge(durable);
        self.check_lists();
    }

    fn sync(&mut self) {
        self.commit();
        let last = self.session.store.last_submitted();
        while self.session.store.durable() < last {
            self.session.progress.recv_timeout(PATIENCE).expect("a commit ends");
        }
        self.settle();
        assert_eq!(self.oracle.durable, last);
    }

    fn hold(&mut self, stage: Stage) {
        self.sync();
        self.awaited = false;
        self.held = Some(self.backend.gate().hold(stage));
    }

    fn release(&mut self) {
        self.held = None;
    }

    fn get(&mut self, object: Object, key: Pick) {
        let key = key.key(&self.oracle.map(IDS[object]));
        self.check_key(object, &key);
    }

    fn check_key(&self, object: Object, key: &[u8]) {
        let (store, object) = (&self.session.store, IDS[object]);
        let (value, length) =
            (store.get(object, Space::Data, key), store.length(object, Space::Data, key));
        if key.is_empty() || key.len() > crate::limits::KEY_BYTES_MAX {
            assert!(matches!(value, Err(StorageError::KeyLength { .. })));
            assert!(matches!(length, Err(StorageError::KeyLength { .. })));
            return;
        }
        let expected = self.oracle.map(object).get(key).cloned();
        assert_eq!(length.unwrap(), expected.as_ref().map(Vec::len));
        let found = store.get(object, Space::Edges, key).unwrap().unwrap_or_default();
        let refers = expected.as_ref().map(|value| targets(key, value)).unwrap_or_default();
        assert_eq!(found, refers.as_bytes());
        assert!(value.unwrap() == expected, "another value than the one that was written");
    }

    fn more(&mut self, list: Index, size: PageSize) {
        if !self.listings.is_empty() {
            self.page(list.index(self.listings.len()), size);
        }
    }

    fn page(&mut self, list: usize, size: PageSize) {
        let (object, listing) = &mut self.listings[list];
        let page =
            self.session.store.page(IDS[*object], &listing.range, size, Page::default()).unwrap();
        listing.check_page(&self.oracle.map(IDS[*object]), size, &page);
    }

    /// Closes the store in order, which commits all submitted turns.
    fn reopen(mut self) -> Self {
        self.check_everything();
        self.session.store.close().unwrap();
        self.oracle.acknowledge(self.oracle.last());
        let Self { session, backend, oracle, .. } = self;
        drop(session);
        Self::start(backend, oracle)
    }

    fn crash(mut self, keep: u64) -> Self {
        if self.held.is_some() && self.awaited {
            self.backend.gate().wait_until_held();
        }
        if self.held.is_none() {
            self.settle();
        }
        let left = self.backend.crash(keep);
        self.held = None;
        let Self { session, oracle, backend, .. } = self;
        drop((session, backend));
        Self::start(left, oracle)
    }

    /// Writes one more turn with a commit that fails, and starts again.
    fn fail(mut self, failure: Failure, keep: u64) -> Self {
        self.sync();
        match failure {
            Failure::Fault(fault) if !self.backend.inject(fault) => return self,
            Failure::Fault(_) => {}
            Failure::Rival => drop(self.backend.rival(IDS[0].home_shard())),
        }
        self.begin(0);
        self.put(0, Pick::Any(super::keys::Short(vec![b'f'])), b"", Knows::Nothing);
        self.submit();
        self.commit();
        let (store, last) = (&self.session.store, self.oracle.last());
        while store.durable() < last && store.failure().is_none() {
            self.session.progress.recv_timeout(PATIENCE).expect("a commit ends");
        }
        self.settle();
        let wrote = self.oracle.last() > self.oracle.durable;
        if wrote {
            self.check_latched();
        }
        let left = self.backend.crash(keep);
        let Self { session, mut oracle, backend, .. } = self;
        drop((session, backend));
        if wrote && matches!(failure, Failure::Fault(Fault::FailedApplied)) {
            oracle.acknowledge(oracle.last());
        } else {
            oracle.lose_unacknowledged();
        }
        Self::start(left, oracle)
    }

    /// Checks that nothing is written or becomes durable any more.
    fn check_latched(&mut self) {
        let (store, account) = (&mut self.session.store, &self.session.accounts[1]);
        store.begin(account.clone());
        let latched = |error| matches!(error, StorageError::Latched(_));
        assert!(store.put(account, b"k", b"v", Before::Unknown).is_err_and(latched));
        assert!(store.delete(account, b"k", Before::Unknown).is_err_and(latched));
        assert!(store.clear(account).is_err_and(latched));
        assert!(store.savepoint(IDS[1]).is_err_and(latched));
        assert_eq!(store.submit_turn(), None);
        assert!(store.close().is_err_and(latched));
        assert_eq!(store.settle(), self.oracle.durable);
    }

    /// Checks that lists of all keys, in both directions, are complete.
    fn check_lists(&self) {
        let both = [Direction::Up, Direction::Down];
        for (object, direction) in IDS.into_iter().flat_map(|object| both.map(|way| (object, way)))
        {
            let mut listing = Listing::all(direction);
            let page =
                self.session.store.page(object, &listing.range, ALL, Page::default()).unwrap();
            listing.check_page(&self.oracle.map(object), ALL, &page);
        }
    }

    fn check_everything(&self) {
        self.check_lists();
        for (object, id) in IDS.into_iter().enumerate() {
            self.oracle.map(id).keys().for_each(|key| self.check_key(object, key));
        }
    }
}

const ALL: PageSize = PageSize { entries: usize::MAX, bytes: usize::MAX };

impl Session {
    fn open<B: Backend>(backend: &B) -> Self {
        let (tell, progress) = channel();
        let on_progress = Box::new(move || tell.send(()).unwrap_or_default());
        let Opened { log, reads, room } = backend.open_behind();
        let mut store = Store::new("test", log, reads, room, on_progress).unwrap();
        store.find_references(Rc::new(|_, key, value| targets(key, value)));
        let mut sum = 0;
        store.objects(&mut |_, _, usage| sum += usage.bytes).unwrap();
        let class = ClassAccount::new(sum, CLASS_BYTES);
        let account =
            |object| store.account(object, Presence::Present, OBJECT_BYTES, Some(class.clone()));
        let accounts = IDS.map(|object| account(object).unwrap()).into();
        Self { store, accounts, class, progress }
    }

    /// Everything stored; checks the counts of it too.
    fn world(&self) -> World {
        let mut found = World::new();
        let mut objects = Vec::new();
        let mut visit =
            |object, header: &[u8], usage| objects.push((object, header.to_vec(), usage));
        self.store.objects(&mut visit).unwrap();
        for (object, header, counted) in objects {
            let number = IDS.iter().position(|id| *id == object).unwrap();
            assert_eq!(header, [number as u8]);
            let page = self.store.page(object, &Range::all(), ALL, Page::default()).unwrap();
            let entries = (0..page.len()).map(|number| page.get(number).unwrap());
            let map = entries.map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
            assert_eq!(counted, usage(&map));
            let record = self.store.get(object, Space::Usage, b"").unwrap();
            assert!(map.is_empty() || record.is_some_and(|record| record == counted.encode()[..]));
            found.insert(object, Rc::new(map));
        }
        found
    }
}
