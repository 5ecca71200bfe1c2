//! Grants and imports: what is in force goes on, what was revoked stays so, unless the operator
//! says otherwise.

use std::rc::Rc;

use capnp::Error;
use capstead_client::sturdyref::GrantId;

use super::archive::{
    MINUTE, admin, begin_export, borrowed, frame, large, next, object, records, world, write,
};
use super::grants::{all_trials, by_name, labelled, namespace, restore, revoke, root, save};
use super::references::join;
use super::trial::{World, call_write, read, run_within, settle};
use crate::host::Agent;
use crate::host::authority::records::{self, Standing};
use crate::host::authority::sweep;
use crate::host::base::right::GrantRef;
use crate::id::{ObjectId, Pool};
use crate::schema::admin_capnp::{Existing, ImportedGrants, host_admin, import};
use crate::storage::Space;
use crate::storage::archive::Frame;
use crate::sturdyref::{Grant, Parent, root_grant};

/// Kept, brought, left out, revoked.
type Counts = (u64, u64, u64, u64);

async fn begin(
    host: &host_admin::Client,
    existing: Existing,
    grants: ImportedGrants,
) -> import::Client {
    let mut request = host.begin_import_request();
    request.get().set_existing(existing);
    request.get().set_grants(grants);
    request.send().promise.await.unwrap().get().unwrap().get_incoming().unwrap()
}

async fn finish(import: &import::Client) -> Counts {
    let reply = import.finish_request().send().promise.await.unwrap();
    let counts = reply.get().unwrap();
    (counts.get_kept(), counts.get_brought(), counts.get_left_out(), counts.get_revoked())
}

async fn replace(host: &host_admin::Client, frames: &[Vec<u8>], grants: ImportedGrants) -> Counts {
    let import = begin(host, Existing::Replace, grants).await;
    write(&import, frames).await.unwrap();
    finish(&import).await
}

/// All that the host has.
async fn export(host: &host_admin::Client) -> Vec<Vec<u8>> {
    let export = begin_export(host).await.unwrap();
    let mut all = Vec::new();
    loop {
        match next(&export).await.unwrap() {
            frames if frames.is_empty() => return all,
            frames => all.push(frames),
        }
    }
}

fn run(work: impl AsyncFnOnce(World, Rc<Agent>, host_admin::Client) + 'static) {
    run_within(MINUTE, async move {
        let dir = tempfile::tempdir().unwrap();
        let world = world(dir.path());
        let agent = join(&world).await;
        let host = admin(&world, MINUTE);
        work(world, agent, host).await;
    });
}

fn assert_revoked<T>(outcome: Result<T, Error>) {
    let error = outcome.err().expect("it was revoked");
    assert!(error.extra.contains("revoked:"), "{error}");
}

/// The state of a server brought into itself changes nothing for those who hold its grants.
#[test]
fn what_is_in_force_before_and_after_is_never_cut() {
    run(async |world, agent, host| {
        let all = all_trials(&agent).await;
        call_write(&by_name(&all, "x"), 7).promise.await.unwrap();
        let text = save(&by_name(&all, "x"), &labelled("guest")).await.unwrap();
        let frames = export(&host).await;
        for grants in [ImportedGrants::Keep, ImportedGrants::Replace] {
            call_write(&by_name(&all, "x"), 8).promise.await.unwrap();
            assert_eq!(replace(&host, &frames, grants).await, (2, 0, 0, 0), "root and guest");
            assert_eq!(read(&by_name(&all, "x")).await.unwrap(), 7, "the namespace goes on");
            assert_eq!(read(&restore(&agent, &text).await.unwrap()).await.unwrap(), 7);
        }
        drop(world);
    });
}

/// An import brings back what was revoked since when it is told so, and says what it did.
#[test]
fn what_was_revoked_since_stays_so_unless_the_operator_says_otherwise() {
    run(async |world, agent, host| {
        let owner = world.object("x");
        call_write(&owner, 7).promise.await.unwrap();
        let eve = save(&owner, &labelled("Eve")).await.unwrap();
        let ada = save(&owner, &labelled("Ada")).await.unwrap();
        let frames = export(&host).await;
        revoke(&owner, "Eve").await.unwrap();
        let bob = save(&owner, &labelled("Bob")).await.unwrap();
        let live = restore(&agent, &ada).await.unwrap();
        assert_eq!(replace(&host, &frames, ImportedGrants::Keep).await, (3, 0, 1, 0));
        assert_revoked(restore(&agent, &eve).await);
        drop(live);
        for text in [&ada, &bob] {
            read(&restore(&agent, text).await.unwrap()).await.unwrap();
        }
        let bobs = restore(&agent, &bob).await.unwrap();
        assert_eq!(replace(&host, &frames, ImportedGrants::Replace).await, (2, 1, 0, 1));
        for text in [&ada, &eve] {
            read(&restore(&agent, text).await.unwrap()).await.unwrap();
        }
        assert_revoked(restore(&agent, &bob).await);
        assert_revoked(read(&bobs).await);
    });
}

/// An archive in which the root is revoked revokes it, and one in which it is good brings it back;
/// one of an earlier version doesn't bring what its roots allowed.
#[test]
fn a_root_is_what_the_archive_says_if_the_operator_says_so() {
    run(async |world, agent, host| {
        let text = root("Trial").expose_text("127.0.0.1:1").unwrap();
        let all = namespace(&agent, &text).await.unwrap();
        let (id, grant) =
            (crate::host::authority::records::object_id(target()), root_grant("Trial"));
        let good = export(&host).await;
        let old = Grant { allows_independent: true, ..Grant::root(7) };
        let of_version_before = [
            super::archive::frame(&crate::storage::archive::Frame::Object(id)),
            records(Space::Grants, grant.as_bytes(), &old.encode()),
        ];
        let revoked = Grant { is_revoked: true, ..Grant::root(7) };
        let revoked = [
            of_version_before[0].clone(),
            records(Space::Grants, grant.as_bytes(), &revoked.encode()),
        ];
        assert_eq!(replace(&host, &revoked, ImportedGrants::Keep).await, (1, 0, 0, 0));
        read(&by_name(&all, "x")).await.unwrap();
        assert_eq!(replace(&host, &revoked, ImportedGrants::Replace).await, (0, 0, 0, 1));
        assert_revoked(read(&by_name(&all, "x")).await);
        assert_revoked(namespace(&agent, &text).await);
        assert_eq!(replace(&host, &good, ImportedGrants::Keep).await, (0, 0, 1, 0));
        assert_revoked(namespace(&agent, &text).await);
        for frames in [&good[..], &of_version_before] {
            replace(&host, frames, ImportedGrants::Replace).await;
            read(&by_name(&namespace(&agent, &text).await.unwrap(), "x")).await.unwrap();
            assert!(
                !records::get(&world.vat, GrantRef::new(id, grant))
                    .unwrap()
                    .unwrap()
                    .allows_independent
            );
        }
    });
}

fn target() -> capstead_client::sturdyref::TargetId {
    let (capstead_client::sturdyref::Target::Namespace(id)
    | capstead_client::sturdyref::Target::Object(id)) = root("Trial").target();
    id
}

// Capabilities whose grants an import had revoked were cut only with the last batch of its target,
// and never when the import failed before that.
#[test]
fn what_was_revoked_before_an_import_failed_is_cut() {
    /// More than one batch has room for.
    const GRANTS: u64 = 20_000;
    run(async |world, agent, host| {
        let text = root("Trial").expose_text("127.0.0.1:1").unwrap();
        let all = namespace(&agent, &text).await.unwrap();
        read(&by_name(&all, "x")).await.unwrap();
        let id = crate::host::authority::records::object_id(target());
        let revoked = Grant { is_revoked: true, ..Grant::root(7) };
        let mut frames = frame(&Frame::Object(id));
        frames.extend(records(Space::Grants, root_grant("Trial").as_bytes(), &revoked.encode()));
        let other = Grant { label: "l".repeat(250), ..Grant::root(7) }.encode();
        for n in 1..=GRANTS {
            let grant = [[0; 8], n.to_be_bytes()].concat();
            frames.extend(records(Space::Grants, &grant, &other));
        }
        frames.extend(records(Space::Header, b"", b"no header"));
        let import = begin(&host, Existing::Replace, ImportedGrants::Replace).await;
        write(&import, &[frames]).await.expect_err("there is nonsense in it");
        assert_revoked(read(&by_name(&all, "x")).await);
        assert_revoked(namespace(&agent, &text).await);
        drop(world);
    });
}

/// A good reference to an object that comes in is told to wait, and is good again when it is whole;
/// one that was revoked before the import was cut short stays revoked when that is ended.
#[test]
fn a_good_reference_is_told_that_the_import_is_not_finished() {
    run(async |world, agent, host| {
        let owner = world.object("x");
        call_write(&owner, 1).promise.await.unwrap();
        let eve = save(&owner, &labelled("Eve")).await.unwrap();
        let ada = save(&owner, &labelled("Ada")).await.unwrap();
        let records_of = |label: &str| {
            let x = owner_id();
            let grants = records::list_behind(&world.vat, x, None, 9).unwrap();
            let (id, grant) = grants.into_iter().find(|(_, grant)| grant.label == label).unwrap();
            records(Space::Grants, id.as_bytes(), &grant.encode())
        };
        let values = large(11);
        let mut frames = object("x", 2, &borrowed(&values));
        let mut grants = vec![records_of("Eve"), records_of("Ada")];
        grants.sort();
        frames.extend(grants);
        revoke(&owner, "Eve").await.unwrap();

        let import = begin(&host, Existing::Replace, ImportedGrants::Keep).await;
        write(&import, &frames[..8]).await.unwrap();
        for _ in 0..2 {
            let refused = restore(&agent, &ada).await.err().unwrap();
            assert!(refused.extra.contains("import-unfinished:"), "{refused}");
            assert_revoked(restore(&agent, &eve).await);
        }
        drop(import);
        settle().await;
        let refused = restore(&agent, &ada).await.err().unwrap();
        assert!(refused.extra.contains("import-unfinished:"), "{refused}");
        let import = begin(&host, Existing::Refuse, ImportedGrants::Keep).await;
        write(&import, &frames).await.unwrap();
        assert_eq!(finish(&import).await, (1, 0, 1, 0));
        assert_eq!(read(&restore(&agent, &ada).await.unwrap()).await.unwrap(), 2);
        assert_revoked(restore(&agent, &eve).await);
    });
}

fn owner_id() -> crate::id::ObjectId {
    crate::id::ObjectId::named(crate::id::Pool::default(), "Trial", "x")
}

/// Only an archive that somebody made can have them.
#[test]
fn grants_that_were_made_from_each_other_in_a_circle_are_dead() {
    run(async |world, _, host| {
        let ids = [1_u128, 2].map(|n| GrantId::from_bytes(n.to_be_bytes()));
        let mut frames = object("x", 1, &[]);
        for (id, parent) in [(ids[0], ids[1]), (ids[1], ids[0])] {
            let grant = Grant { parent: Parent::Own(parent), ..Grant::root(1) };
            frames.push(records(Space::Grants, id.as_bytes(), &grant.encode()));
        }
        replace(&host, &frames, ImportedGrants::Replace).await;
        for id in ids {
            let grant_ref = GrantRef::new(owner_id(), id);
            let standing = records::standing(&world.vat, grant_ref, &|_| true).unwrap();
            assert!(matches!(standing, Standing::Dead));
            let grant = records::get(&world.vat, grant_ref).unwrap().expect("it came in");
            assert!(sweep::is_dead(&world.vat, owner_id(), &grant).unwrap());
            let other = GrantRef::new(owner_id(), GrantId::from_bytes([9; 16]));
            assert!(!records::was_made_from(&world.vat, owner_id(), &grant, other).unwrap());
        }
        assert_eq!(read(&world.object("x")).await.unwrap(), 1);
    });
}

/// More grants than one batch takes, 16 MiB, come in and give way again: of an object and of a
/// namespace.
#[test]
fn more_grants_than_a_batch_takes_come_in_and_give_way() {
    const COUNT: u32 = 60_000;
    run(async |world, _, host| {
        let namespace = ObjectId::namespace(Pool::default(), "Trial");
        // One that others survive leaves its record when it is revoked.
        let one = Grant { label: "L".repeat(256), allows_independent: true, ..Grant::root(1) };
        let record = one.encode();
        let grants = |numbers: std::ops::Range<u32>| -> Vec<Vec<u8>> {
            let numbers: Vec<u32> = numbers.collect();
            let some = |some: &[u32]| {
                let of = |n: &u32| records(Space::Grants, &u128::from(*n).to_be_bytes(), &record);
                some.iter().flat_map(of).collect()
            };
            numbers.chunks(1_000).map(some).collect()
        };
        for target in [object("x", 1, &[]), vec![frame(&Frame::Object(namespace))]] {
            let with = |more: Vec<Vec<u8>>| [target.clone(), more].concat();
            let own = u64::from(target.len() == 1);
            let all = with(grants(0..COUNT));
            let came = replace(&host, &all, ImportedGrants::Replace).await;
            assert_eq!(came, (0, COUNT.into(), 0, own), "the root gives way as well");
            let few = with(grants(7..8));
            let left = replace(&host, &few, ImportedGrants::Replace).await;
            assert_eq!(left, (1, 0, 0, u64::from(COUNT) - 1));
        }
        assert_eq!(read(&world.object("x")).await.unwrap(), 1);
    });
}
