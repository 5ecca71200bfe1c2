//! References in an object's storage: what they lead to, who gets something from them, and that the
//! edges are those of the values at every moment.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use capnp::capability::FromClientHook;
use futures::FutureExt as _;
use proptest::collection::vec;
use proptest::prelude::*;

use super::references::host;
use super::storage::{stored, text, turn};
use super::trial::{World, call_write, made_by, over, read, run, trial};
use crate::error::{Result, failed};
use crate::host::instance::Instance;
use crate::host::run::{Cause, Turns};
use crate::host::{Context, Storage, Stored, Struct, run as turns};
use crate::id::{ObjectId, Pool};
use crate::membrane;
use crate::schema::trial_capnp::trial::{later_params, note_params, pass_params};
use crate::storage::{Range, Reads, Space};
use crate::sturdyref::Seal;

fn id(name: &str) -> ObjectId {
    ObjectId::named(Pool::default(), "Trial", name)
}

/// Stores what is known in this vat: it needs no second poll.
fn put(storage: &Storage, key: &str, object: &trial::Client) -> Result<()> {
    storage.put_ref(key, object).now_or_never().expect("the first poll completes it")
}

/// Lets all polls of `work` be turns of the object.
async fn turns<T>(instance: &Rc<Instance>, work: impl Future<Output = T>) -> T {
    let turns = Turns { instance, cause: Cause::default(), future: Box::pin(work) };
    turns.await.ok().expect("the instance lives")
}

/// A struct with a list of these.
fn passed(objects: Vec<trial::Client>) -> Struct<pass_params::Owned> {
    let built = Struct::build_with_refs(|params: pass_params::Builder<'_>| {
        let mut list = params.init_two(objects.len() as u32);
        for (at, object) in (0..).zip(objects) {
            list.set(at, object.into_client_hook());
        }
        Ok(())
    });
    built.unwrap()
}

fn edges(instance: &Instance, key: &str) -> Vec<u8> {
    let store = instance.vat.store.borrow();
    store.get(instance.birth.id, Space::Edges, key.as_bytes()).unwrap().unwrap_or_default()
}

fn references(instance: &Instance) -> u64 {
    instance.account.usage().references
}

#[test]
fn a_reference_leads_to_its_object_and_writes_nothing_there() {
    run(async {
        let (world, _agent) = host().await;
        let instance = world.instance("x");
        turn(&instance, |storage| put(storage, "a", &world.object("target")).unwrap());
        assert_eq!(edges(&instance, "a"), id("target").as_bytes());
        assert_eq!(references(&instance), 1);
        assert!(!world.vat.exists(id("target")).unwrap());

        let storage = Context::new(instance.clone()).storage();
        let target: trial::Client = storage.get_ref("a").unwrap().unwrap();
        call_write(&target, 7).promise.await.unwrap();
        assert_eq!(read(&world.object("target")).await.unwrap(), 7);
        assert!(storage.get_ref::<trial::Client>("none").unwrap().is_none());

        let value = storage.get("a").unwrap().unwrap();
        for secret in [id("target").as_bytes().as_slice(), b"Trial", b"target"] {
            assert!(!value.windows(secret.len()).any(|part| part == secret), "it is sealed");
        }
    });
}

/// The bytes of a reference are worth something to its owner, under its key, in its cluster.
#[test]
fn a_stolen_value_is_refused_and_has_no_edges() {
    run(async {
        let (world, _agent) = host().await;
        let (owner, thief) = (world.instance("owner"), world.instance("thief"));
        turn(&owner, |storage| put(storage, "a", &world.object("target")).unwrap());
        let value = turn(&owner, |storage| storage.get("a").unwrap().unwrap());
        let foreign = Seal::new(&[8; 32]).seal(owner.birth.id, b"foreign", &[], b"", [1; 24]);
        turn(&thief, |storage| storage.put("a", &value).unwrap());
        turn(&owner, |storage| {
            storage.put("b", &value).unwrap();
            storage.put("foreign", &foreign).unwrap();
            storage.put("cut", &value[..value.len() - 1]).unwrap();
        });
        for (instance, key) in [(&thief, "a"), (&owner, "b"), (&owner, "foreign"), (&owner, "cut")]
        {
            let storage = Context::new(instance.clone()).storage();
            let refused = storage.get_ref::<trial::Client>(key).map(drop);
            assert!(text(refused).starts_with("sealed-elsewhere: "), "{key}");
            assert!(edges(instance, key).is_empty(), "{key}");
        }
        assert_eq!((references(&owner), references(&thief)), (1, 0));
        // The same bytes under the same key are the same reference.
        turn(&owner, |storage| {
            storage.delete("a").unwrap();
            assert!(edges(&owner, "a").is_empty());
            storage.put("a", &value).unwrap();
            assert_eq!(edges(&owner, "a"), id("target").as_bytes());
            assert!(storage.get_ref::<trial::Client>("a").unwrap().is_some());
        });
    });
}

#[test]
fn what_is_no_reference_is_refused_at_the_put() {
    run(async {
        let world = World::new();
        let instance = world.instance("x");
        let ctx = Context::new(instance.clone());
        let storage = ctx.storage();
        let session = made_by(&world.instance("maker"));
        let own: trial::Client = ctx.capability(Rc::new(super::trial::Trial::new(ctx.clone())));
        let stock: trial::Client = capnp_rpc::new_client(super::trial::Trial::new(ctx.clone()));
        let broken = trial::Client::new(membrane::broken(failed("it broke")));
        let ended = world.object("ended");
        let mut panic = ended.panic_request();
        panic.get().set_n(1);
        panic.send().promise.await.map(drop).unwrap_err();
        let far = over(session.clone(), 1);
        for (what, cap) in [
            ("a session", session),
            ("one of its own", own),
            ("a callback", stock),
            ("a broken one", broken),
            ("one that ended", ended),
            ("a session over a connection", far),
        ] {
            let refused = text(turns(&instance, storage.put_ref("k", &cap)).await);
            assert!(refused.starts_with("not-a-reference: "), "{what}: {refused}");
            let later = Struct::<later_params::Owned>::build_with_refs(|mut later| {
                later.set_cap(cap);
                Ok(())
            });
            let later = later.unwrap();
            let put =
                storage.put_struct_with_refs::<later_params::Owned>("k", later.get().unwrap());
            let refused = text(turns(&instance, put).await);
            assert!(refused.starts_with("not-a-reference: "), "{what}: {refused}");
        }
        assert!(storage.get("k").unwrap().is_none());
        assert_eq!(storage.count(), 0);
    });
}

/// The far end is asked, which may be this vat again; what isn't known in time is `overloaded`.
#[test]
fn a_capability_that_is_not_known_here_is_cited_by_its_host() {
    run(async {
        let (world, _agent) = host().await;
        let instance = world.instance("x");
        let storage = Context::new(instance.clone()).storage();
        let far = over(world.object("target"), 2);
        turns(&instance, storage.put_ref("far", &far)).await.unwrap();
        assert_eq!(edges(&instance, "far"), id("target").as_bytes());
        let again: trial::Client = storage.get_ref("far").unwrap().unwrap();
        call_write(&again, 7).promise.await.unwrap();
        assert_eq!(read(&far).await.unwrap(), 7);

        let never: trial::Client = capnp_rpc::new_future_client(std::future::pending());
        let late = turns(&instance, storage.put_ref("never", &never)).await.unwrap_err();
        assert_eq!(late.kind, capnp::ErrorKind::Overloaded);
        assert!(!storage.contains("never").unwrap());
    });
}

#[test]
fn references_stand_anywhere_in_a_struct() {
    run(async {
        let (world, _agent) = host().await;
        let instance = world.instance("x");
        let names = ["a", "b", "a"];
        let objects = passed(names.map(|name| world.object(name)).into());
        turn(&instance, |storage| {
            let objects = objects.get().unwrap();
            let put = storage.put_struct_with_refs::<pass_params::Owned>("s", objects);
            put.now_or_never().expect("the first poll completes it").unwrap();
        });
        assert_eq!(edges(&instance, "s"), names.map(|name| *id(name).as_bytes()).concat());

        let storage = Context::new(instance.clone()).storage();
        let read_back: Struct<pass_params::Owned> =
            storage.get_struct_with_refs("s").unwrap().unwrap();
        let two = read_back.get().unwrap().get_two().unwrap();
        for (cap, n) in two.iter().zip(5..) {
            call_write(&cap.unwrap(), n).promise.await.unwrap();
        }
        assert_eq!(read(&world.object("a")).await.unwrap(), 7);
        assert_eq!(read(&world.object("b")).await.unwrap(), 6);
        turn(&instance, |storage| {
            // Its bytes alone would be nothing, and so they are not stored.
            let refused = text(storage.put_as("plain", &read_back));
            assert!(refused.starts_with("live-capability:"), "{refused}");
        });
    });
}

#[test]
fn a_value_of_another_type_is_refused_by_its_name() {
    run(async {
        let (world, _agent) = host().await;
        let instance = world.instance("x");
        turn(&instance, |storage| {
            storage.put("plain", "bytes").unwrap();
            put(storage, "ref", &world.object("a")).unwrap();
            let note = Struct::<note_params::Owned>::default();
            let note = note.get().unwrap();
            storage.put_struct::<note_params::Owned>("struct", note).unwrap();
            let put = storage.put_struct_with_refs::<note_params::Owned>("sealed", note);
            put.now_or_never().unwrap().unwrap();
            assert_eq!(references(&instance), 1, "a struct without references has no edges");
            for key in ["plain", "struct", "sealed"] {
                let refused = text(storage.get_ref::<trial::Client>(key).map(drop));
                assert!(refused.starts_with("wrong-type: "), "{key}: {refused}");
            }
            for key in ["plain", "struct", "ref"] {
                let refused = storage.get_struct_with_refs::<note_params::Owned>(key).map(drop);
                assert!(text(refused).starts_with("wrong-type: "), "{key}");
            }
            assert!(
                storage.get_struct_with_refs::<note_params::Owned>("sealed").unwrap().is_some()
            );
            assert!(text(storage.get_as::<i64>("ref")).starts_with("wrong-type: "));
        });
    });
}

/// No block is appended for an object that was created and never wrote.
#[test]
fn creating_an_object_and_storing_nothing_leaves_nothing_behind() {
    run(async {
        let (world, _agent) = host().await;
        let instance = world.instance("x");
        let ctx = Context::new(instance.clone());
        world.vat.flush().await.unwrap();
        let before = world.disk.groups().len();
        let child = turn(&instance, |_| ctx.create::<super::trial::Trial>().unwrap());
        assert_eq!(read(&child).await.unwrap(), 0, "it wakes");
        drop(child);
        world.vat.flush().await.unwrap();
        assert_eq!(world.disk.groups().len(), before);

        // One that is stored and never wrote is reached again, and still isn't there.
        let child = ctx.create::<super::trial::Trial>().unwrap();
        turn(&instance, |storage| put(storage, "child", &child).unwrap());
        let child: trial::Client = ctx.storage().get_ref("child").unwrap().unwrap();
        assert_eq!(read(&child).await.unwrap(), 0);
        world.vat.flush().await.unwrap();
        let mut objects = Vec::new();
        world.disk.objects(&mut |object, _, _| objects.push(object)).unwrap();
        assert_eq!(objects, [instance.birth.id]);
    });
}

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

/// What an object must hold, by key.
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

    /// What it refers to under `key`.
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
        let seal = &instance.vat.seal;
        for number in 0..KEYS.len() {
            let key = key(number);
            let expected = self.model.get(&key).map(|value| ids(value.under(&key)));
            assert_eq!(edges(instance, &key), expected.clone().unwrap_or_default(), "{key}");
            let value = instance.read(Space::Data, key.as_bytes()).unwrap();
            let decoded =
                value.map(|value| seal.targets(instance.birth.id, key.as_bytes(), &value));
            assert_eq!(decoded, expected);
        }
        let refers = |(key, value): &(&String, &Value)| !value.under(key).is_empty();
        let count = self.model.iter().filter(refers).count();
        assert_eq!(references(instance), count as u64);
    }

    /// What is on the disk is that and nothing more.
    async fn check_disk(&self) {
        self.world.vat.flush().await.unwrap();
        let mut found = BTreeMap::new();
        let mut visit = |key: &[u8], value: &[u8]| {
            found.insert(String::from_utf8(key.to_vec()).unwrap(), value.to_vec());
            ControlFlow::Continue(())
        };
        self.world.disk.scan(id("x"), Space::Edges, &Range::all(), &mut visit).unwrap();
        let model = self.model.iter().map(|(key, value)| (key.clone(), ids(value.under(key))));
        let expected: BTreeMap<_, _> = model.filter(|(_, targets)| !targets.is_empty()).collect();
        assert_eq!(found, expected);
    }
}

fn ids(targets: &[ObjectId]) -> Vec<u8> {
    targets.iter().flat_map(|target| *target.as_bytes()).collect()
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
        let ended = turns::turn(&instance, &Cause::default(), || {
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
