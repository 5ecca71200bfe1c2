//! WebSockets survive their object's host: here the gateway runs in this process and the host in
//! another one, which is killed, or behind a line that is cut after any number of bytes.

mod far;

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tempfile::TempDir;

use self::far::{As, Cuts, Far, HostProcess, Side, Window, serves, window};
use super::world::{ask, revoke, run, save};
use crate::gateway::HttpLimits;

/// The host of these tests, when it is in another process.
#[test]
fn serves_in_another_process() {
    serves();
}

/// A host, and a gateway in this process that reaches it from afar.
struct Apart {
    data: TempDir,
    host: HostProcess,
    far: Rc<Far>,
    http: SocketAddr,
}

impl Apart {
    async fn begin(way: As, limits: HttpLimits) -> Self {
        let data = tempfile::tempdir().unwrap();
        let host = HostProcess::start_as(data.path(), way);
        let far = Far::new(&host);
        let http = far.gateway(limits).await;
        Self { data, host, far, http }
    }

    /// As [`Self::begin`], with a line between them that can be cut.
    async fn behind_a_bad_line() -> (Self, Rc<Cuts>) {
        let data = tempfile::tempdir().unwrap();
        let host = HostProcess::start(data.path());
        let far = Far::new(&host);
        let cuts = far.behind_a_bad_line(&host).await;
        let http = far.gateway(HttpLimits::default()).await;
        (Self { data, host, far, http }, cuts)
    }

    /// The host that was killed is there again, as another process, and the gateway finds it.
    fn restart(&mut self) {
        self.start_again(As::Usual);
        self.far.is_at(&self.host);
    }

    /// The host is there again, and the gateway doesn't know where.
    fn start_again(&mut self, way: As) {
        self.host = HostProcess::start_as(self.data.path(), way);
    }

    /// A client's side of a new socket.
    async fn window(&self, tag: &str) -> Window {
        window(self.http, tag).await
    }

    /// The text that an object says at a path, to this process alone.
    async fn says(&self, path: &str) -> String {
        let (status, said) = ask(self.host.http, "GET", &format!("/echo/x/{path}")).await;
        assert_eq!(status, 200, "{said}");
        said
    }
}

#[test]
fn no_message_is_lost_or_doubled_while_the_host_is_killed_again_and_again() {
    run(async {
        let mut apart = Apart::begin(As::Usual, HttpLimits::default()).await;
        let mut quiet = apart.window("quiet").await;
        let (mut sender, mut receiver) = apart.window("tag").await.split();
        sender.send("attach to the end").await;
        assert_eq!(receiver.text().await, "attached");
        const MESSAGES: u64 = 600;
        let sending = async {
            for number in 0..MESSAGES {
                sender.send(&number.to_string()).await;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let receiving = async {
            for number in 0..MESSAGES {
                assert_eq!(receiver.text().await, format!("{number} {}", number + 1));
            }
        };
        let killing = async {
            for kill in 0..5 {
                tokio::time::sleep(Duration::from_millis(20 + 37 * kill)).await;
                apart.host.kill();
                apart.restart();
            }
        };
        tokio::join!(sending, receiving, killing);
        sender.send("found").await;
        assert_eq!(receiver.text().await, "/quiet: , /tag: to the end");
        quiet.send("not lost").await;
        assert_eq!(quiet.text().await, format!("not lost {}", MESSAGES + 1));
    });
}

/// Calls, answers and the steps of a resumption are cut at any byte. The object pushes meanwhile.
#[test]
fn no_message_is_lost_or_doubled_however_the_line_is_cut() {
    run(async {
        let (apart, cuts) = Apart::behind_a_bad_line().await;
        let (mut sender, mut receiver) = apart.window("tag").await.split();
        cuts.begin();
        const MESSAGES: u64 = 400;
        let sending = async {
            for number in 0..MESSAGES {
                sender.send(&number.to_string()).await;
                if number % 10 == 0 {
                    let path = format!("/echo/x/push/{number}");
                    assert_eq!(ask(apart.host.http, "POST", &path).await.0, 200);
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let receiving = async {
            let (mut echoed, mut pushed) = (0, 0);
            while echoed < MESSAGES || pushed < MESSAGES {
                let text = receiver.text().await;
                if let Some(number) = text.strip_prefix("/push/") {
                    assert_eq!(number, pushed.to_string());
                    pushed += 10;
                } else {
                    assert_eq!(text, format!("{echoed} {}", echoed + 1));
                    echoed += 1;
                }
            }
        };
        tokio::join!(sending, receiving);
        assert!(cuts.count() > 20, "it was cut {} times", cuts.count());
    });
}

/// The host has handled a message for good, and is killed before the gateway hears of that: the
/// message isn't handled again, and what was said of it isn't lost.
#[test]
fn a_message_whose_answer_was_lost_is_handled_once() {
    run(async {
        let (mut apart, line) = Apart::behind_a_bad_line().await;
        let mut client = apart.window("tag").await;
        client.send("first").await;
        assert_eq!(client.text().await, "first 1");
        line.mute(Side::Host);
        client.send("second").await;
        while apart.says("heard").await != "2" {
            tokio::task::yield_now().await;
        }
        apart.host.kill();
        apart.restart();
        assert_eq!(client.text().await, "second 2");
        client.send("third").await;
        assert_eq!(client.text().await, "third 3");
        assert_eq!(apart.says("heard").await, "3");
    });
}

/// The client has a frame, and the host is killed before it hears of that, and before it gets what
/// the client says meanwhile: the frame isn't told again, and the message isn't lost.
#[test]
fn a_frame_whose_answer_was_lost_is_told_once() {
    run(async {
        let (mut apart, line) = Apart::behind_a_bad_line().await;
        let mut client = apart.window("tag").await;
        client.send("first").await;
        assert_eq!(client.text().await, "first 1");
        line.mute(Side::Gateway);
        assert_eq!(ask(apart.host.http, "POST", "/echo/x/push/1").await.0, 200);
        assert_eq!(client.text().await, "/push/1");
        client.send("meanwhile").await;
        apart.host.kill();
        apart.restart();
        assert_eq!(client.text().await, "meanwhile 2");
        assert_eq!(apart.says("heard").await, "2");
    });
}

#[test]
fn a_host_that_is_not_back_in_time_ends_its_sockets() {
    run(async {
        let limits =
            HttpLimits { socket_away: Duration::from_millis(300), ..HttpLimits::default() };
        let mut apart = Apart::begin(As::Usual, limits).await;
        let mut client = apart.window("tag").await;
        client.send("hello").await;
        assert_eq!(client.text().await, "hello 1");
        apart.host.kill();
        assert_eq!(client.closed().await, 1012);
    });
}

/// Nobody can say what became of the message: the socket ends, and no other one.
#[test]
fn a_message_that_was_cut_short_by_the_hosts_end_is_not_begun_again() {
    run(async {
        let mut apart = Apart::begin(As::Usual, HttpLimits::default()).await;
        let mut other = apart.window("other").await;
        let mut client = apart.window("tag").await;
        client.send("wait").await;
        assert_eq!(client.text().await, "waiting");
        apart.host.kill();
        apart.restart();
        assert_eq!(client.closed().await, 1011);
        other.send("hello").await;
        assert_eq!(other.text().await, "hello 1");
        assert_eq!(apart.says("ends").await, "1006 ");
    });
}

#[test]
fn the_end_of_a_socket_is_told_once_to_a_host_that_was_away() {
    run(async {
        let mut apart = Apart::begin(As::Usual, HttpLimits::default()).await;
        let (mut closes, gone) = (apart.window("closes").await, apart.window("gone").await);
        apart.host.kill();
        closes.send("before the end").await;
        closes.close(4001, "bye").await;
        drop(gone);
        apart.restart();
        let ends = loop {
            let ends = apart.says("ends").await;
            if ends.contains("1006") && ends.contains("4001") {
                break ends;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let mut ends: Vec<_> = ends.split(", ").collect();
        ends.sort_unstable();
        assert_eq!(ends, ["1006 ", "4001 bye"]);
        assert_eq!(apart.says("open").await, "0");
        assert_eq!(apart.says("heard").await, "1");
        apart.host.kill();
        apart.restart();
        assert_eq!(apart.says("open").await, "0", "nothing is stored of them");
    });
}

/// The reference of the gateway is taken back while there is no line: the socket isn't taken up
/// again, whether its host went meanwhile or not, and both sides are told.
#[test]
fn a_socket_whose_grant_was_taken_back_meanwhile_is_not_resumed() {
    run(async {
        for goes in [false, true] {
            let data = tempfile::tempdir().unwrap();
            let host = HostProcess::start(data.path());
            let (_connection, objects) = host.objects().await;
            let reference = save(&objects, "gateway").await;
            let far = Far::by(&host, &reference);
            let http = far.gateway(HttpLimits::default()).await;
            let mut apart = Apart { data, host, far, http };
            let mut client = apart.window("tag").await;
            client.send("hello").await;
            assert_eq!(client.text().await, "hello 1");
            apart.far.breaks().await;
            if goes {
                apart.host.kill();
                apart.start_again(As::Usual);
            }
            client.send("too late").await;
            let (_connection, objects) = apart.host.objects().await;
            revoke(&objects, "gateway").await.unwrap();
            apart.far.is_at(&apart.host);
            assert_eq!(client.closed().await, 1008, "goes: {goes}");
            assert_eq!(apart.says("heard").await, "1", "goes: {goes}");
            if !goes {
                let ends = apart.says("ends").await;
                assert!(ends.starts_with("1008 the grant"), "{ends}");
                assert_eq!(apart.says("open").await, "0");
            }
        }
    });
}

/// Neither what was sent to a sleeping object without a line nor what it pushed is lost or doubled.
#[test]
fn a_sleeping_objects_socket_is_resumed() {
    run(async {
        let apart = Apart::begin(As::Sleepy, HttpLimits::default()).await;
        let mut client = apart.window("tag").await;
        client.send("attach to the end").await;
        assert_eq!(client.text().await, "attached");
        for round in 0..5 {
            apart.host.sleeps().await;
            apart.far.breaks().await;
            client.send(&round.to_string()).await;
            let push = format!("/push/{round}");
            assert_eq!(ask(apart.host.http, "POST", &format!("/echo/x{push}")).await.0, 200);
            apart.host.sleeps().await;
            apart.far.is_at(&apart.host);
            assert_eq!(client.text().await, push);
            assert_eq!(client.text().await, format!("{round} {}", round + 1));
        }
        client.send("found").await;
        assert_eq!(client.text().await, "/tag: to the end");
        apart.host.sleeps().await;
        assert_eq!(apart.says("heard").await, "5");
    });
}

/// An attachment is no part of a turn: it stays when that fails, and the host doesn't forget it.
#[test]
fn an_attachment_outlasts_a_failed_turn_and_the_host() {
    run(async {
        let mut apart = Apart::begin(As::Usual, HttpLimits::default()).await;
        let direct = apart.host.http;
        let mut client = apart.window("tag").await;
        client.send("attach before").await;
        assert_eq!(client.text().await, "attached");
        let failed = ask(direct, "POST", "/echo/x/attach-and-fail/after").await;
        assert!(failed.0 >= 500, "{failed:?}");
        client.send("found").await;
        assert_eq!(client.text().await, "/tag: after");
        client.send("one").await;
        assert_eq!(client.text().await, "one 1", "all else of the turn is gone");
        apart.host.kill();
        apart.restart();
        client.send("found").await;
        assert_eq!(client.text().await, "/tag: after");
        client.send("two").await;
        assert_eq!(client.text().await, "two 2");
    });
}

/// The gateway has no code of the class, and no storage.
#[test]
fn calls_in_json_come_from_a_gateway_in_another_process() {
    run(async {
        let mut apart = Apart::begin(As::Usual, HttpLimits::default()).await;
        let http = apart.http;
        let mut client = apart.window("tag").await;
        client.send("one").await;
        assert_eq!(client.text().await, "one 1");
        let read = async || ask(http, "POST", "/json/Echo/x/read").await;
        assert_eq!(read().await, (200, r#"{"value":"1"}"#.to_owned()));
        let (status, api) = ask(http, "GET", "/json/Echo").await;
        assert!(status == 200 && api.contains("/json/Echo/{name}/increment"), "{status}: {api}");
        let (status, refused) = ask(http, "POST", "/json/Echo/x/nothing").await;
        assert!(status == 404 && refused.contains("increment"), "{status}: {refused}");
        apart.host.kill();
        apart.restart();
        client.send("two").await;
        assert_eq!(client.text().await, "two 2");
        // The first one may still go by the line that broke.
        if read().await.0 != 200 {
            assert_eq!(read().await, (200, r#"{"value":"2"}"#.to_owned()));
        }
    });
}

/// `wake` says again what is replied. The time is forgotten, as the documentation says.
#[test]
fn automatic_replies_go_on_after_the_hosts_end_and_their_time_begins_anew() {
    run(async {
        let mut apart = Apart::begin(As::Usual, HttpLimits::default()).await;
        let mut client = apart.window("tag").await;
        let mut asks = async |text: &str| {
            client.send(text).await;
            client.text().await
        };
        assert_eq!(asks("replied").await, "false");
        assert_eq!(asks("are you there?").await, "I am");
        assert_eq!(asks("replied").await, "true");
        apart.host.kill();
        apart.restart();
        assert_eq!(asks("replied").await, "false");
        assert_eq!(asks("are you there?").await, "I am");
        assert_eq!(asks("replied").await, "true");
        assert_eq!(apart.says("heard").await, "0", "the class heard none of it");
    });
}

/// A class of another version may not want its sockets back.
#[test]
fn a_class_that_refuses_ends_the_sockets_that_it_had() {
    run(async {
        for way in [As::Forgetful, As::Refusing] {
            let mut apart = Apart::begin(As::Usual, HttpLimits::default()).await;
            let mut client = apart.window("tag").await;
            client.send("hello").await;
            assert_eq!(client.text().await, "hello 1");
            apart.host.kill();
            apart.start_again(way);
            client.send("for nobody").await;
            apart.far.is_at(&apart.host);
            assert_eq!(client.closed().await, 1011, "{way:?}");
            if way == As::Forgetful {
                assert_eq!(apart.says("heard").await, "1");
                assert_eq!(apart.says("open").await, "0");
            }
        }
    });
}
