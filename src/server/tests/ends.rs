//! A host ends for good: the error says which one and why, and the server ends in order.

use super::world::{World, by_name, increment, run, straight};
use crate::server::error::ServerError;
use crate::server::link::Probe;

/// Has `probe` end the host `number` of `hosts`; returns the server's final error.
async fn ended_by(hosts: u16, number: u16, probe: Probe) -> ServerError {
    let data = tempfile::tempdir().unwrap();
    let world = World::start(data.path(), hosts).await;
    let (front, counters) = world.connect().await;
    let other = straight(&front, &by_name(&counters, &world.name_on(0, 0))).await;
    assert_eq!(increment(&other).await.unwrap(), 1);
    assert_eq!(increment(&by_name(&counters, &world.name_on(number, 0))).await.unwrap(), 1);
    let under_way: Vec<_> = (0..20).map(|_| increment(&other)).collect();
    world.on_host(number, probe).await;
    let (ended, answers) = futures::join!(world.ended(), futures::future::join_all(under_way));
    let mut value = 1;
    for answer in answers {
        match answer {
            Ok(next) => value = next,
            // Another host answers the calls that it has taken, and takes no more.
            Err(error) => assert!(error.extra.contains("not-begun:"), "{error}"),
        }
    }
    let again = World::start(data.path(), hosts).await;
    assert_eq!(again.value(&again.name_on(0, 0)).await, value);
    assert_eq!(again.value(&again.name_on(number, 0)).await, 1);
    again.stop().await.unwrap();
    ended.unwrap_err()
}

fn is_of(error: &ServerError, host: u16, why: &str) {
    let ServerError::Host { number, reason } = error else { panic!("{error}") };
    assert!(*number == host && reason.contains(why), "{error}");
    assert!(error.to_string().starts_with(&format!("host {host} ended")), "{error}");
}

#[test]
fn a_panic_of_a_hosts_thread_ends_the_server_in_order() {
    for (hosts, host) in [(2, 1), (4, 3)] {
        let panics: Probe = Box::new(|_, _| panic!("a bug of this thread"));
        is_of(&run(ended_by(hosts, host, panics)), host, "a bug of this thread");
    }
}

// Otherwise its callers would never stop waiting, since the thread itself stays alive.
#[test]
fn a_panic_of_what_a_host_cannot_do_without_ends_the_server_in_order() {
    let fails: Probe = Box::new(|host, _| host.vat.fail_a_task());
    is_of(&run(ended_by(2, 1, fails)), 1, "a task of the vat has a bug");
}

#[test]
fn so_it_does_on_the_first_host() {
    run(async {
        let data = tempfile::tempdir().unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        let server = crate::classes::bundled(data.path()).hosts(2).listen(any).http(any);
        let running = server.start().await.unwrap();
        running.parts.host.vat.fail_a_task();
        let ended = running.until(std::future::pending()).await;
        is_of(&ended.unwrap_err(), 0, "a task of the vat has a bug");
    });
}
