//! Alarms fire at least once, and once unless something failed; they are there exactly if the turn
//! is that set them.

mod bell;
mod faults;
mod firing;
mod importing;

use std::rc::Rc;
use std::time::Duration;

use self::bell::{act, bell, clock, get, quiet, rung, set, turn, until};
use super::storage::text;
use super::trial::{World, run};
use crate::error::failed;
use crate::host::base::header::Header;
use crate::host::engine::alarms;
use crate::host::engine::run::{self as turns, TurnCause};
use crate::host::{Context, Object, Vat};
use crate::id::ObjectId;
use crate::limits::{ALARM_NAME_BYTES_MAX, ALARM_TRIES_MAX, ALARMS_MAX};
use crate::storage::Space;
use crate::storage::log::batch::{Op, WriteSet};

pub(super) use self::bell::Bell;

pub(super) const HOUR: u64 = 3_600_000;

/// A world whose clock shows an hour, and which fires alarms.
fn firing_world() -> World {
    let world = World::new();
    world.now.set(HOUR);
    world.vat.fire_alarms();
    world
}

/// The times that are written, of all objects: those of alarms that are due ever.
fn times(vat: &Vat) -> usize {
    vat.turns.store().due((0, u64::MAX), usize::MAX, &|_| true).unwrap().now.len()
}

/// All turns that are durable, in their order.
fn durable_turns(world: &World) -> Vec<WriteSet> {
    world.disk.groups().into_iter().flatten().flat_map(|block| block.writes).collect()
}

/// The keys that a turn wrote in a space, each with whether it was removed.
fn keys(turn: &WriteSet, of: Space) -> Vec<(Vec<u8>, bool)> {
    let key = |op: Op<'_>| match op {
        Op::Put { space, key, .. } if space == of => Some((key.to_vec(), false)),
        Op::Delete { space, key } if space == of => Some((key.to_vec(), true)),
        _ => None,
    };
    turn.ops().filter_map(|op| key(op.unwrap())).collect()
}

#[test]
fn an_alarm_fires_once_when_it_is_due_and_is_gone() {
    run(async {
        let world = firing_world();
        set(&world, "x", "tea", HOUR + 10);
        clock(&world, HOUR + 9);
        quiet(&world).await;
        assert!(rung().is_empty());
        clock(&world, HOUR + 10);
        until(|| rung() == ["x/tea"]).await;
        quiet(&world).await;
        for later in [11, 1_000, HOUR] {
            clock(&world, HOUR + later);
            quiet(&world).await;
        }
        assert_eq!(rung(), ["x/tea"]);
        assert_eq!((get(&world, "x", "tea"), times(&world.vat)), (None, 0));
        assert_eq!(world.metrics.alarms_fired_total.get(), 1);
        assert_eq!(world.metrics.alarms_late_milliseconds_total.get(), 0);
    });
}

/// Nobody tells the host that the clock was set.
#[test]
fn the_clock_is_looked_at_within_a_second() {
    run(async {
        let world = firing_world();
        set(&world, "x", "tea", 24 * HOUR);
        quiet(&world).await;
        world.now.set(24 * HOUR);
        let began = tokio::time::Instant::now();
        until(|| rung() == ["x/tea"]).await;
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    });
}

/// A clock that is put back and forth by an hour loses nothing and fires nothing twice.
#[test]
fn a_clock_that_is_set_loses_no_alarm_and_doubles_none() {
    run(async {
        let world = firing_world();
        let day = 24 * HOUR;
        for (alarm, at) in [("one", day), ("two", day + 1), ("three", day + HOUR)] {
            set(&world, "x", alarm, at);
        }
        let mut expected = Vec::new();
        for (now, fires) in [
            (day, Some("x/one")),
            (day - HOUR, None),
            (day, None),
            (day + 1, Some("x/two")),
            (day + 1 - HOUR, None),
            (day + 1, None),
            (day + HOUR, Some("x/three")),
            (day, None),
            (day + 2 * HOUR, None),
        ] {
            clock(&world, now);
            expected.extend(fires);
            until(|| rung().len() >= expected.len()).await;
            quiet(&world).await;
            assert_eq!(rung(), expected, "at {now}");
        }
        // Set while the clock is ahead, it waits until that time comes back.
        clock(&world, day + HOUR);
        turn(&world, "x", |ctx| ctx.alarms().set_after("four", Duration::from_secs(1))).unwrap();
        clock(&world, day);
        quiet(&world).await;
        assert_eq!(rung(), expected);
        clock(&world, day + HOUR + 1_000);
        until(|| rung().last().is_some_and(|last| last == "x/four")).await;
    });
}

#[test]
fn an_alarm_is_part_of_the_turn_that_sets_it() {
    run(async {
        let world = firing_world();
        turn(&world, "x", |ctx| {
            ctx.storage().put("n", "1").unwrap();
            ctx.alarms().set("tea", HOUR + 1).unwrap();
        });
        until(|| !durable_turns(&world).is_empty()).await;
        let turns = durable_turns(&world);
        assert_eq!(turns.len(), 1, "one turn, one write set");
        for space in [Space::Data, Space::Due] {
            assert_eq!(keys(&turns[0], space).len(), 1, "{space:?}");
        }
        // The record, and the number of them.
        assert_eq!(keys(&turns[0], Space::Alarms).len(), 2);

        let instance = bell(&world, "y");
        let ctx = Context::new(instance.clone());
        let panicked = turns::turn(&instance, &TurnCause::default(), || {
            ctx.alarms().set("tea", HOUR).unwrap();
            panic!("as asked");
        });
        assert!(panicked.is_err());
        let undone = turn(&world, "z", |ctx| {
            ctx.alarms().set("kept", HOUR + 2).unwrap();
            ctx.storage().transaction(|| {
                ctx.alarms().set("undone", HOUR)?;
                ctx.alarms().set("kept", HOUR)?;
                Err::<(), _>(failed("undo it"))
            })
        });
        assert!(undone.is_err());
        quiet(&world).await;
        assert!(rung().is_empty(), "they were due");
        clock(&world, HOUR + 2);
        until(|| rung().len() == 2).await;
        quiet(&world).await;
        assert_eq!(rung(), ["x/tea", "z/kept"]);
    });
}

/// A crash in between finds both or neither: the alarm that is gone, and what it did.
#[test]
fn an_alarm_is_removed_by_the_turn_that_ends_it() {
    run(async {
        let world = firing_world();
        act(|ctx, _| ctx.storage().put("done", "1"));
        set(&world, "x", "tea", HOUR);
        until(|| rung() == ["x/tea"]).await;
        quiet(&world).await;
        let turns = durable_turns(&world);
        let removed: Vec<_> = turns
            .iter()
            .filter(|turn| keys(turn, Space::Due).iter().any(|(_, gone)| *gone))
            .collect();
        assert_eq!(removed.len(), 1);
        assert_eq!(keys(removed[0], Space::Data), [(b"done".to_vec(), false)]);
        assert!(keys(removed[0], Space::Alarms).iter().all(|(_, gone)| *gone));
        // Nothing on the disk fires after a restart.
        drop(world.vat.close());
        let again = world.restart_with_quotas(u64::MAX, None);
        again.vat.fire_alarms();
        quiet(&again).await;
        assert_eq!(rung(), ["x/tea"]);
    });
}

#[test]
fn an_alarm_that_is_set_within_itself_is_kept() {
    run(async {
        let world = firing_world();
        act(|ctx, alarm| match rung().len() {
            1..=3 => ctx.alarms().set(&alarm.name, ctx.now_ms()),
            4 => ctx.alarms().set(&alarm.name, ctx.now_ms() + 100),
            // Set anew from nothing, it is another setting as well.
            5 => {
                assert!(ctx.alarms().cancel(&alarm.name)?);
                ctx.alarms().set(&alarm.name, alarm.set_for_ms)
            }
            _ => Ok(()),
        });
        set(&world, "x", "tea", HOUR);
        until(|| rung().len() == 4).await;
        quiet(&world).await;
        assert_eq!(rung().len(), 4);
        assert_eq!(get(&world, "x", "tea").unwrap().next_ms, Some(HOUR + 100));
        clock(&world, HOUR + 100);
        until(|| rung().len() == 6).await;
        quiet(&world).await;
        assert_eq!((rung().len(), times(&world.vat)), (6, 0));
    });
}

/// Its own setting from before it failed stands, and is no retry.
#[test]
fn an_alarm_that_is_set_or_cancelled_before_it_fails_is_not_retried() {
    run(async {
        let world = firing_world();
        act(|ctx, alarm| {
            match rung().len() {
                1 => ctx.alarms().set(&alarm.name, HOUR + 7)?,
                _ => drop(ctx.alarms().cancel(&alarm.name)?),
            }
            Err(failed("as asked"))
        });
        set(&world, "x", "tea", HOUR);
        until(|| rung().len() == 1).await;
        quiet(&world).await;
        let alarm = get(&world, "x", "tea").unwrap();
        assert_eq!((alarm.next_ms, alarm.failed), (Some(HOUR + 7), 0));
        clock(&world, HOUR + 7);
        until(|| rung().len() == 2).await;
        quiet(&world).await;
        assert_eq!((get(&world, "x", "tea"), times(&world.vat)), (None, 0));
    });
}

#[test]
fn an_alarm_that_fails_is_tried_ten_times_and_then_listed_as_dead() {
    run(async {
        let world = firing_world();
        act(|ctx, _| {
            ctx.storage().put("tried", rung().len().to_string())?;
            Err(failed("no tea"))
        });
        set(&world, "x", "tea", HOUR);
        for tries in 1..ALARM_TRIES_MAX {
            until(|| rung().len() == usize::from(tries)).await;
            quiet(&world).await;
            let alarm = get(&world, "x", "tea").unwrap();
            let next = alarm.next_ms.expect("it is tried again");
            assert_eq!((alarm.failed, alarm.error.as_str()), (tries, "no tea"));
            assert_eq!(alarm.set_for_ms, HOUR);
            clock(&world, next - 1);
            quiet(&world).await;
            assert_eq!(rung().len(), usize::from(tries), "it waits");
            clock(&world, next);
        }
        until(|| rung().len() == usize::from(ALARM_TRIES_MAX)).await;
        quiet(&world).await;
        let dead = Context::new(bell(&world, "x")).alarms().list().unwrap();
        assert_eq!((dead.len(), dead[0].failed), (1, ALARM_TRIES_MAX));
        assert!(dead[0].is_dead() && dead[0].error == "no tea");
        assert_eq!((times(&world.vat), world.metrics.alarms_dead_total.get()), (0, 1));
        assert_eq!(world.metrics.alarms_failed_total.get(), u64::from(ALARM_TRIES_MAX));
        clock(&world, 100 * HOUR);
        quiet(&world).await;
        assert_eq!(rung().len(), usize::from(ALARM_TRIES_MAX));

        // Set again it lives again; cancelled it is gone.
        act(|_, _| Ok(()));
        set(&world, "x", "tea", HOUR);
        until(|| rung().len() == usize::from(ALARM_TRIES_MAX) + 1).await;
        quiet(&world).await;
        assert_eq!(get(&world, "x", "tea"), None);
    });
}

#[test]
fn alarms_have_bounds_and_the_errors_say_them() {
    run(async {
        let world = firing_world();
        let later = 10 * HOUR;
        turn(&world, "x", |ctx| {
            let alarms = ctx.alarms();
            for name in ["", &"n".repeat(ALARM_NAME_BYTES_MAX + 1)] {
                assert!(text(alarms.set(name, later)).starts_with("key-length:"));
                assert!(text(alarms.get(name)).starts_with("key-length:"));
                assert!(text(alarms.cancel(name)).starts_with("key-length:"));
            }
            for n in 0..ALARMS_MAX {
                alarms.set(&n.to_string(), later).unwrap();
            }
            let refused = text(alarms.set("one more", later));
            assert!(refused.starts_with("over-quota:") && refused.contains("1000"), "{refused}");
            // One that is there can be set, and a place that was given up can be taken.
            alarms.set("7", u64::MAX).unwrap();
            assert!(alarms.get("7").unwrap().unwrap().next_ms.is_some());
            assert!(alarms.cancel("8").unwrap() && !alarms.cancel("8").unwrap());
            alarms.set("one more", later).unwrap();
            assert!(alarms.set("two more", later).is_err());
        });
        let instance = bell(&world, "x");
        let listed = Context::new(instance.clone()).alarms().list().unwrap();
        assert_eq!(listed.len(), ALARMS_MAX as usize);
        assert!(listed.is_sorted_by_key(|alarm| alarm.name.clone()));
        assert_eq!(times(&world.vat), ALARMS_MAX as usize);
        let outside = Context::new(instance).alarms();
        assert!(text(outside.set("7", later)).starts_with("outside-turn:"));
        assert!(text(outside.cancel("7")).starts_with("outside-turn:"));
        turn(&world, "y", |ctx| {
            let mut sets = (0..1_000_000).map(|n| ctx.alarms().set("tea", n));
            let refused = sets.find_map(Result::err).expect("a turn is bounded").extra;
            assert!(refused.starts_with("batch-size:"), "{refused}");
        });
    });
}

#[test]
fn delete_all_cancels_all_alarms_and_those_of_nobody_else() {
    run(async {
        let world = firing_world();
        for name in ["x", "y"] {
            set(&world, name, "tea", HOUR + 1);
            set(&world, name, "cake", HOUR + 2);
        }
        turn(&world, "x", |ctx| ctx.storage().delete_all()).unwrap();
        assert!(Context::new(bell(&world, "x")).alarms().list().unwrap().is_empty());
        assert_eq!(times(&world.vat), 2);
        clock(&world, 2 * HOUR);
        until(|| rung().len() == 2).await;
        quiet(&world).await;
        assert_eq!(rung(), ["y/tea", "y/cake"]);
        // The place of those that are gone is free again.
        turn(&world, "x", |ctx| {
            (0..ALARMS_MAX).try_for_each(|n| ctx.alarms().set(&n.to_string(), u64::MAX))
        })
        .unwrap();
    });
}

/// Half of an object that is being imported can't wake. Its alarm waits, and nothing is lost.
#[test]
fn an_alarm_that_can_not_begin_waits_without_a_failure() {
    run(async {
        let world = firing_world();
        set(&world, "x", "tea", HOUR + 1);
        let id = bell::id("x");
        let header = Header { class: Bell::CLASS, name: Some("x") }.encode();
        let put = |header: &[u8]| put_header(&world.vat, id, header);
        put(&Header::unfinished(&header));
        for hours in 2..40 {
            clock(&world, hours * HOUR);
            quiet(&world).await;
        }
        let waiting = alarms::stored(&world.vat, id).unwrap().remove(0).alarm;
        assert_eq!((waiting.failed, rung().len()), (0, 0));
        assert!(waiting.next_ms.is_some_and(|next| next > 39 * HOUR), "{waiting:?}");
        put(&header);
        clock(&world, 40 * HOUR);
        until(|| rung() == ["x/tea"]).await;
    });
}

fn put_header(vat: &Rc<Vat>, id: ObjectId, header: &[u8]) {
    let put = || Ok(vat.turns.store_mut().put_record(id, Space::Header, &[], header).map(drop)?);
    vat.write_of_server(id, put).unwrap();
}

/// The index of times and the alarms themselves agree whatever is done, on the disk and above it.
#[test]
fn random_alarms_fire_in_the_order_of_their_times() {
    run(async {
        let world = World::new();
        world.now.set(HOUR);
        let mut random = 7_u64;
        let mut below = |n: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % n
        };
        let mut model = std::collections::BTreeMap::new();
        for step in 0..600 {
            let (object, alarm) = (format!("{}", below(5)), format!("{}", below(9)));
            let at = HOUR + below(50);
            turn(&world, &object, |ctx| {
                if below(3) == 0 {
                    let was = ctx.alarms().cancel(&alarm).unwrap();
                    assert_eq!(was, model.remove(&(object.clone(), alarm.clone())).is_some());
                } else {
                    ctx.alarms().set(&alarm, at).unwrap();
                    model.insert((object.clone(), alarm.clone()), at);
                }
            });
            if step % 50 == 0 {
                world.vat.flush().await.unwrap();
            }
            let now = HOUR + below(50);
            let due = world.vat.turns.store().due((0, now), usize::MAX, &|_| true).unwrap();
            let found: Vec<u64> = due.now.iter().map(|due| due.at_ms).collect();
            let mut expected: Vec<u64> = model.values().copied().filter(|at| *at <= now).collect();
            expected.sort_unstable();
            assert_eq!(found, expected, "step {step}");
            let next = model.values().copied().filter(|at| *at > now).min();
            assert_eq!(due.next_ms, next, "step {step}");
            let some = world.vat.turns.store().due((0, now), 3, &|_| true).unwrap();
            assert_eq!(some.now, due.now[..due.now.len().min(3)]);
        }
    });
}
