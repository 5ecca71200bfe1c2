//! Alarms of whole servers: over kills and restarts, with several hosts, by HTTP and for the
//! operator.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use capstead::counter_capnp::counter;
use capstead::http::http_service;
use capstead::{Alarm, Context, Object, Result, Server};
use futures::future::join_all;

use crate::support::calls::{by_name, connect_to, read, run};
use crate::support::random::Random;
use crate::support::{Process, Served, capstead, eventually, http, now, own, scratch, serve_with};

/// Sets an alarm at each increment, and counts how often each of them has fired.
struct Ringer(Context);

impl Object for Ringer {
    const CLASS: &'static str = "Ringer";
    type Client = counter::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        Ok(Self(ctx))
    }

    async fn alarm(self: Rc<Self>, alarm: Alarm) -> Result<()> {
        if alarm.name.starts_with("call") {
            for n in 0..OBJECTS {
                let other = self.0.namespace::<Self>("ringers")?.get(&n.to_string())?;
                other.decrement_request().send().promise.await?;
            }
        }
        let key = format!("rung/{}", alarm.name);
        let storage = self.0.storage();
        storage.put_as(&key, &(storage.get_as::<i64>(&key)?.unwrap_or(0) + 1))
    }
}

impl counter::Server for Ringer {
    /// Sets an alarm for so many milliseconds from now, and returns the number of all. That of a
    /// number below 0 calls all ringers.
    async fn increment(
        self: Rc<Self>,
        params: counter::IncrementParams,
        mut results: counter::IncrementResults,
    ) -> Result<()> {
        let storage = self.0.storage();
        let number = storage.get_as::<i64>("set")?.unwrap_or(0) + 1;
        storage.put_as("set", &number)?;
        let by = params.get()?.get_by();
        let name = if by < 0 { format!("call/{number}") } else { number.to_string() };
        self.0.alarms().set_after(&name, Duration::from_millis(by.unsigned_abs()))?;
        results.get().set_value(number);
        Ok(())
    }

    /// The number of alarms that were set.
    async fn decrement(
        self: Rc<Self>,
        _: counter::DecrementParams,
        mut results: counter::DecrementResults,
    ) -> Result<()> {
        results.get().set_value(self.0.storage().get_as::<i64>("set")?.unwrap_or(0));
        Ok(())
    }

    /// The number of alarms that were set and have not fired yet; less than none if one has fired
    /// twice.
    async fn read(
        self: Rc<Self>,
        _: counter::ReadParams,
        mut results: counter::ReadResults,
    ) -> Result<()> {
        let storage = self.0.storage();
        let mut left = 0;
        for number in 1..=storage.get_as::<i64>("set")?.unwrap_or(0) {
            left += match storage.get_as::<i64>(format!("rung/{number}"))? {
                None => 1,
                Some(1) => 0,
                Some(_) => i64::from(i32::MIN),
            };
        }
        results.get().set_value(left);
        Ok(())
    }
}

impl http_service::Server for Ringer {}

const HOSTS: &str = "CAPSTEAD_TEST_ALARM_HOSTS";

#[test]
fn serve_the_ringer() {
    let Some(data) = own::data() else { return };
    let hosts = std::env::var(HOSTS).map_or(1, |hosts| hosts.parse().unwrap());
    let server = Server::new(data).class::<Ringer>().bind::<Ringer, Ringer>("ringers");
    own::serve(server.hosts(hosts));
}

fn start(data: &Path, hosts: u16) -> Served {
    let mut command = own::program("alarms::serve_the_ringer", data);
    command.env(HOSTS, hosts.to_string());
    Served::ready(Process::start(command))
}

const OBJECTS: usize = 12;

/// Sets so many alarms, whose times come within the next moments, and waits for the answers.
async fn set_some(served: &Served, random: &mut Random, count: usize) -> Vec<i64> {
    let (_connection, ringers) = connect_to(served, "Ringer").await;
    let sent = (0..count).map(|n| {
        let mut request = by_name(&ringers, &(n % OBJECTS).to_string()).increment_request();
        request.get().set_by(random.below(60).cast_signed());
        request.send().promise
    });
    let sent: Vec<_> = sent.collect();
    let mut most = vec![0; OBJECTS];
    for (n, answer) in join_all(sent).await.into_iter().enumerate() {
        most[n % OBJECTS] = answer.unwrap().get().unwrap().get_value();
    }
    most
}

/// The alarms that have not fired yet, of all objects.
async fn left(served: &Served) -> i64 {
    let (_connection, ringers) = connect_to(served, "Ringer").await;
    let mut left = 0;
    for n in 0..OBJECTS {
        left += read(&by_name(&ringers, &n.to_string())).await.unwrap();
    }
    left
}

/// An alarm's writes and its end are one block: so each fires exactly once, as far as its object
/// can tell, whenever the server is killed.
fn kills_lose_no_alarm_and_double_none(hosts: u16) {
    let (_folder, data) = scratch();
    let mut random = Random::from_printed_seed();
    let mut most = vec![0; OBJECTS];
    for round in 0..4 {
        let mut served = start(&data, hosts);
        most = run(set_some(&served, &mut random, 60));
        // Killed before, between and after some of them.
        let fired = round * 20;
        eventually("some alarms", || (served.metric("alarms_fired_total") >= fired).then_some(()));
        served.kill();
    }
    let served = start(&data, hosts);
    eventually("all alarms", || {
        let left = run(left(&served));
        assert!(left >= 0, "an alarm fired twice");
        (left == 0).then_some(())
    });
    run(async {
        let (_connection, ringers) = connect_to(&served, "Ringer").await;
        for (n, most) in most.iter().enumerate() {
            let ringer = by_name(&ringers, &n.to_string());
            let set = ringer.decrement_request().send().promise.await.unwrap();
            assert!(set.get().unwrap().get_value() >= *most, "an answered call was lost");
        }
    });
    assert_eq!(served.metric("alarms_dead_total"), 0);
    assert_eq!(served.stop().0, Some(0));
}

#[test]
fn kills_of_one_host_lose_no_alarm_and_double_none() {
    kills_lose_no_alarm_and_double_none(1);
}

#[test]
fn kills_of_two_hosts_lose_no_alarm_and_double_none() {
    kills_lose_no_alarm_and_double_none(2);
}

#[test]
fn kills_of_four_hosts_lose_no_alarm_and_double_none() {
    kills_lose_no_alarm_and_double_none(4);
}

/// They fire once all hosts are there, so that their methods find all objects.
#[test]
fn alarms_that_are_due_at_the_start_find_the_objects_of_all_hosts() {
    let (_folder, data) = scratch();
    let mut served = start(&data, 4);
    let due = run(async {
        let (_connection, ringers) = connect_to(&served, "Ringer").await;
        for n in 0..OBJECTS {
            let mut request = by_name(&ringers, &n.to_string()).increment_request();
            request.get().set_by(-3_000);
            request.send().promise.await.unwrap();
        }
        now() + Duration::from_secs(3)
    });
    served.kill();
    eventually("their time", || (now() > due).then_some(()));
    let served = start(&data, 4);
    eventually("all alarms", || {
        let over = |n: usize| alarms(&data, &format!("Ringer/{n}")).trim().ends_with(": 0 alarms");
        (0..OBJECTS).all(over).then_some(())
    });
    assert_eq!(served.metric("alarms_failed_total"), 0);
    assert_eq!(served.stop().0, Some(0));
}

/// An end in order is no different: those that are due later fire after the next start.
#[test]
fn a_counter_is_reset_at_its_time_by_a_later_server_too() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &[]);
    let web = served.announced.http.clone();
    for name in ["x", "y"] {
        assert_eq!(http::post(&web, &format!("/counter/{name}/increment?by=7")).body, "7");
    }
    assert_eq!(http::post(&web, "/counter/x/reset?after=soon").status, 400);
    assert_eq!(http::post(&web, "/counter/x/reset?after=0").status, 200);
    let value = |web: &str, name: &str| http::get(web, &format!("/counter/{name}")).body;
    eventually("the reset", || (value(&web, "x") == "0").then_some(()));
    assert_eq!(http::post(&web, "/counter/y/reset?after=2").status, 200);

    let shown = alarms(&data, "Counter/y");
    assert!(shown.starts_with("Counter/y: 1 alarm\n  \"reset\", set for 20"), "{shown}");
    assert_eq!(alarms(&data, "Counter/x").trim(), "Counter/x: 0 alarms");
    // The operator can cancel one, while the server serves or not.
    assert_eq!(http::post(&web, "/counter/z/reset?after=1000").status, 200);
    let cancel = |said: &str| {
        let mut cancel = capstead(["alarms", "Counter/z", "--cancel", "reset", "--data"]);
        let output = cancel.arg(&data).output().expect("it runs");
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), said);
    };
    cancel("Counter/z: cancelled \"reset\"");
    cancel("Counter/z: no alarm \"reset\"");
    assert_eq!(http::post(&web, "/counter/z/reset?after=1000").status, 200);
    assert_eq!(served.stop().0, Some(0));
    cancel("Counter/z: cancelled \"reset\"");
    assert_eq!(alarms(&data, "Counter/z").trim(), "Counter/z: 0 alarms");
    assert!(alarms(&data, "Counter/y").starts_with("Counter/y: 1 alarm\n"));

    let served = serve_with(&data, &[]);
    let web = served.announced.http.clone();
    eventually("the reset", || (value(&web, "y") == "0").then_some(()));
    eventually("its end", || {
        (alarms(&data, "Counter/y").trim() == "Counter/y: 0 alarms").then_some(())
    });
}

/// The output of `capstead alarms`.
fn alarms(data: &Path, object: &str) -> String {
    let output = capstead(["alarms", object, "--data"]).arg(data).output().expect("it runs");
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    said
}
