//! Alarms whose objects end, whose host restarts, and those that are due together.

use std::time::Duration;

use super::super::trial::{World, run, settle};
use super::bell::{
    Wakes, act, bell, clock, get, let_go, quiet, rung, set, turn, until, wait, waking,
};
use super::{HOUR, firing_world, times};
use crate::error::failed;
use crate::host::Context;
use crate::limits::{ALARM_SLOW, ALARMS_AT_ONCE, ALARMS_READ};

/// Another vat over what is on the disk, which fires what is due.
fn restart(world: World, keep: u64) -> World {
    let disk = world.disk.crash(keep);
    let now = world.now.get();
    drop(world);
    let again = World::over_disk(disk);
    again.now.set(now);
    again.vat.fire_alarms();
    again
}

#[test]
fn a_panic_ends_that_instance_alone_and_the_alarm_is_tried_again() {
    run(async {
        let world = firing_world();
        act(|ctx, alarm| {
            ctx.storage().put("n", "1")?;
            match (rung().len(), alarm.name.as_str()) {
                (1, "panic") => panic!("as asked"),
                (2, "panic") => Err(ctx.abort("as asked")),
                _ => Ok(()),
            }
        });
        set(&world, "x", "panic", HOUR);
        for tries in 1..=2 {
            until(|| rung().len() == tries).await;
            quiet(&world).await;
            let alarm = get(&world, "x", "panic").expect("it is tried again");
            assert_eq!(usize::from(alarm.failed), tries);
            assert!(Context::new(bell(&world, "x")).storage().get("n").unwrap().is_none());
            clock(&world, alarm.next_ms.unwrap());
        }
        until(|| rung().len() == 3).await;
        quiet(&world).await;
        assert_eq!((get(&world, "x", "panic"), times(&world.vat)), (None, 0));
        set(&world, "y", "tea", HOUR);
        until(|| rung().last().is_some_and(|last| last == "y/tea")).await;
    });
}

#[test]
fn an_object_that_does_not_wake_has_its_alarm_tried_again() {
    run(async {
        let world = firing_world();
        waking(Wakes::Fails);
        set(&world, "x", "tea", HOUR);
        until(|| world.metrics.alarms_failed_total.get() == 1).await;
        quiet(&world).await;
        waking(Wakes::Well);
        let alarm = get(&world, "x", "tea").unwrap();
        assert_eq!((alarm.failed, alarm.error.contains("it can't wake")), (1, true), "{alarm:?}");
        clock(&world, alarm.next_ms.unwrap());
        until(|| rung() == ["x/tea"]).await;
        quiet(&world).await;
        assert_eq!(get(&world, "x", "tea"), None);
    });
}

/// It wakes its object, which may sleep, and a call that it waits for finds it awake.
#[test]
fn a_class_without_the_method_fails_and_says_so() {
    run(async {
        let world = firing_world();
        let instance = world.instance("plain");
        super::super::storage::turn(&instance, |_| {
            Context::new(instance.clone()).alarms().set("tea", HOUR).unwrap();
        });
        until(|| world.metrics.alarms_failed_total.get() == 1).await;
        quiet(&world).await;
        let alarm = Context::new(instance).alarms().get("tea").unwrap().unwrap();
        assert!(alarm.error.contains("the class Trial has no method `alarm`"), "{alarm:?}");
    });
}

#[test]
fn alarms_that_were_due_while_nothing_ran_fire_at_start_the_earliest_first() {
    run(async {
        let world = World::new();
        for (name, alarm, at) in
            [("x", "c", 30), ("y", "a", 10), ("x", "b", 20), ("z", "later", 2 * HOUR)]
        {
            set(&world, name, alarm, at);
        }
        world.vat.flush().await.unwrap();
        world.now.set(HOUR);
        let world = restart(world, 0);
        until(|| rung().len() == 3).await;
        quiet(&world).await;
        assert_eq!(rung(), ["y/a", "x/b", "x/c"]);
        // Those that fired are gone, and those that wait are there, after another one.
        let world = restart(world, 0);
        quiet(&world).await;
        assert_eq!(rung().len(), 3);
        clock(&world, 2 * HOUR);
        until(|| rung().len() == 4).await;
        assert_eq!(rung()[3], "z/later");
    });
}

/// Its turns were not durable when the host was killed: so it is as if it had not fired.
#[test]
fn an_alarm_that_fired_without_being_durable_fires_again() {
    run(async {
        let world = firing_world();
        act(|ctx, _| ctx.storage().put("done", "1"));
        set(&world, "x", "tea", HOUR + 1);
        world.vat.flush().await.unwrap();
        let held = world.disk.hold();
        clock(&world, HOUR + 1);
        until(|| rung().len() == 1).await;
        settle().await;
        world.disk.wait_until_held();
        let (lost, kept) = (world.disk.crash(0), world.disk.crash(u64::MAX));
        for (disk, fires) in [(lost, 2), (kept, 2)] {
            let again = World::over_disk(disk);
            again.now.set(HOUR + 1);
            again.vat.fire_alarms();
            quiet(&again).await;
            until(|| rung().len() >= fires).await;
            assert_eq!(rung().len(), fires);
            let done = Context::new(bell(&again, "x")).storage().get("done").unwrap();
            assert!(done.is_some() && get(&again, "x", "tea").is_none());
        }
        drop(held);
    });
}

#[test]
fn alarms_that_are_due_together_are_fired_a_few_at_a_time() {
    run(async {
        let world = World::new();
        let all = 3 * ALARMS_READ;
        for n in 0..all {
            set(&world, &(n % 100).to_string(), &n.to_string(), n as u64);
        }
        world.vat.flush().await.unwrap();
        world.now.set(HOUR);
        wait(true);
        world.vat.fire_alarms();
        until(|| rung().len() == ALARMS_AT_ONCE).await;
        for ended in 0..20 {
            settle().await;
            assert_eq!(rung().len(), ALARMS_AT_ONCE + ended);
            assert!(world.vat.alarms.ready().borrow().len() <= ALARMS_READ);
            let_go(1);
            until(|| rung().len() > ALARMS_AT_ONCE + ended).await;
        }
        let rung_so_far = rung();
        let numbers =
            rung_so_far.iter().map(|name| name.split_once('/').unwrap().1.parse::<usize>());
        let numbers: Vec<_> = numbers.map(Result::unwrap).collect();
        assert_eq!(numbers, (0..numbers.len()).collect::<Vec<_>>(), "the earliest come first");
        let_go(all);
        until(|| rung().len() == all).await;
        quiet(&world).await;
        assert_eq!((rung().len(), times(&world.vat)), (all, 0));
    });
}

/// Some that hang must not hold up all others for ever.
#[test]
fn alarms_that_hang_hold_up_no_others_for_long() {
    run(async {
        let world = firing_world();
        wait(true);
        for n in 0..ALARMS_AT_ONCE {
            set(&world, &format!("slow{}", n % 8), &n.to_string(), HOUR);
        }
        set(&world, "x", "tea", HOUR + 1);
        clock(&world, HOUR + 1);
        until(|| rung().len() == ALARMS_AT_ONCE).await;
        settle().await;
        assert_eq!(rung().len(), ALARMS_AT_ONCE);
        tokio::time::pause();
        tokio::time::advance(ALARM_SLOW + Duration::from_secs(1)).await;
        tokio::time::resume();
        until(|| rung().last().is_some_and(|last| last == "x/tea")).await;
        let_go(usize::MAX >> 4);
    });
}

/// An alarm that is set while it is handled fires when that has ended, and not beside it.
#[test]
fn an_alarm_never_fires_beside_itself() {
    run(async {
        let world = firing_world();
        wait(true);
        set(&world, "x", "tea", HOUR);
        until(|| rung().len() == 1).await;
        for _ in 0..3 {
            set(&world, "x", "tea", HOUR);
            settle().await;
        }
        assert_eq!(rung().len(), 1);
        let_go(1);
        until(|| rung().len() == 2).await;
        settle().await;
        assert_eq!(rung().len(), 2);
        let_go(1);
        quiet(&world).await;
        assert_eq!((rung().len(), times(&world.vat)), (2, 0));
    });
}

/// Cancelled while it waits to begin, it doesn't; while it is handled, that goes on.
#[test]
fn an_alarm_that_is_cancelled_or_put_off_does_not_fire() {
    run(async {
        let world = firing_world();
        set(&world, "x", "tea", HOUR + 1);
        set(&world, "x", "cake", HOUR + 1);
        turn(&world, "x", |ctx| {
            assert!(ctx.alarms().cancel("tea").unwrap());
            ctx.alarms().set("cake", HOUR + 9).unwrap();
        });
        clock(&world, HOUR + 8);
        quiet(&world).await;
        assert!(rung().is_empty());
        act(|_, _| Err(failed("it was cancelled meanwhile")));
        wait(true);
        clock(&world, HOUR + 9);
        until(|| rung() == ["x/cake"]).await;
        turn(&world, "x", |ctx| ctx.alarms().cancel("cake")).unwrap();
        let_go(1);
        quiet(&world).await;
        assert_eq!((get(&world, "x", "cake"), times(&world.vat)), (None, 0));
    });
}
