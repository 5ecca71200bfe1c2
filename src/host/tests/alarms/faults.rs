//! Alarms that can't be fired, and those that take more than their share: the others go on.

use std::collections::HashSet;
use std::time::Duration;

use super::super::trial::{World, run, run_within, settle};
use super::bell::{
    Bell, Wakes, act, bell, clock, get, id, let_go, quiet, rung, set, turn, until, wait, waking,
};
use super::{HOUR, durable_turns, firing_world, put_header, times};
use crate::error::failed;
use crate::host::base::alarm;
use crate::host::base::header::Header;
use crate::host::engine::alarms;
use crate::host::state::alarms::AlarmClock;
use crate::host::{Context, Object};
use crate::limits::{
    ALARM_ASIDE, ALARM_LIMIT, ALARMS_AT_ONCE, ALARMS_AT_ONCE_OF_OBJECT, ALARMS_SLOW_MAX,
};
use crate::storage::{Due, Space};

/// Tests in which time passes end later than others.
const PATIENCE: Duration = Duration::from_hours(1);

/// Waits until it is so, which takes a moment.
async fn soon(is_so: impl Fn() -> bool) {
    tokio::time::timeout(Duration::from_secs(20), until(is_so)).await.expect("it is so soon");
}

/// Waits until nothing is fired any more, which takes a moment.
async fn calm(world: &World) {
    tokio::time::timeout(Duration::from_secs(20), quiet(world)).await.expect("it ends soon");
}

/// So much time passes at once.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time + Duration::from_secs(1)).await;
    tokio::time::resume();
}

#[test]
fn an_alarm_that_can_not_be_read_holds_up_no_other_one() {
    run_within(PATIENCE, async {
        let world = firing_world();
        set(&world, "x", "tea", HOUR + 1);
        let key = alarm::key("tea").unwrap();
        let good = world.vat.turns.store().get(id("x"), Space::Alarms, &key).unwrap().unwrap();
        let put = |object: &str, (space, key): (Space, &[u8]), record: &[u8]| {
            let store = || world.vat.turns.store_mut();
            let put = || Ok(store().put_record(id(object), space, key, record).map(drop)?);
            world.vat.write_of_server(id(object), put).unwrap();
        };
        put("x", (Space::Alarms, &key), b"?");
        // A name that no alarm can have.
        let long = Due { at_ms: HOUR + 1, object: id("z"), name: "n".repeat(300).into() };
        put("z", (Space::Due, &long.key()), &long.record());
        set(&world, "y", "cake", HOUR + 2);
        clock(&world, HOUR + 2);
        soon(|| rung() == ["y/cake"]).await;
        calm(&world).await;
        assert_eq!((rung().len(), times(&world.vat)), (1, 2), "it is still there");

        put("x", (Space::Alarms, &key), &good);
        pass(ALARM_ASIDE).await;
        soon(|| rung().len() == 2).await;
        assert_eq!(rung()[1], "x/tea");

        // The object can remove what can't be read.
        set(&world, "x", "tea", 2 * HOUR);
        put("x", (Space::Alarms, &key), b"?");
        turn(&world, "x", |ctx| ctx.storage().delete_all()).unwrap();
        assert!(alarms::stored(&world.vat, id("x")).unwrap().is_empty());
    });
}

#[test]
fn one_object_has_a_part_of_the_places_alone() {
    run(async {
        let world = firing_world();
        wait(true);
        for n in 0..2 * ALARMS_AT_ONCE {
            set(&world, "x", &n.to_string(), 0);
        }
        assert_eq!(get(&world, "x", "5").unwrap().next_ms, Some(HOUR), "it jumps the queue");
        set(&world, "y", "tea", HOUR + 1);
        clock(&world, HOUR + 1);
        until(|| rung().contains(&"y/tea".to_owned())).await;
        settle().await;
        assert_eq!(rung().len(), ALARMS_AT_ONCE_OF_OBJECT + 1);
        let_go(3 * ALARMS_AT_ONCE);
        quiet(&world).await;
        assert_eq!((rung().len(), times(&world.vat)), (2 * ALARMS_AT_ONCE + 1, 0));
    });
}

/// It waits for a start with the class, and costs nothing until then.
#[test]
fn alarms_of_a_missing_class_are_passed_over_without_a_write() {
    run(async {
        let world = firing_world();
        for n in 0..20 {
            set(&world, "x", &n.to_string(), HOUR + n);
        }
        let header = Header { class: "Gone", name: Some("x") }.encode();
        put_header(&world.vat, id("x"), &header);
        set(&world, "y", "tea", HOUR + 30);
        world.vat.flush().await.unwrap();
        let stored = || alarms::stored(&world.vat, id("x")).unwrap();
        let (before, turns) = (stored(), durable_turns(&world).len());
        for later in [25, 1_000, HOUR] {
            clock(&world, HOUR + later);
            quiet(&world).await;
        }
        until(|| rung() == ["y/tea"]).await;
        quiet(&world).await;
        world.vat.flush().await.unwrap();
        assert_eq!(stored(), before);
        // The turn that ended the other one's.
        assert_eq!(durable_turns(&world).len(), turns + 1);
        assert!(world.vat.alarms.first_ms() > HOUR + 20, "they are read again and again");

        let header = Header { class: Bell::CLASS, name: Some("x") }.encode();
        put_header(&world.vat, id("x"), &header);
        world.vat.flush().await.unwrap();
        let (disk, now) = (world.disk.crash(0), world.now.get());
        drop(world);
        let again = World::over_disk(disk);
        again.now.set(now);
        again.vat.fire_alarms();
        until(|| rung().len() == 21).await;
    });
}

#[test]
fn nothing_is_put_off_while_too_much_waits_for_the_disk() {
    run(async {
        let world = firing_world();
        set(&world, "x", "tea", HOUR + 1);
        let header = Header { class: Bell::CLASS, name: Some("x") }.encode();
        put_header(&world.vat, id("x"), &Header::unfinished(&header));
        world.vat.flush().await.unwrap();
        let held = world.disk.hold();
        while world.vat.turns.has_room() {
            turn(&world, "y", |ctx| ctx.storage().put("n", "1")).unwrap();
        }
        let next = || alarms::stored(&world.vat, id("x")).unwrap().remove(0).alarm.next_ms;
        clock(&world, HOUR + 1);
        settle().await;
        assert_eq!(next(), Some(HOUR + 1));
        drop(held);
        until(|| next() > Some(HOUR + 1)).await;
    });
}

#[test]
fn an_object_that_never_wakes_makes_its_alarm_fail() {
    run_within(PATIENCE, async {
        let world = firing_world();
        for (n, wakes) in (1..).zip([Wakes::Fails, Wakes::Panics, Wakes::Hangs, Wakes::Overloaded])
        {
            waking(wakes);
            let name = format!("{wakes:?}");
            set(&world, &name, "tea", HOUR);
            if matches!(wakes, Wakes::Hangs) {
                settle().await;
                pass(world.vat.objects.waits().wake_patience()).await;
            }
            calm(&world).await;
            let alarm = get(&world, &name, "tea").unwrap();
            assert_eq!(alarm.failed, 1, "{name}: {alarm:?}");
            assert_eq!(world.metrics.alarms_failed_total.get(), n, "{name}");
        }
    });
}

#[test]
fn an_alarm_that_never_returns_is_cut_short_and_has_failed() {
    run_within(PATIENCE, async {
        let world = firing_world();
        wait(true);
        set(&world, "x", "tea", HOUR);
        soon(|| rung().len() == 1).await;
        settle().await;
        pass(ALARM_LIMIT).await;
        soon(|| world.metrics.alarms_failed_total.get() == 1).await;
        calm(&world).await;
        let alarm = get(&world, "x", "tea").unwrap();
        assert!(alarm.failed == 1 && alarm.error.contains("took longer than 900s"), "{alarm:?}");
        wait(false);
        clock(&world, alarm.next_ms.unwrap());
        soon(|| rung().len() == 2).await;
        calm(&world).await;
        assert_eq!(get(&world, "x", "tea"), None);
    });
}

#[test]
fn slow_alarms_are_bounded_too() {
    let clock = AlarmClock::new();
    let due = |n: usize| Due { at_ms: 0, object: id(&n.to_string()), name: "tea".into() };
    let mut slow = Vec::new();
    for n in 0..ALARMS_SLOW_MAX {
        assert!(clock.has_room(), "{n}");
        let firing = clock.begin(&due(n), 1);
        for _ in 0..2 {
            clock.turned_slow(&firing);
        }
        slow.push(firing);
    }
    assert!(!clock.has_room());
    clock.end(&slow[0]);
    assert!(clock.has_room());
}

/// Calls that an alarm makes have request ids of it.
#[test]
fn each_setting_has_a_number_of_its_own_and_all_tries_the_same_one() {
    run(async {
        let world = firing_world();
        act(|ctx, alarm| {
            ctx.storage().put(alarm.setting.to_string(), "")?;
            if rung().len() % 2 == 1 { Err(failed("once more")) } else { Ok(()) }
        });
        for tries in [2, 4] {
            set(&world, "x", "tea", HOUR);
            let setting = get(&world, "x", "tea").unwrap().setting;
            until(|| rung().len() == tries - 1).await;
            quiet(&world).await;
            let alarm = get(&world, "x", "tea").unwrap();
            assert_eq!(alarm.setting, setting);
            clock(&world, alarm.next_ms.unwrap());
            until(|| rung().len() == tries).await;
            quiet(&world).await;
            world.now.set(HOUR);
        }
        let alarms: HashSet<_> = turn(&world, "y", |ctx| {
            ["a", "a", "b"].map(|name| {
                ctx.alarms().set(name, 0).unwrap();
                ctx.alarms().get(name).unwrap().unwrap().setting
            })
        })
        .into();
        assert_eq!(alarms.len(), 3);
    });
}

/// Two names may have the same hash: one of them must not take the other one's time.
#[test]
fn a_time_that_is_another_alarms_is_left_to_it() {
    run(async {
        let world = firing_world();
        let due = Due { at_ms: 2 * HOUR, object: id("x"), name: "tea".into() };
        let other = [id("x").as_bytes().as_slice(), b"other"].concat();
        let put = |world: &World| {
            let mut store = world.vat.turns.store_mut();
            Ok(store.put_record(id("x"), Space::Due, &due.key(), &other).map(drop)?)
        };
        world.vat.write_of_server(id("x"), || put(&world)).unwrap();
        set(&world, "x", "tea", 2 * HOUR);
        let alarm = get(&world, "x", "tea").unwrap();
        assert_eq!((alarm.set_for_ms, alarm.next_ms), (2 * HOUR, Some(2 * HOUR + 1)));
        assert!(turn(&world, "x", |ctx| ctx.alarms().cancel("tea")).unwrap());
        let left = world.vat.turns.store().get(id("x"), Space::Due, &due.key()).unwrap();
        assert_eq!(left, Some(other));
        assert!(Context::new(bell(&world, "x")).alarms().list().unwrap().is_empty());
    });
}
