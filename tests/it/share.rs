//! References and capabilities that a client has narrowed: the removed rights are gone.
#![expect(
    clippy::disallowed_methods,
    reason = "the server, which is another process, has the real time"
)]

use std::time::{Duration, SystemTime};

use crate::support::calls::{by_name, connect, increment, read, run};
use crate::support::{scratch, serve_with};
use capnp::ErrorKind;
use capstead::counter_capnp::counter;
use capstead_client::sturdyref::{Caveats, SigningKey};
use capstead_client::{Connection, Reason, Terms, attenuate, namespace, share};

fn is_unimplemented<T>(result: capnp::Result<T>) -> bool {
    result.err().is_some_and(|error| error.kind == ErrorKind::Unimplemented)
}

#[test]
fn a_shared_reference_allows_what_its_terms_say() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--hosts", "2"]);
    run(async {
        let (connection, counters) = connect(&served).await;
        let counter = by_name(&counters, "x");
        increment(&counter).await.unwrap();

        let reading = Terms::new("Ada").methods::<counter::Client>(["read"]).unwrap();
        let text = share(&counter, reading).await.unwrap();
        let ada: counter::Client = connection.restore(&text).unwrap();
        assert_eq!(read(&ada).await.unwrap(), 1);
        assert!(is_unimplemented(increment(&ada).await));
        let again = share(&ada, Terms::default()).await.unwrap();
        let again: counter::Client = connection.restore(&again).unwrap();
        assert!(is_unimplemented(increment(&again).await), "it allows no more than hers");

        let terms = Terms::new("Bob").methods::<namespace::Client>(["Namespace.byName"]).unwrap();
        let terms = terms.object_methods::<counter::Client>(["Counter.increment"]).unwrap();
        let text = share(&counters, terms).await.unwrap();
        let bob: namespace::Client = connection.restore(&text).unwrap();
        assert_eq!(increment(&by_name(&bob, "x")).await.unwrap(), 2);
        assert!(is_unimplemented(read(&by_name(&bob, "x")).await));
        assert!(is_unimplemented(bob.create_request().send().promise.await));

        let less = Caveats::none().with_methods_of::<counter::Client>(["read", "Facet.grants"]);
        let narrow = attenuate(&counter, &less.unwrap());
        assert_eq!(read(&narrow).await.unwrap(), 2);
        assert!(is_unimplemented(increment(&narrow).await));
        let nothing = Caveats::none().with_methods_of::<counter::Client>([]).unwrap();
        assert!(is_unimplemented(read(&attenuate(&narrow, &nothing)).await));
    });
}

#[test]
fn a_shared_reference_has_its_time_and_its_holder() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &[]);
    run(async {
        let (connection, counters) = connect(&served).await;
        let counter = by_name(&counters, "x");
        let restored = async |connection: &Connection, text: &str, keys: &[SigningKey]| {
            let counter: counter::Client = connection.restore_with(text, keys).await?;
            read(&counter).await
        };
        let hour = Duration::from_hours(1);
        for (until, is_good) in
            [(SystemTime::now() + hour, true), (SystemTime::now() - hour, false)]
        {
            let text = share(&counter, Terms::default().until(until)).await.unwrap();
            assert_eq!(restored(&connection, &text, &[]).await.is_ok(), is_good);
        }
        let key = SigningKey::from_bytes(&[7; 32]);
        let bound = Terms::default().holder(key.verifying_key()).unwrap();
        let text = share(&counter, bound).await.unwrap();
        let plain: counter::Client = connection.restore(&text).unwrap();
        assert!(read(&plain).await.is_err(), "it takes a proof");
        restored(&connection, &text, &[key]).await.unwrap();
        // The first grant of a namespace allows no grants that survive it.
        let refused = share(&counter, Terms::default().independent()).await.unwrap_err();
        assert_eq!(Reason::of(&refused), Some(Reason::NotAllowed));
    });
}

/// Narrowing makes no request to the server.
#[test]
fn a_name_that_is_not_there_is_answered_with_those_that_are() {
    let refused = |names: &[&'static str]| {
        let terms = Terms::new("Ada").methods::<counter::Client>(names.iter().copied());
        terms.unwrap_err().extra
    };
    for name in ["reed", "Read", "Poll.read", "read ", ""] {
        let said = refused(&["read", name]);
        let says = format!("Counter has no method {name}; it has Counter.increment, ");
        assert!(said.starts_with(&says) && said.contains("HttpService.request"), "{said}");
    }
}

/// The call is made before its answer is awaited, in its place among all others.
#[test]
fn sharing_keeps_its_place_among_the_calls() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &[]);
    run(async {
        let (connection, counters) = connect(&served).await;
        let counter = by_name(&counters, "x");
        let shared = share(&counter, Terms::default());
        drop(counter);
        let again: counter::Client = connection.restore(&shared.await.unwrap()).unwrap();
        assert_eq!(read(&again).await.unwrap(), 0);
    });
}
