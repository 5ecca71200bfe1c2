//! The promises of the operator's interface about objects that are awake, waking or large, and
//! about clients that read too slowly.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use capstead_client::once;

use super::references::keys;
use super::storage::turn;
use super::trial::{World, call_note, call_write, log, read, run, run_within, settle, wake_takes};
use crate::error::Result;
use crate::host::base::header::Header;
use crate::host::class_of;
use crate::host::operator::admin::HostAdmin;
use crate::host::{AwakeLimits, Class, List, Storage, Vat, VatOptions};
use crate::http::Room;
use crate::id::{ObjectId, Pool};
use crate::schema::admin_capnp::{Existing, export, host_admin, import};
use crate::storage::archive::{Frame, Frames, Record, Records};
use crate::storage::testing::model::MemoryLog;
use crate::storage::{LogOptions, Presence, Space};
use crate::sturdyref::{Authority, Citation, ReferenceCipher};

pub(super) const MINUTE: Duration = Duration::from_mins(1);

pub(super) fn world(data: &Path) -> World {
    world_with(data, class_of::<super::trial::Trial>(), LogOptions::default())
}

/// A world with this class alone.
pub(super) fn world_with(data: &Path, class: Class, log: LogOptions) -> World {
    let metrics = Arc::default();
    let vat = Vat::open(VatOptions {
        name: "test".to_owned(),
        data: data.to_owned(),
        classes: vec![class],
        metrics: Arc::clone(&metrics),
        log,
        retention: MINUTE,
        reference_cipher: ReferenceCipher::new(&[7; 32]),
        awake: AwakeLimits::NONE,
        bodies: Room::of_objects(Arc::default()),
    });
    let (disk, now, told) = (MemoryLog::default(), Rc::default(), Arc::default());
    World { vat: vat.unwrap(), disk, metrics, now, told }
}

pub(super) fn admin(world: &World, stall: Duration) -> host_admin::Client {
    HostAdmin::serve_with(world.vat.clone(), vec![0..=u16::MAX], keys(), stall)
}

fn id(name: &str) -> ObjectId {
    ObjectId::named(Pool::default(), "Trial", name)
}

/// Frames of the object `name`, whose number is `n`.
pub(super) fn object(name: &str, n: u64, more: &[(&[u8], &[u8])]) -> Vec<Vec<u8>> {
    let header = Header { class: "Trial", name: Some(name) }.encode();
    let mut frames = vec![frame(&Frame::Object(id(name))), records(Space::Header, b"", &header)];
    frames.extend(more.iter().map(|(key, value)| records(Space::Data, key, value)));
    frames.push(records(Space::Data, b"n", &n.to_be_bytes()));
    frames
}

pub(super) fn frame(frame: &Frame<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes
}

pub(super) fn records(space: Space, key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut records = Vec::new();
    Record { space, key, value }.encode(&mut records);
    frame(&Frame::Records(Records::encoded(&records)))
}

async fn begin_import(host: &host_admin::Client, existing: Existing) -> Result<import::Client> {
    let mut request = host.begin_import_request();
    request.get().set_existing(existing);
    request.send().promise.await?.get()?.get_incoming()
}

pub(super) async fn write(import: &import::Client, frames: &[Vec<u8>]) -> Result<()> {
    for frame in frames {
        let mut request = import.write_request();
        request.get().set_frames(frame);
        request.send().promise.await?;
    }
    Ok(())
}

async fn import_all(host: &host_admin::Client, frames: &[Vec<u8>]) -> Result<()> {
    let import = begin_import(host, Existing::Replace).await?;
    write(&import, frames).await?;
    import.finish_request().send().promise.await.map(drop)
}

pub(super) async fn begin_export(host: &host_admin::Client) -> Result<export::Client> {
    let mut request = host.begin_export_request();
    request.get().init_selection().set_all(());
    request.send().promise.await?.get()?.get_export()
}

pub(super) async fn next(export: &export::Client) -> Result<Vec<u8>> {
    Ok(export.next_request().send().promise.await?.get()?.get_frames()?.to_vec())
}

/// A mebibyte each.
pub(super) fn large(count: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    (0..count as u8).map(|n| (vec![b'k', n], vec![n; 1 << 20])).collect()
}

pub(super) fn borrowed(values: &[(Vec<u8>, Vec<u8>)]) -> Vec<(&[u8], &[u8])> {
    values.iter().map(|(key, value)| (key.as_slice(), value.as_slice())).collect()
}

#[test]
fn an_object_that_is_awake_or_waking_is_replaced_and_never_acts_again() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let world = world(dir.path());
        let host = admin(&world, MINUTE);
        let awake = world.object("x");
        call_write(&awake, 1).promise.await.unwrap();
        import_all(&host, &object("x", 2, &[])).await.unwrap();
        assert_eq!(read(&awake).await.unwrap_err().kind, capnp::ErrorKind::Disconnected);
        assert_eq!(read(&world.object("x")).await.unwrap(), 2);
        assert_eq!(world.metrics.objects_awake.get(), 1);

        // This one never ends waking by itself.
        wake_takes(u64::MAX);
        let waking = call_note(&world.object("y"), 1).promise;
        settle().await;
        import_all(&host, &object("y", 3, &[])).await.unwrap();
        assert_eq!(waking.await.err().unwrap().kind, capnp::ErrorKind::Disconnected);
        wake_takes(1);
        assert_eq!(read(&world.object("y")).await.unwrap(), 3);
        settle().await;
        assert_eq!(read(&world.object("y")).await.unwrap(), 3, "the old wake is over");
    });
}

/// A holder of the object from while it slept doesn't reach its replacement either.
#[test]
fn a_facet_of_a_sleeping_object_breaks_when_that_is_replaced() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let world = world(dir.path());
        let host = admin(&world, MINUTE);
        let held = world.object("x");
        import_all(&host, &object("x", 2, &[])).await.unwrap();
        assert_eq!(read(&held).await.unwrap_err().kind, capnp::ErrorKind::Disconnected);
        assert_eq!(read(&world.object("x")).await.unwrap(), 2);
    });
}

/// It would keep every page that is freed, and writes that grow nothing would fill the map.
#[test]
fn an_export_that_stands_still_ends_before_the_storage_does() {
    run_within(MINUTE, async {
        let dir = tempfile::tempdir().unwrap();
        let map_bytes = 128 << 20;
        let log = LogOptions { map_bytes, reserve_bytes: Some(1 << 20), ..LogOptions::default() };
        let world = world_with(dir.path(), class_of::<super::trial::Trial>(), log);
        let host = admin(&world, MINUTE);
        import_all(&host, &object("x", 1, &borrowed(&large(12)))).await.unwrap();
        let export = begin_export(&host).await.unwrap();
        let instance = world.instance("y");
        for n in 0..60 {
            turn(&instance, |storage| {
                (0..8).for_each(|key: u8| storage.put([key], vec![n; 1 << 20]).unwrap());
            });
            world.vat.flush().await.unwrap();
        }
        let ended = loop {
            match next(&export).await {
                Ok(frames) => assert!(!frames.is_empty(), "it is not whole"),
                Err(error) => break error,
            }
        };
        assert_eq!(ended.kind, capnp::ErrorKind::Overloaded);
        assert!(ended.extra.contains("low-space: the export was given up"), "{ended}");
        let export = begin_export(&host).await.unwrap();
        while !next(&export).await.unwrap().is_empty() {}
    });
}

/// However deep a class nests its visits: LMDB has only so many snapshots.
#[test]
fn visits_within_visits_never_run_out_of_snapshots() {
    fn nest(storage: &Storage, depth: u32) -> Result<u32> {
        let mut visited = 0;
        storage.list(List::all())?.visit(|_, _| {
            visited = if depth == 0 { 1 } else { nest(storage, depth - 1)? };
            Ok(())
        })?;
        Ok(visited)
    }

    run(async {
        let dir = tempfile::tempdir().unwrap();
        let world = world(dir.path());
        let instance = world.instance("x");
        turn(&instance, |storage| storage.put("a", "1").unwrap());
        world.vat.flush().await.unwrap();
        settle().await;
        assert_eq!(turn(&instance, |storage| nest(storage, 200)).unwrap(), 1);
        assert_eq!(turn(&instance, |storage| nest(storage, 0)).unwrap(), 1);
    });
}

#[test]
fn a_large_object_cannot_wake_until_it_is_whole_and_what_it_stores_is_counted() {
    run_within(MINUTE, async {
        let dir = tempfile::tempdir().unwrap();
        let world = world(dir.path());
        let host = admin(&world, MINUTE);
        call_write(&world.object("x"), 1).promise.await.unwrap();
        let values = large(11);
        let frames = object("x", 2, &borrowed(&values));
        let import = begin_import(&host, Existing::Replace).await.unwrap();
        write(&import, &frames[..2]).await.unwrap();
        assert_eq!(read(&world.object("x")).await.unwrap(), 1, "nothing is written yet");
        write(&import, &frames[2..8]).await.unwrap();
        let refused = read(&world.object("x")).await.unwrap_err();
        assert!(refused.extra.contains("import-unfinished:"), "{refused}");
        let second = begin_import(&host, Existing::Replace).await.err().unwrap();
        assert_eq!(second.kind, capnp::ErrorKind::Overloaded);
        // The caller goes away, and another one begins anew; what is unfinished doesn't exist.
        drop(import);
        settle().await;
        let import = begin_import(&host, Existing::Refuse).await.unwrap();
        write(&import, &frames).await.unwrap();
        import.finish_request().send().promise.await.unwrap();
        assert_eq!(read(&world.object("x")).await.unwrap(), 2);
        let storage = world.context("x").storage();
        let bytes = values.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() + 9;
        assert_eq!((storage.count(), storage.size_bytes()), (12, bytes as u64));
    });
}

#[test]
fn what_exists_and_what_belongs_elsewhere_is_refused() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let world = world(dir.path());
        let host = admin(&world, MINUTE);
        call_write(&world.object("x"), 1).promise.await.unwrap();
        let import = begin_import(&host, Existing::Refuse).await.unwrap();
        write(&import, &object("x", 2, &[])).await.unwrap();
        let refused = import.finish_request().send().promise.await.err().unwrap();
        assert!(refused.extra.contains("exists already"), "{refused}");
        let after = write(&import, &object("y", 2, &[])).await.err().unwrap();
        assert!(after.extra.contains("failed before"), "{after}");
        assert_eq!(read(&world.object("x")).await.unwrap(), 1);
        drop(import);

        let mut foreign = object("x", 2, &[]);
        foreign[0] = frame(&Frame::Object(id("z")));
        let refused = import_all(&host, &foreign).await.err().unwrap();
        assert!(refused.extra.contains("belongs to another"), "{refused}");
        drop(host);
        let elsewhere = HostAdmin::serve(world.vat.clone(), Vec::new(), keys());
        let refused = import_all(&elsewhere, &object("y", 2, &[])).await.err().unwrap();
        assert!(refused.extra.contains("another host"), "{refused}");
    });
}

// An export holds a moment of the storage: it sees nothing that comes later, and a reader who is
// too slow loses it, so that pages are used again.
#[test]
fn an_export_is_of_one_moment_and_a_slow_reader_loses_it() {
    run_within(MINUTE, async {
        let dir = tempfile::tempdir().unwrap();
        let world = world(dir.path());
        let host = admin(&world, Duration::from_millis(200));
        let values = large(12);
        import_all(&host, &object("x", 1, &borrowed(&values))).await.unwrap();
        call_write(&world.object("x"), 5).promise.await.unwrap();
        let export = begin_export(&host).await.unwrap();
        call_write(&world.object("x"), 6).promise.await.unwrap();
        let mut found = Vec::new();
        loop {
            let frames = next(&export).await.unwrap();
            if frames.is_empty() {
                break;
            }
            for frame in Frames::of(&frames) {
                let Frame::Records(records) = frame.unwrap() else { continue };
                let n = records
                    .into_iter()
                    .filter(|record| record.key == b"n")
                    .map(|one| one.value.to_vec());
                found.extend(n);
            }
        }
        assert_eq!(found, [5_u64.to_be_bytes()]);
        assert!(next(&export).await.unwrap().is_empty(), "the end stays the end");
        drop(export);

        let mut slow = Vec::new();
        let full = loop {
            match begin_export(&host).await {
                Ok(export) => slow.push(export),
                Err(full) => break full,
            }
        };
        assert_eq!((full.kind, slow.len()), (capnp::ErrorKind::Overloaded, 4));
        // Each thread ends once nobody takes what it has, and then there is room again.
        while begin_export(&host).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let lost = next(&slow[0]).await.expect_err("the first one was too slow first");
        assert!(lost.extra.contains("given up"), "{lost}");
    });
}

/// The effects of a call travel with the object, so that the memory of the call has to travel too.
#[test]
fn request_ids_travel_with_their_object_and_go_with_it() {
    run(async {
        const ID: &[u8] = b"a request id of so many bytes";
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let from = world(dir.path());
        call_write(&once(&from.object("x"), ID), 1).promise.await.unwrap();
        let export = begin_export(&admin(&from, MINUTE)).await.unwrap();
        let mut frames = Vec::new();
        loop {
            match next(&export).await.unwrap() {
                end if end.is_empty() => break,
                more => frames.push(more),
            }
        }
        let to = world(other.path());
        let host = admin(&to, MINUTE);
        import_all(&host, &frames).await.unwrap();
        let told = call_write(&once(&to.object("x"), ID), 2).promise.await.unwrap();
        assert_eq!((told.get().unwrap().get_n(), log().len()), (1, 1));
        // An object that never had that call takes the place of the one that had.
        import_all(&host, &object("x", 2, &[])).await.unwrap();
        let told = call_write(&once(&to.object("x"), ID), 3).promise.await.unwrap();
        assert_eq!((told.get().unwrap().get_n(), log().len()), (3, 2));
    });
}

/// The edges of an object that was there are gone, and those of what is imported are made anew.
#[test]
fn imported_references_have_their_edges_and_those_of_other_clusters_none() {
    run(async {
        let data = tempfile::tempdir().unwrap();
        let world = world(data.path());
        let host = admin(&world, MINUTE);
        let citation = |target| Citation {
            target,
            class: "Trial".to_owned(),
            name: None,
            authority: Authority::Binding,
            caveats: Vec::new(),
        };
        let sealed = |cluster: u8, key: &[u8], name| {
            ReferenceCipher::new(&[cluster; 32]).encrypt(
                id("x"),
                key,
                &[citation(id(name))],
                b"",
                [9; 24],
            )
        };
        let (old, new) = (sealed(7, b"old", "a"), sealed(7, b"new", "b"));
        let foreign = sealed(8, b"foreign", "c");
        let mut values = large(9);
        values.push((b"new".to_vec(), new));
        values.push((b"foreign".to_vec(), foreign));
        values.sort();
        let edges = |key: &[u8]| world.vat.turns.store().get(id("x"), Space::Edges, key).unwrap();
        let references = || {
            let account =
                world.vat.turns.store().account(id("x"), Presence::Present, u64::MAX, None);
            account.unwrap().usage().references
        };
        import_all(&host, &object("x", 1, &[(b"old", &old), (b"older", b"")])).await.unwrap();
        assert_eq!(edges(b"old").as_deref(), Some(&id("a").as_bytes()[..]));
        assert_eq!(references(), 1);
        import_all(&host, &object("x", 2, &borrowed(&values))).await.unwrap();
        assert_eq!((edges(b"old"), edges(b"foreign")), (None, None));
        assert_eq!(edges(b"new").as_deref(), Some(&id("b").as_bytes()[..]));
        assert_eq!(references(), 1);

        let export = begin_export(&host).await.unwrap();
        let mut exported = Vec::new();
        while let frames = next(&export).await.unwrap()
            && !frames.is_empty()
        {
            exported.push(frames);
        }
        import_all(&host, &object("x", 3, &[])).await.unwrap();
        assert_eq!((edges(b"new"), references()), (None, 0));
        import_all(&host, &exported).await.unwrap();
        assert_eq!(edges(b"new").as_deref(), Some(&id("b").as_bytes()[..]));
        assert_eq!(references(), 1);
    });
}
