//! The promises of its storage to a class, in turns that the tests make themselves.

use std::cell::RefCell;
use std::rc::Rc;

use super::trial::{World, run};
use crate::error::{Result, failed};
use crate::host::engine::run as turns;
use crate::host::state::instance::Instance;
use crate::host::{Context, List, Storage, Stored, Struct};
use crate::schema::trial_capnp::trial::note_params;
use crate::storage::Space;
use turns::TurnCause;

/// Does something in a turn of the object.
pub(super) fn turn<T>(instance: &Rc<Instance>, work: impl FnOnce(&Storage) -> T) -> T {
    let storage = Context::new(instance.clone()).storage();
    turns::turn(instance, &TurnCause::default(), || work(&storage))
        .ok()
        .expect("the turn doesn't panic")
}

pub(super) fn stored<T: crate::host::Storable>(instance: &Rc<Instance>, key: &str) -> Stored<T> {
    Context::new(instance.clone()).stored(key).unwrap()
}

pub(super) fn text<T: std::fmt::Debug>(refused: Result<T>) -> String {
    refused.unwrap_err().extra
}

pub(super) fn keys(storage: &Storage, list: List) -> String {
    let entries = storage.list(list).unwrap();
    let keys = entries.map(|entry| String::from_utf8(entry.unwrap().0).unwrap());
    keys.collect::<Vec<_>>().join(" ")
}

#[test]
fn typed_values_come_back_and_other_types_are_refused() {
    run(async {
        let instance = World::new().instance("x");
        turn(&instance, |storage| {
            storage.put_as("n", &-5_i64).unwrap();
            storage.put_as("text", &"é".to_owned()).unwrap();
            assert_eq!(storage.get_as("n").unwrap(), Some(-5_i64));
            assert_eq!(storage.get_as("text").unwrap(), Some("é".to_owned()));
            assert_eq!(storage.get_as::<i64>("none").unwrap(), None);
            assert!(text(storage.get_as::<u8>("n")).starts_with("wrong-type: n "));

            let note = Struct::<note_params::Owned>::build(|mut note| {
                note.set_n(7);
                Ok(())
            });
            storage.put_struct::<note_params::Owned>("s", note.unwrap().get().unwrap()).unwrap();
            let read = storage.get_struct::<note_params::Owned>("s").unwrap().unwrap();
            assert_eq!(read.get().unwrap().get_n(), 7);
            assert!(text(storage.get_struct::<note_params::Owned>("n")).starts_with("wrong-type:"));
        });
    });
}

#[test]
fn many_keys_are_read_in_their_order() {
    run(async {
        let instance = World::new().instance("x");
        turn(&instance, |storage| {
            storage.put("a", "1").unwrap();
            storage.put("c", "3").unwrap();
            let found = storage.get_many(["c", "b", "a"]).unwrap();
            assert_eq!(found, [Some(b"3".to_vec()), None, Some(b"1".to_vec())]);
            assert!(storage.contains("a").unwrap() && !storage.contains("b").unwrap());
            assert!(storage.delete("a").unwrap() && !storage.delete("a").unwrap());
            assert!(text(storage.get("")).starts_with("key-length:"));
        });
    });
}

#[test]
fn a_list_has_the_keys_of_its_options() {
    run(async {
        let instance = World::new().instance("x");
        turn(&instance, |storage| {
            for key in ["a", "b", "b1", "b2", "c", "d"] {
                storage.put(key, "").unwrap();
            }
            let check = |list: List, expected: &str| assert_eq!(keys(storage, list), expected);
            check(List::all(), "a b b1 b2 c d");
            check(List::all().reverse(), "d c b2 b1 b a");
            check(List::all().prefix("b"), "b b1 b2");
            check(List::all().prefix("b").reverse().limit(2), "b2 b1");
            check(List::all().start("b1").end("d"), "b1 b2 c");
            check(List::all().start_after("b1").end("d").reverse(), "c b2");
            check(List::all().prefix("b").start("b2"), "b2");
            check(List::all().prefix("b").start("a").end("z"), "b b1 b2");
            check(List::all().prefix("b").end("b1"), "b");
            check(List::all().start("c").end("b"), "");
            check(List::all().limit(0), "");
            assert!(text(storage.list(List::all().start("a").start_after("a"))).contains("both"));
            assert_eq!(storage.first().unwrap().unwrap().0, b"a");
            assert_eq!(storage.last().unwrap().unwrap().0, b"d");
            storage.delete_all().unwrap();
            assert_eq!((storage.first().unwrap(), storage.last().unwrap()), (None, None));
        });
    });
}

#[test]
fn a_list_sees_writes_ahead_of_it_and_none_behind() {
    run(async {
        for reverse in [false, true] {
            let instance = World::new().instance("x");
            let list = if reverse { List::all().reverse() } else { List::all() };
            let mut entries = turn(&instance, |storage| {
                for key in ["b", "d", "f"] {
                    storage.put(key, "old").unwrap();
                }
                let mut entries = storage.list(list).unwrap();
                let first = if reverse { b"f" } else { b"b" };
                assert_eq!(entries.next_entry().unwrap().unwrap().0, first);
                entries
            });
            turn(&instance, |storage| {
                for key in ["a", "c", "d", "g"] {
                    storage.put(key, "new").unwrap();
                }
                let ahead = if reverse { "b" } else { "f" };
                storage.delete(ahead).unwrap();
            });
            let rest: Vec<_> = entries.by_ref().map(|entry| entry.unwrap().0).collect();
            let expected = if reverse { ["d", "c", "a"] } else { ["c", "d", "g"] };
            assert_eq!(rest, expected.map(|key| key.as_bytes().to_vec()));
        }
    });
}

/// Visiting sees what the iterator sees: before and after the writes are durable, and with writes
/// of the visitor itself.
#[test]
fn a_visit_sees_what_the_list_has() {
    run(async {
        let world = World::new();
        let instance = world.instance("x");
        let visited = |storage: &Storage, list: List| {
            let mut seen = String::new();
            let visited = storage.list(list).unwrap().visit(|key, _| {
                seen.push_str(std::str::from_utf8(key).unwrap());
                if key == b"b" {
                    storage.delete("c").unwrap();
                    storage.put("d1", "").unwrap();
                }
                if key == b"x" { Err(failed("enough")) } else { Ok(()) }
            });
            (seen, visited.is_ok())
        };
        let check = |list: List, expected: &str, ok: bool| {
            let seen = turn(&instance, |storage| {
                let seen = visited(storage, list);
                storage.delete("d1").unwrap();
                storage.put("c", "").unwrap();
                seen
            });
            assert_eq!(seen, (expected.to_owned(), ok));
        };
        turn(&instance, |storage| {
            for key in ["a", "b", "c", "d", "e", "x", "y"] {
                storage.put(key, "").unwrap();
            }
        });
        for is_durable in [false, true] {
            if is_durable {
                world.vat.flush().await.unwrap();
                super::trial::settle().await;
            }
            check(List::all().end("f"), "abdd1e", true);
            check(List::all().end("f").limit(3), "abd", true);
            check(List::all().start("c"), "cdex", false);
            check(List::all().end("f").reverse(), "edcba", true);
            world.vat.flush().await.unwrap();
            super::trial::settle().await;
            check(List::all().start_after("c").end("f").limit(1), "d", true);
        }
    });
}

/// More than one page, with short and long keys and values of all sizes.
#[test]
fn a_long_list_is_whole() {
    run(async {
        let instance = World::new().instance("x");
        turn(&instance, |storage| {
            for n in 0..5_000_u32 {
                storage.put(n.to_be_bytes(), vec![1; n as usize % 300]).unwrap();
            }
        });
        turn(&instance, |storage| {
            let mut entries = storage.list(List::all().start_after(10_u32.to_be_bytes())).unwrap();
            for n in 11..5_000_u32 {
                let (key, value) = entries.next_entry().unwrap().unwrap();
                assert_eq!((key, value.len()), (n.to_be_bytes().as_slice(), n as usize % 300));
            }
            assert!(entries.next_entry().unwrap().is_none());
        });
    });
}

#[test]
fn counts_and_sizes_are_known_at_every_moment() {
    run(async {
        let world = World::new();
        let instance = world.instance("x");
        let sizes = |storage: &Storage| (storage.count(), storage.size_bytes());
        turn(&instance, |storage| {
            storage.put("ab", "xyz").unwrap();
            storage.put("c", "").unwrap();
            assert_eq!(sizes(storage), (2, 6));
            storage.put("ab", "x").unwrap();
            assert_eq!(sizes(storage), (2, 4));
            storage.delete("c").unwrap();
            let undone = storage.transaction(|| {
                storage.put("d", "12345").unwrap();
                assert_eq!(sizes(storage), (2, 9));
                Err::<(), _>(failed("no"))
            });
            assert_eq!((sizes(storage), text(undone).as_str()), ((1, 3), "no"));
        });
        let again = world.instance("x");
        turn(&again, |storage| {
            assert_eq!(sizes(storage), (1, 3));
            storage.delete_all().unwrap();
            assert_eq!(sizes(storage), (0, 0));
        });
    });
}

#[test]
fn a_stored_value_follows_every_way_of_writing_its_key() {
    run(async {
        let instance = World::new().instance("x");
        let (one, two) = (stored::<i64>(&instance, "n"), stored::<i64>(&instance, "n"));
        let other = stored::<String>(&instance, "text");
        let both = || (one.get(), two.get());
        turn(&instance, |storage| {
            one.set(1).unwrap();
            assert_eq!(both(), (1, 1));
            storage.put("n", 2_i64.to_be_bytes()).unwrap();
            assert_eq!(both(), (2, 2));
            let refused = storage.put("n", "no number");
            assert!(text(refused).starts_with("wrong-type:"));
            assert_eq!((both(), storage.get_as("n").unwrap()), ((2, 2), Some(2_i64)));
            let undone: Result<()> = storage.transaction(|| {
                one.set(3).unwrap();
                storage.put("text", "inside").unwrap();
                let inner: Result<()> = storage.transaction(|| {
                    storage.delete_all().unwrap();
                    assert_eq!((both(), other.get()), ((0, 0), String::new()));
                    two.set(4).unwrap();
                    Err(failed("inner"))
                });
                inner.unwrap_err();
                assert_eq!((both(), other.get().as_str()), ((3, 3), "inside"));
                Err(failed("outer"))
            });
            undone.unwrap_err();
            assert_eq!((both(), other.get()), ((2, 2), String::new()));
            storage.delete("n").unwrap();
            assert_eq!(both(), (0, 0));
            // The length that it knows is the right one: sizes stay exact.
            two.set(5).unwrap();
            one.set(6).unwrap();
            assert_eq!((storage.count(), storage.size_bytes()), (1, 9));
        });
    });
}

#[test]
fn a_value_that_was_loaded_in_an_undone_transaction_is_right() {
    run(async {
        let instance = World::new().instance("x");
        turn(&instance, |storage| {
            let mut loaded = None;
            let undone: Result<()> = storage.transaction(|| {
                storage.put("n", 4_i64.to_be_bytes()).unwrap();
                let inner: Result<()> = storage.transaction(|| {
                    storage.put("n", 5_i64.to_be_bytes()).unwrap();
                    loaded = Some(stored::<i64>(&instance, "n"));
                    Err(failed("inner"))
                });
                inner.unwrap_err();
                assert_eq!(loaded.as_ref().unwrap().get(), 4);
                Err(failed("outer"))
            });
            undone.unwrap_err();
            let value = loaded.unwrap();
            assert_eq!(value.get(), 0);
            value.set(6).unwrap();
            assert_eq!((storage.count(), storage.size_bytes()), (1, 9));
        });
    });
}

/// Values may do what they like when they are dropped.
#[test]
fn a_value_that_writes_as_it_is_dropped_is_no_trouble() {
    thread_local! {
        static STORAGE: RefCell<Option<Storage>> = const { RefCell::new(None) };
    }

    #[derive(Clone, Default)]
    struct Noisy(u8);

    impl Drop for Noisy {
        fn drop(&mut self) {
            let storage = STORAGE.with_borrow(Clone::clone);
            if let Some(storage) = storage.filter(|_| self.0 == 1) {
                storage.put("m", 7_i64.to_be_bytes()).unwrap();
            }
        }
    }

    impl crate::host::Storable for Noisy {
        fn encode<R>(&self, write: impl FnOnce(&[u8]) -> R) -> R {
            write(&[self.0])
        }

        fn decode(bytes: &[u8]) -> Option<Self> {
            bytes.first().map(|byte| Self(*byte))
        }
    }

    run(async {
        let instance = World::new().instance("x");
        let noisy = stored::<Noisy>(&instance, "k");
        let number = stored::<i64>(&instance, "m");
        turn(&instance, |storage| {
            noisy.set(Noisy(1)).unwrap();
            STORAGE.set(Some(storage.clone()));
            storage.transaction(|| noisy.set(Noisy(2))).unwrap();
            STORAGE.set(None);
        });
        assert_eq!(number.get(), 7);
    });
}

#[test]
fn a_list_of_an_ended_instance_fails() {
    run(async {
        let instance = World::new().instance("x");
        let mut entries = turn(&instance, |storage| {
            storage.put("a", "1").unwrap();
            storage.put("b", "1").unwrap();
            let mut entries = storage.list(List::all()).unwrap();
            entries.next_entry().unwrap();
            entries
        });
        drop(instance.end("ended"));
        assert!(entries.next_entry().is_err());
    });
}

#[test]
fn quotas_are_refused_at_the_call_and_what_shrinks_is_not() {
    run(async {
        let world = World::with_quotas(100, Some(150));
        let (one, two) = (world.instance("x"), world.instance("y"));
        turn(&one, |storage| {
            storage.put("a", vec![0; 90]).unwrap();
            let refused = text(storage.put("b", vec![0; 10]));
            assert!(refused.starts_with("over-quota: the object"), "{refused}");
            assert!(refused.contains("102 bytes") && refused.contains("100"), "{refused}");
            assert_eq!(storage.get("b").unwrap(), None);
        });
        turn(&two, |storage| {
            let refused = text(storage.put("a", vec![0; 59]));
            assert!(refused.starts_with("over-quota: the class"), "{refused}");
            storage.put("a", vec![0; 58]).unwrap();
        });
        turn(&one, |storage| storage.put("a", vec![0; 80]).unwrap());
        turn(&two, |storage| storage.put("a", vec![0; 68]).unwrap());
        turn(&one, |storage| storage.delete_all().unwrap());
        turn(&two, |storage| storage.put("a", vec![0; 99]).unwrap());
    });
}

/// The sum of what a class stores is taken from the storage when the server starts.
#[test]
fn the_quota_of_a_class_survives_a_restart() {
    run(async {
        let world = World::new();
        for name in ["x", "y"] {
            turn(&world.instance(name), |storage| storage.put("a", vec![0; 49]).unwrap());
        }
        world.vat.flush().await.unwrap();
        let again = world.restart_with_quotas(1_000, Some(120));
        turn(&again.instance("z"), |storage| {
            assert!(text(storage.put("a", vec![0; 20])).contains("121 bytes"));
            storage.put("a", vec![0; 19]).unwrap();
        });
    });
}

#[test]
fn writes_outside_a_turn_are_refused_by_name() {
    run(async {
        let instance = World::new().instance("x");
        let storage = Context::new(instance.clone()).storage();
        let value = stored::<i64>(&instance, "n");
        let tries = [
            storage.put("a", "1").map(drop),
            storage.put_unconfirmed("a", "1"),
            storage.delete("a").map(drop),
            storage.delete_all(),
            storage.transaction(|| unreachable!("it isn't run")),
            value.set(1),
        ];
        for refused in tries {
            assert!(text(refused).starts_with("outside-turn:"));
        }
        assert_eq!((value.get(), storage.count()), (0, 0));
        assert_eq!(instance.read(Space::Data, b"a").unwrap(), None);
    });
}
