//! Imports into a running server: the validity of its grants afterwards, on every host and over
//! HTTP.

use crate::support::calls::{by_name, connect, increment, read, run};
use crate::support::operator::done;
use crate::support::{http, scratch, serve_with};

fn names() -> impl Iterator<Item = String> {
    (0..16).map(|n| format!("c{n}"))
}

/// The server's own state, imported while it serves, ends only the instances of its objects.
#[test]
fn a_server_goes_on_after_its_own_archive_was_brought_in() {
    for hosts in ["1", "4"] {
        let (folder, data) = scratch();
        let file = folder.path().join("all");
        let file = file.to_str().unwrap();
        let served = serve_with(&data, &["--hosts", hosts]);
        run(async {
            let (_front, counters) = connect(&served).await;
            for name in names() {
                increment(&by_name(&counters, &name)).await.unwrap();
            }
            done(&data, &["export", file, "--all"]);
            for grants in ["keep", "replace"] {
                let said = done(&data, &["import", file, "--replace", "--grants", grants]);
                assert!(said.contains("16 of them existed"), "{said}");
                // One root for each of the bundled classes.
                assert!(said.ends_with("grants: 6 kept, 0 brought"), "{said}");
                for name in names() {
                    assert_eq!(read(&by_name(&counters, &name)).await.unwrap(), 1, "{name}");
                    let page = http::get(&served.announced.http, &format!("/counter/{name}"));
                    assert_eq!((page.status, &*page.body), (200, "1"), "{name}");
                }
            }
        });
        assert_eq!(served.stop().0, Some(0));
    }
}

/// A revoked root comes back where the operator asks for it, and with it its path over HTTP, on all
/// hosts and without a restart.
#[test]
fn a_revoked_root_comes_back_with_its_archive_on_every_host() {
    let (folder, data) = scratch();
    let file = folder.path().join("all");
    let file = file.to_str().unwrap();
    let served = serve_with(&data, &["--hosts", "4"]);
    let status = |name: &str| http::get(&served.announced.http, &format!("/counter/{name}")).status;
    assert!(names().all(|name| status(&name) == 200));
    done(&data, &["export", file, "--all"]);
    let tree = done(&data, &["grants", "Counter"]);
    let root = tree.lines().nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    done(&data, &["revoke", "Counter", &root]);
    assert!(names().all(|name| status(&name) == 403));
    let said = done(&data, &["import", file, "--replace"]);
    assert!(said.contains("5 kept, 0 brought, 1 left out"), "{said}");
    assert!(names().all(|name| status(&name) == 403), "it was revoked, and stays so");
    let said = done(&data, &["import", file, "--replace", "--grants", "replace"]);
    assert!(said.contains("5 kept, 1 brought"), "{said}");
    assert!(names().all(|name| status(&name) == 200));
    assert_eq!(served.stop().0, Some(0));
}

/// The objects of another server are imported, and its grants are kept or left out as the command
/// says.
#[test]
fn another_servers_archive_leaves_the_grants_that_are_here() {
    let (folder, data) = scratch();
    let elsewhere = folder.path().join("elsewhere");
    let file = folder.path().join("all");
    let file = file.to_str().unwrap();
    let other = serve_with(&elsewhere, &[]);
    run(async {
        let (_front, counters) = connect(&other).await;
        increment(&by_name(&counters, "x")).await.unwrap();
    });
    done(&elsewhere, &["grant", "Counter", "--label", "theirs"]);
    done(&elsewhere, &["export", file, "--all"]);
    assert_eq!(other.stop().0, Some(0));

    let served = serve_with(&data, &["--hosts", "2"]);
    run(async {
        let (_front, counters) = connect(&served).await;
        for (args, grants) in [
            (
                &["--replace"][..],
                "grants: 6 kept, 0 brought, 1 left out that are not in force here",
            ),
            (&["--replace", "--grants", "replace"], "grants: 6 kept, 1 brought"),
        ] {
            let said = done(&data, &[&["import", file], args].concat());
            assert!(said.contains(grants), "{said}");
            assert!(said.ends_with("whose references are not good here"), "{said}");
            assert_eq!(read(&by_name(&counters, "x")).await.unwrap(), 1);
            assert_eq!(http::get(&served.announced.http, "/counter/x").status, 200);
        }
    });
    assert_eq!(served.stop().0, Some(0));
}
