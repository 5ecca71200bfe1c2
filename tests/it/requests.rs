//! The operator sees the request ids of an object, and forgets them: with and without a running
//! server.

use std::path::Path;

use crate::support::calls::{by_name, increment, read, run};
use crate::support::{capstead, scratch, serve_with};
use capstead_client::{Connection, namespace, once};

const ID: [u8; 16] = [0xab; 16];
const OTHER: [u8; 16] = [0xcd; 16];

/// The output of `capstead requests`, and its exit code.
fn requests(data: &Path, args: &[&str]) -> (String, Option<i32>) {
    let output =
        capstead(["requests"]).args(args).arg("--data").arg(data).output().expect("it runs");
    let said = [output.stdout, output.stderr].concat();
    (String::from_utf8_lossy(&said).into_owned(), output.status.code())
}

fn done(data: &Path, args: &[&str]) -> String {
    let (said, code) = requests(data, args);
    assert_eq!(code, Some(0), "{args:?}: {said}");
    said
}

#[test]
fn the_operator_sees_request_ids_and_forgets_them() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--hosts", "2"]);
    let made =
        capstead(["grant", "Counter", "--label", "Ada", "--data"]).arg(&data).output().unwrap();
    let reference = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    let count = async |ids: &[[u8; 16]]| {
        let connection = Connection::dial(&served.announced.capnp).await.expect("it is reached");
        let counters: namespace::Client = connection.restore(&reference).expect("it can be asked");
        let counter = by_name(&counters, "x");
        for id in ids {
            increment(&once(&counter, id)).await.expect("it counts");
        }
        read(&counter).await.unwrap()
    };
    assert_eq!(run(count(&[ID, ID, OTHER])), 2);

    let said = done(&data, &["Counter/x"]);
    assert!(said.starts_with("Counter/x: 2 request ids"), "{said}");
    let line = said.lines().find(|line| line.contains(&"ab".repeat(16))).expect("it is listed");
    for says in [" Counter.increment, began", "replied", "by grant"] {
        assert!(line.contains(says), "{line}");
    }
    let (_, grant) = line.split_once("by grant ").expect("its grant is named");
    assert!(done(&data, &["Counter/x", "--grant", grant]).starts_with("Counter/x: 2 request ids"));
    let other = "0".repeat(32);
    assert!(done(&data, &["Counter/x", "--grant", &other]).starts_with("Counter/x: 0 request ids"));

    // A call whose id is forgotten counts as a new call.
    let said = done(&data, &["Counter/x", "--clear", "--id", &"ab".repeat(16)]);
    assert!(said.starts_with("Counter/x: forgot 1 request id"), "{said}");
    assert_eq!(run(count(&[ID, OTHER])), 3);

    served.stop();
    let said = done(&data, &["Counter/x"]);
    assert!(said.starts_with("Counter/x: 2 request ids"), "{said}");
    assert_eq!(said.matches(" Counter.increment, began").count(), 2, "{said}");
    assert!(
        done(&data, &["Counter/x", "--clear", "--grant", grant]).contains("forgot 2 request ids")
    );
    assert!(done(&data, &["Counter/x"]).starts_with("Counter/x: 0 request ids"));
}

#[test]
fn what_has_no_request_ids_is_said_not_to_be_there() {
    let (_folder, data) = scratch();
    serve_with(&data, &[]).stop();
    for (args, code, says) in [
        (&["Nope/x"][..], 1, "there is no object Nope/x"),
        (&["Nope/x", "--clear"], 1, "there is no object Nope/x"),
        (&["Counter"], 2, "request ids belong to objects"),
        (&["Counter/x", "--id", "abc"], 2, "32 to 128 hexadecimal digits"),
    ] {
        let (said, found) = requests(&data, args);
        assert_eq!(found, Some(code), "{said}");
        assert!(said.contains(says), "{said}");
    }
}
