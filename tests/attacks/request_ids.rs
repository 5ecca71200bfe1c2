//! Request ids that a reference begins without end: on one object, on many, and of calls that never
//! end.

use std::cell::Cell;
use std::rc::Rc;

use capnp::capability::FromClientHook;
use capstead::counter_capnp::counter;
use capstead::{Reason, Result};
use capstead_client::{Connection, namespace, once, request_id};
use futures::future::join_all;

use super::fortress::{withstands, withstands_from};
use super::over_http::serve_large;
use crate::passing_capnp::passer;
use crate::support::Served;
use crate::support::calls::{by_name, connect, connect_to, increment, run, save};

/// The ids that an object keeps for one grant.
const MOST: usize = 16_384;

/// The calls that are under way at once.
const AT_ONCE: usize = 500;

fn with_fresh_id<C: FromClientHook>(object: &C) -> C {
    once(object, &request_id().unwrap())
}

/// The object as a guest has it, by a connection of their own.
async fn guest_of<C: FromClientHook>(served: &Served, object: &C) -> (Connection, C) {
    let text = save(object, "greedy").await;
    let connection = Connection::dial(&served.announced.capnp).await.unwrap();
    let restored = connection.restore(&text).unwrap();
    (connection, restored)
}

fn assert_too_many(error: &capnp::Error) {
    assert_eq!(Reason::of(error), Some(Reason::TooManyRequestIds), "{error}");
}

#[test]
fn ids_without_end_on_one_object() {
    withstands(&[], |served| {
        let before = served.resident_bytes();
        run(async {
            let (_connection, counters) = connect(served).await;
            let victim = by_name(&counters, "victim");
            let (_guest, greedy) = guest_of(served, &victim).await;
            let (mut kept, mut refused) = (0, 0);
            while refused < 2000 {
                let calls = (0..AT_ONCE).map(|_| increment(&with_fresh_id(&greedy)));
                for answer in join_all(calls.collect::<Vec<_>>()).await {
                    match answer {
                        Ok(_) => kept += 1,
                        Err(error) => {
                            assert_too_many(&error);
                            refused += 1;
                        }
                    }
                }
            }
            assert_eq!(kept, MOST);
            // Others have ids left.
            let value = increment(&with_fresh_id(&victim)).await.unwrap();
            assert_eq!(usize::try_from(value), Ok(MOST + 1));
        });
        let grown = served.resident_bytes().saturating_sub(before);
        assert!(grown < 128 << 20, "{} MiB", grown >> 20);
    });
}

/// Objects with ids sleep as others do.
#[test]
fn ids_without_end_on_many_objects() {
    const AWAKE: u64 = 1000;
    const OBJECTS: usize = 6000;
    let most = AWAKE.to_string();
    withstands(&["--awake-objects", &most], |served| {
        let before = served.resident_bytes();
        run(async {
            let (_connection, counters) = connect(served).await;
            let (_guest, greedy) = guest_of::<namespace::Client>(served, &counters).await;
            for first in (0..OBJECTS).step_by(AT_ONCE / 2) {
                let names = first..first + AT_ONCE / 2;
                let objects = names.map(|name| by_name(&greedy, &format!("of many {name}")));
                let calls = objects.flat_map(|object| {
                    [(); 2].map(|()| increment(&with_fresh_id::<counter::Client>(&object)))
                });
                for answer in join_all(calls.collect::<Vec<_>>()).await {
                    answer.unwrap();
                }
            }
        });
        let awake = served.metric("objects_awake");
        assert!(awake <= AWAKE + 64, "{awake} objects are awake");
        let grown = served.resident_bytes().saturating_sub(before);
        assert!(grown < 128 << 20, "{} MiB", grown >> 20);
    });
}

/// A capability that answers no call.
struct Silent;

impl passer::Server for Silent {
    async fn note(self: Rc<Self>, _: passer::NoteParams, _: passer::NoteResults) -> Result<()> {
        std::future::pending().await
    }
}

/// The id of a running call isn't forgotten; so these would last for ever.
#[test]
fn ids_of_calls_that_never_end() {
    const CONNECTIONS: usize = 20;
    const CALLS: usize = 900;
    withstands_from(serve_large, |served| {
        let before = served.resident_bytes();
        run(async {
            let (_connection, all) = connect_to(served, "Plain").await;
            let mut request = all.by_name_request();
            request.get().set_key("victim");
            let victim: passer::Client = request.send().pipeline.get_object().as_cap().cast_to();
            let text = save(&victim, "greedy").await;
            let refused = Rc::new(Cell::new(0));
            let mut connections = Vec::new();
            for _ in 0..CONNECTIONS {
                let connection = Connection::dial(&served.announced.capnp).await.unwrap();
                let greedy: passer::Client = connection.restore(&text).unwrap();
                let silent: passer::Client = capstead_client::capability(Rc::new(Silent));
                for _ in 0..CALLS {
                    let mut call = with_fresh_id(&greedy).call_request();
                    call.get().set_on(silent.clone());
                    call.get().set_count(1);
                    let (sent, refused) = (call.send().promise, refused.clone());
                    tokio::task::spawn_local(async move {
                        if let Err(error) = sent.await
                            && Reason::of(&error) == Some(Reason::TooManyRequestIds)
                        {
                            refused.set(refused.get() + 1);
                        }
                    });
                }
                connections.push(connection);
            }
            while refused.get() < CONNECTIONS * CALLS - MOST {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            assert_eq!(refused.get(), CONNECTIONS * CALLS - MOST);
            // Others have ids left.
            let noted = with_fresh_id(&victim).note_request().send().promise.await;
            assert_eq!(noted.unwrap().get().unwrap().get_n(), 0);
            let grown = served.resident_bytes().saturating_sub(before);
            assert!(grown < 400 << 20, "{} MiB", grown >> 20);
            // The calls end with the callers that wait for them; they don't hold up its end.
            for connection in connections {
                connection.disconnect().await;
            }
        });
    });
}
