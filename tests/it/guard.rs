//! The limits of connections on a whole server: their cost for a peer that exceeds them, and the
//! server's memory, which doesn't grow with the bytes that a peer sends.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use capnp::message::ReaderOptions;
use capnp::traits::HasTypeId;
use capstead::counter_capnp::counter;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::raw::{self, COUNTER, Raw, bootstrap, by_name, finish, restore};
use crate::support::{
    Served, capstead, copies, eventually, http, now, refused_start, scratch, serve_command,
    serve_with,
};

/// The time between two attempts of a flood that is blocked.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Much less than the bytes sent, and more than the machine's own noise.
const GROWTH_MAX: u64 = 48 << 20;

#[test]
fn a_limit_that_is_misspelt_is_refused_with_a_reason_and_help_names_all() {
    let (_folder, data) = scratch();
    for (limit, reason) in [
        ("call=5", r#"there is no limit "call"; --help has the names"#),
        ("idle=5", r#""5" is no time, like 30s or 5m"#),
    ] {
        let (code, error) = refused_start(serve_command(&data, &["--limit", limit]));
        assert_eq!(code, Some(2));
        assert!(error.contains(reason), "{error}");
    }
    let help = capstead(["serve", "--help"]).output().expect("it runs");
    let help = String::from_utf8(help.stdout).expect("help is text");
    for line in ["message-bytes           8.0 MiB", "slow-reader             10s"] {
        assert!(help.contains(line), "{help}");
    }
}

#[test]
fn one_address_gets_so_many_connections_and_others_when_these_end() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--limit", "connections-per-peer=3"]);
    let mut connected = [0; 3].map(|_| raw::dial(&served));
    for stream in &mut connected {
        raw::send(stream, &[bootstrap()]);
        raw::wait_for_answer(stream, 0);
    }
    let refused = raw::reason_of_end(raw::dial(&served));
    assert_eq!(refused.as_deref(), Some("not-begun: too many connections from one address"));
    assert_eq!(served.bites("connections-per-peer"), 1);
    drop(connected);
    eventually("the places of those that ended", || {
        let mut stream = raw::dial(&served);
        stream.write_all(&raw::serialized(&bootstrap())).ok()?;
        capnp::serialize::read_message(&mut stream, ReaderOptions::default()).ok().filter(
            |answer| {
                let root = answer.get_root::<capnp_rpc::rpc_capnp::message::Reader>();
                matches!(root.unwrap().which(), Ok(capnp_rpc::rpc_capnp::message::Return(_)))
            },
        )
    });
}

#[test]
fn an_idle_connection_is_cut_with_its_reason_and_one_that_holds_something_stays() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--limit", "idle=1s"]);
    let mut holds = raw::dial(&served);
    raw::send(&mut holds, &[bootstrap()]);
    raw::wait_for_answer(&mut holds, 0);
    for _ in 0..2 {
        let reason = raw::reason_of_end(raw::dial(&served));
        assert_eq!(reason.as_deref(), Some("the connection was idle for 1s"));
    }
    assert_eq!(served.bites("idle"), 2);
    raw::send(&mut holds, &[restore(served.counters())]);
    raw::wait_for_answer(&mut holds, 1);
}

/// Each commit takes a tenth of a second, so calls arrive much faster than they are answered. An
/// unbounded queue would keep all of them in the server's memory.
#[test]
fn a_producer_that_is_faster_than_its_object_is_slowed_down() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--commit-delay", "100"]);
    let mut flood = Flood::start(&served);
    let mut answers = flood.stream.try_clone().expect("a socket has two ends");
    let reader = std::thread::spawn(move || {
        let (mut read, mut buffer) = (0, [0; 1 << 14]);
        // The end of a stream that this side abandoned may appear as a reset.
        while let Ok(bytes @ 1..) = answers.read(&mut buffer) {
            read += bytes;
        }
        read
    });
    let seconds = seconds(4);
    let sent = flood.run(Duration::from_secs(seconds));
    let grown = served.resident_bytes().saturating_sub(flood.resident_before);
    eprintln!("{sent} bytes sent in {seconds} s, {grown} more in memory");
    assert!(grown < GROWTH_MAX * copies(), "{grown} bytes more for {sent} that were sent");
    assert!(served.bites("calls") > 0);
    assert!(served.bites("queued-bytes") > 0, "the sender was stopped");
    // Other clients are served meanwhile.
    assert_eq!(http::post(&served.announced.http, "/counter/y/increment").body, "1");
    flood.stream.shutdown(Shutdown::Both).expect("it is connected");
    assert!(reader.join().expect("it doesn't panic") > 0, "answers are read");
}

/// One byte per second is no progress: the operating system doesn't report that little room.
#[test]
fn a_producer_that_reads_a_byte_in_a_second_is_slowed_down_and_cut() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--limit", "slow-reader=3s"]);
    let mut flood = Flood::start(&served);
    let mut most = 0;
    let mut sent = 0;
    eventually("the end of a slow reader", || {
        sent += flood.run(Duration::from_secs(1));
        let _ = flood.stream.read(&mut [0]);
        most = most.max(served.resident_bytes().saturating_sub(flood.resident_before));
        (served.bites("slow-reader") > 0).then_some(())
    });
    eprintln!("{sent} bytes sent, at most {most} more in memory");
    assert!(most < GROWTH_MAX * copies(), "{most} bytes more for {sent} that were sent");
    assert_eq!(http::post(&served.announced.http, "/counter/y/increment").body, "1");
    eventually("the end of the connection", || (served.metric("connections") == 0).then_some(()));
}

/// The duration of a flood: the promise for a minute is tried for a few seconds by default.
fn seconds(default: u64) -> u64 {
    let given = std::env::var("CAPSTEAD_FLOOD_SECONDS").ok();
    given.map_or(default, |text| text.parse().expect("a number of seconds"))
}

/// An endless flood of increments of one counter, as fast as the server takes them.
struct Flood {
    stream: TcpStream,
    next: u32,
    /// The bytes still to be sent.
    rest: Vec<u8>,
    resident_before: u64,
}

impl Flood {
    fn start(served: &Served) -> Self {
        let mut stream = raw::dial(served);
        raw::send(&mut stream, &[bootstrap(), restore(served.counters()), by_name("x")]);
        raw::wait_for_answer(&mut stream, COUNTER);
        stream.set_write_timeout(Some(LOOK_AGAIN)).expect("it isn't zero");
        let resident_before = served.resident_bytes();
        Self { stream, next: COUNTER + 1, rest: Vec::new(), resident_before }
    }

    /// Floods for that time; returns the number of bytes that were taken.
    fn run(&mut self, time: Duration) -> usize {
        let (start, mut sent) = (now(), 0);
        while start.elapsed() < time {
            if self.rest.is_empty() {
                for _ in 0..1000 {
                    self.rest.extend(raw::serialized(&increment(self.next)));
                    self.next += 1;
                }
            }
            match self.stream.write(&self.rest) {
                Ok(count) => {
                    self.rest.drain(..count);
                    sent += count;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
        sent
    }
}

fn increment(question: u32) -> Raw {
    let mut message = Raw::new_default();
    let method = (counter::Client::TYPE_ID, 0);
    let params = raw::call(&mut message, question, (COUNTER, Some(0)), method);
    params.get_content().init_as::<counter::increment_params::Builder>();
    message
}

/// Connections that restored a reference, hold its capability and send nothing more.
#[test]
fn an_idle_connection_costs_at_most_40_kib() {
    let count = std::env::var("CAPSTEAD_IDLE_CONNECTIONS")
        .map_or(2000, |text| text.parse().expect("a number of connections"));
    allow_files(count + 1000);
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--limit", "connections-per-peer=20000"]);
    // The memory that the first one takes for all of them.
    let (_first, before) = (hold_one(&served), served.resident_bytes());
    let held: Vec<TcpStream> = (0..count).map(|_| hold_one(&served)).collect();
    assert_eq!(served.metric("connections"), count + 1);
    let each = served.resident_bytes().saturating_sub(before) / count;
    eprintln!("{each} bytes for each of {} idle connections", held.len());
    assert!(each <= 40 << 10, "{each} bytes for each of {count} idle connections");
}

fn hold_one(served: &Served) -> TcpStream {
    let mut stream = raw::dial(served);
    raw::send(&mut stream, &[bootstrap(), restore(served.counters())]);
    raw::wait_for_answer(&mut stream, 1);
    raw::send(&mut stream, &[finish(0), finish(1)]);
    stream
}

/// Raises the limit of open files, for this process and for the server that it starts.
fn allow_files(count: u64) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < count) {
        let more = Rlimit { current: Some(count), ..limit };
        setrlimit(Resource::Nofile, more).expect("the limit can be raised to the hard one");
    }
}
