//! Alarms that come with archives.

use super::super::archive::{admin, begin_export, next, world_with, write};
use super::super::trial::{World, settle};
use super::bell::{act, bell, get, id, let_go, quiet, rung, set, turn, until, wait};
use super::{Bell, HOUR, run, times};
use crate::error::Result;
use crate::host::base::alarm::{self, AlarmRecord, COUNT};
use crate::host::{Context, class_of};
use crate::limits::ALARMS_MAX;
use crate::schema::admin_capnp::Existing;
use crate::storage::{LogOptions, Space};

/// All that an archive has of the bell `x`, in frames.
async fn exported(world: &World) -> Vec<Vec<u8>> {
    let export = begin_export(&admin(world, super::super::archive::MINUTE)).await.unwrap();
    let mut frames = Vec::new();
    loop {
        let some = next(&export).await.unwrap();
        if some.is_empty() {
            return frames;
        }
        frames.push(some);
    }
}

async fn try_import(world: &World, frames: &[Vec<u8>]) -> Result<()> {
    let mut request = admin(world, super::super::archive::MINUTE).begin_import_request();
    request.get().set_existing(Existing::Replace);
    let import = request.send().promise.await.unwrap().get().unwrap().get_incoming().unwrap();
    write(&import, frames).await?;
    import.finish_request().send().promise.await.map(drop)
}

async fn import(world: &World, frames: &[Vec<u8>]) {
    try_import(world, frames).await.unwrap();
}

#[test]
fn an_archive_has_the_alarms_and_an_import_replaces_those_that_are_there() {
    run(async {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let world = |path| world_with(path, class_of::<Bell>(), LogOptions::default());
        let (old, new) = (world(from.path()), world(to.path()));
        let later = old.vat.clock.now_ms() + 24 * HOUR;
        turn(&old, "x", |ctx| {
            ctx.alarms().set("tea", 0).unwrap();
            ctx.alarms().set("cake", later).unwrap();
        });
        let tea = get(&old, "x", "tea").unwrap().next_ms.unwrap();
        old.vat.flush().await.unwrap();
        let frames = exported(&old).await;
        turn(&new, "x", |ctx| {
            ctx.alarms().set("cake", 0).unwrap();
            ctx.alarms().set("other", 0).unwrap();
        });
        import(&new, &frames).await;
        let listed = Context::new(bell(&new, "x")).alarms().list().unwrap();
        let listed: Vec<_> = listed.iter().map(|alarm| (&*alarm.name, alarm.next_ms)).collect();
        assert_eq!(listed, [("cake", Some(later)), ("tea", Some(tea))]);
        assert_eq!(times(&new.vat), 2);
        new.vat.fire_alarms();
        until(|| rung() == ["x/tea"]).await;
        quiet(&new).await;
        assert_eq!((rung(), times(&new.vat)), (vec!["x/tea".to_owned()], 1));
    });
}

/// A host that has no alarm waits for the first one.
#[test]
fn an_alarm_that_is_imported_into_a_host_that_runs_fires_at_once() {
    run(async {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let world = |path| world_with(path, class_of::<Bell>(), LogOptions::default());
        let (old, new) = (world(from.path()), world(to.path()));
        set(&old, "x", "tea", 0);
        old.vat.flush().await.unwrap();
        let frames = exported(&old).await;
        new.vat.fire_alarms();
        quiet(&new).await;
        import(&new, &frames).await;
        until(|| rung() == ["x/tea"]).await;
        quiet(&new).await;
        assert_eq!(times(&new.vat), 0);
    });
}

/// The method that is cut short by the import is no failure of the archive's alarm.
#[test]
fn an_import_over_an_alarm_that_is_handled_brings_it_as_the_archive_has_it() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let world = world_with(folder.path(), class_of::<Bell>(), LogOptions::default());
        set(&world, "x", "tea", 0);
        world.vat.flush().await.unwrap();
        let frames = exported(&world).await;
        wait(true);
        world.vat.fire_alarms();
        until(|| rung().len() == 1).await;
        import(&world, &frames).await;
        until(|| rung().len() == 2).await;
        settle().await;
        let alarm = get(&world, "x", "tea").unwrap();
        assert_eq!((alarm.failed, world.metrics.alarms_failed_total.get()), (0, 0));
        act(|_, _| Ok(()));
        let_go(2);
        quiet(&world).await;
        assert_eq!((get(&world, "x", "tea"), times(&world.vat)), (None, 0));
    });
}

/// An archive may be of anybody's making: what it says of the number of alarms isn't believed.
#[test]
fn an_import_counts_the_alarms_itself() {
    run(async {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let world = |path| world_with(path, class_of::<Bell>(), LogOptions::default());
        let (old, new) = (world(from.path()), world(to.path()));
        let later = old.vat.clock.now_ms() + 24 * HOUR;
        set(&old, "x", "tea", later);
        put(&old, &COUNT, &u32::MAX.to_be_bytes());
        old.vat.flush().await.unwrap();
        import(&new, &exported(&old).await).await;
        let more = |from: u32, to: u32| {
            turn(&new, "x", |ctx| {
                (from..to).try_for_each(|n| ctx.alarms().set(&n.to_string(), later))
            })
        };
        more(1, ALARMS_MAX).unwrap();
        assert!(more(0, 1).unwrap_err().extra.starts_with("over-quota:"));
    });
}

/// One such record would be read and not be understood again and again.
#[test]
fn an_import_takes_no_alarms_that_no_host_would_have_written() {
    run(async {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let world = |path| world_with(path, class_of::<Bell>(), LogOptions::default());
        let (old, new) = (world(from.path()), world(to.path()));
        set(&old, "x", "tea", 0);
        let record = AlarmRecord::new("tea", 1, HOUR, 0).encode();
        let long = [&[1][..], &[b'n'; 257]].concat();
        for name in [&long[..], &[1]] {
            put(&old, name, &record);
            old.vat.flush().await.unwrap();
            let refused = try_import(&new, &exported(&old).await).await.unwrap_err();
            assert!(refused.extra.contains("an alarm can't be read"), "{refused}");
            let gone =
                || Ok(old.vat.turns.store_mut().delete_record(id("x"), Space::Alarms, name)?);
            old.vat.write_of_server(id("x"), gone).unwrap();
        }
        for n in 0..=ALARMS_MAX {
            put(&old, &alarm::key(&n.to_string()).unwrap(), &record);
        }
        old.vat.flush().await.unwrap();
        let refused = try_import(&new, &exported(&old).await).await.unwrap_err();
        assert!(refused.extra.contains("more than 1000 alarms"), "{refused}");
    });
}

fn put(world: &World, key: &[u8], record: &[u8]) {
    let store = || world.vat.turns.store_mut();
    let put = || Ok(store().put_record(id("x"), Space::Alarms, key, record).map(drop)?);
    world.vat.write_of_server(id("x"), put).unwrap();
}
