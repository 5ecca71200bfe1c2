//! Random writes, of which some are undone: the edges are those of the values at every moment.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use futures::FutureExt as _;
use proptest::collection::vec;
use proptest::prelude::*;

use super::super::storage::stored;
use super::super::trial::{World, run, trial};
use super::{edges, id, passed, put, references};
use crate::error::failed;
use crate::host::engine::run::{TurnCause, turn};
use crate::host::state::instance::Instance;
use crate::host::{Context, Storage, Stored};
use crate::id::{ObjectId, ObjectIds};
use crate::schema::trial_capnp::trial::pass_params;
use crate::storage::{Range, Reads, Space};

const KEYS: [&str; 5] = ["a", "b", "c", "kept", "long"];

/// One of the keys by its number; the last one takes several records of the engine.
fn key(number: usize) -> String {
    if KEYS[number] == "long" { "long".repeat(400) } else { KEYS[number].to_owned() }
}

#[derive(Clone, Debug)]
enum Step {
    Put(usize),
    PutUnconfirmed(usize),
    PutRef(usize, u8),
    PutStruct(usize, Vec<u8>),
    /// The bytes of one key under another, or under the same.
    Copy(usize, usize),
    Delete(usize),
    DeleteAll,
    /// By the value in memory of the key `kept`.
    Set(Option<u8>),
    Transaction(Vec<Step>, End),
}

#[derive(Clone, Copy, Debug)]
enum End {
    Kept,
    Undone,
    Panics,
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![3 => Just(End::Kept), 2 => Just(End::Undone), 1 => Just(End::Panics)]
}

fn step() -> impl Strategy<Value = Step> {
    let key = || 0..KEYS.len();
    let step = prop_oneof![
        2 => key().prop_map(Step::Put),
        1 => key().prop_map(Step::PutUnconfirmed),
        6 => (key(), 0..3u8).prop_map(|(key, target)| Step::PutRef(key, target)),
        2 => (key(), vec(0..3u8, 0..3)).prop_map(|(key, targets)| Step::PutStruct(key, targets)),
        2 => (key(), key()).prop_map(|(from, to)| Step::Copy(from, to)),
        2 => key().prop_map(Step::Delete),
        1 => Just(Step::DeleteAll),
        2 => proptest::option::of(any::<u8>()).prop_map(Step::Set),
    ];
    step.prop_recursive(2, 12, 5, |step| {
        (vec(step, 0..5), end()).prop_map(|(steps, end)| Step::Transaction(steps, end))
    })
}

/// The values that an object must hold, by key.
type Model = BTreeMap<String, Value>;

/// A value: the targets of what was put under some key. A copy means them only where it came from.
#[derive(Clone, Default)]
struct Value {
    origin: String,
    targets: Vec<ObjectId>,
}

impl Value {
    fn of(key: &str, targets: Vec<ObjectId>) -> Self {
        Self { origin: key.to_owned(), targets }
    }

    /// The objects to which it refers under `key`.
    fn under(&self, key: &str) -> &[ObjectId] {
        if self.origin == key { &self.targets } else { &[] }
    }
}

struct Run {
    world: World,
    storage: Storage,
    kept: Stored<Vec<u8>>,
    model: Model,
}

impl Run {
    fn target(number: u8) -> ObjectId {
        id(&number.to_string())
    }

    fn object(&self, number: u8) -> trial::Client {
        self.world.object(&number.to_string())
    }

    fn apply(&mut self, steps: &[Step]) {
        for step in steps {
            self.step(step);
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Put(at) => {
                self.storage.put(key(*at), "plain").unwrap();
                self.model.insert(key(*at), Value::default());
            }
            Step::PutUnconfirmed(at) => {
                self.storage.put_unconfirmed(key(*at), "plain").unwrap();
                self.model.insert(key(*at), Value::default());
            }
            Step::PutRef(at, target) => {
                put(&self.storage, &key(*at), &self.object(*target)).unwrap();
                self.model.insert(key(*at), Value::of(&key(*at), vec![Self::target(*target)]));
            }
            Step::PutStruct(at, targets) => self.put_struct(&key(*at), targets),
            Step::Copy(from, to) => {
                let Some(value) = self.storage.get(key(*from)).unwrap() else { return };
                self.storage.put(key(*to), value).unwrap();
                let copy = self.model[&key(*from)].clone();
                self.model.insert(key(*to), copy);
            }
            Step::Delete(at) => {
                let was = self.model.remove(&key(*at)).is_some();
                assert_eq!(self.storage.delete(key(*at)).unwrap(), was);
            }
            Step::DeleteAll => {
                self.storage.delete_all().unwrap();
                self.model.clear();
            }
            Step::Set(None) => {
                // The value in memory is the bytes that are there.
                self.kept.set(self.kept.get()).unwrap();
                self.model.entry("kept".to_owned()).or_default();
            }
            Step::Set(Some(byte)) => {
                self.kept.set(vec![*byte; 9]).unwrap();
                self.model.insert("kept".to_owned(), Value::default());
            }
            Step::Transaction(steps, end) => self.transaction(steps, *end),
        }
    }

    fn put_struct(&mut self, key: &str, targets: &[u8]) {
        let objects = passed(targets.iter().map(|target| self.object(*target)).collect());
        let objects = objects.get().unwrap();
        let put = self.storage.put_struct_with_refs::<pass_params::Owned>(key, objects);
        put.now_or_never().unwrap().unwrap();
        let targets = targets.iter().copied().map(Self::target).collect();
        self.model.insert(key.to_owned(), Value::of(key, targets));
    }

    fn transaction(&mut self, steps: &[Step], end: End) {
        let (before, storage) = (self.model.clone(), self.storage.clone());
        let ended = catch_unwind(AssertUnwindSafe(|| {
            storage.transaction(|| {
                self.apply(steps);
                match end {
                    End::Kept => Ok(()),
                    End::Undone => Err(failed("undone")),
                    End::Panics => panic!("a test panics"),
                }
            })
        }));
        if !matches!(ended, Ok(Ok(()))) {
            self.model = before;
        }
    }

    /// Compares the edges and their number to the model, and the values too.
    fn check(&self, instance: &Instance) {
        let cipher = &instance.vat.reference_cipher;
        for number in 0..KEYS.len() {
            let key = key(number);
            let expected = self.model.get(&key).map(|value| ids(value.under(&key)));
            let record = expected.clone().unwrap_or_default();
            assert_eq!(edges(instance, &key), record.as_bytes(), "{key}");
            let value = instance.read(Space::Data, key.as_bytes()).unwrap();
            let decoded =
                value.map(|value| cipher.targets(instance.spec.id, key.as_bytes(), &value));
            assert_eq!(decoded, expected);
        }
        let refers = |(key, value): &(&String, &Value)| !value.under(key).is_empty();
        let count = self.model.iter().filter(refers).count();
        assert_eq!(references(instance), count as u64);
    }

    /// Checks that the disk has that and nothing more.
    async fn check_disk(&self) {
        self.world.vat.flush().await.unwrap();
        let mut found = BTreeMap::new();
        let mut visit = |key: &[u8], value: &[u8]| {
            found.insert(String::from_utf8(key.to_vec()).unwrap(), value.to_vec());
            ControlFlow::Continue(())
        };
        self.world.disk.scan(id("x"), Space::Edges, &Range::all(), &mut visit).unwrap();
        let model = self.model.iter().map(|(key, value)| (key.clone(), ids(value.under(key))));
        let edges = model.filter(|(_, targets)| !targets.is_empty());
        let expected: BTreeMap<_, _> =
            edges.map(|(key, targets)| (key, targets.as_bytes().to_vec())).collect();
        assert_eq!(found, expected);
    }
}

fn ids(targets: &[ObjectId]) -> ObjectIds {
    targets.iter().copied().collect()
}

/// Runs each list as a turn, of which some panic.
async fn edges_follow(script: Vec<(Vec<Step>, bool)>) {
    let mut world = World::new();
    let mut model = Model::new();
    for (steps, panics) in script {
        let instance = world.instance("x");
        let storage = Context::new(instance.clone()).storage();
        let kept = stored(&instance, "kept");
        let before = model.clone();
        let mut run = Run { world, storage, kept, model };
        let ended = turn(&instance, &TurnCause::default(), || {
            run.apply(&steps);
            run.check(&instance);
            assert!(!panics, "a test panics");
        });
        assert_eq!(ended.is_err(), panics, "nothing else panics");
        if panics {
            run.model = before;
        }
        run.check_disk().await;
        run.check(&run.world.instance("x"));
        (world, model) = (run.world, run.model);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_edges_are_those_of_the_values_whatever_is_written_and_undone(
        script in vec((vec(step(), 0..8), proptest::bool::weighted(0.15)), 1..6),
    ) {
        run(edges_follow(script));
    }
}
