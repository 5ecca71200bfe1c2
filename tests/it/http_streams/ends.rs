//! Bodies of requests whose reference ends meanwhile, by its time or by a revocation.
#![allow(clippy::disallowed_methods, reason = "the time of references is what is tested")]

use std::cell::RefCell;
use std::rc::Rc;

use super::CHUNKED;
use super::class::{Client, until, with_servers};
use crate::routes::routes_file;
use crate::sockets::expiry::{now_ms, until as reference_until};
use crate::support::calls::{by_name, revoke};
use capstead::http::http_service;
use capstead::{Result, Running};
use capstead_client::http_capnp::byte_stream;
use capstead_client::http_capnp::http_service::client_request_context;
use capstead_client::{Reason, namespace};

const ROUTES: &str = r#"
[[route]]
path = "/mine/*"
access = "bearer"
[[route]]
path = "/streams/{name}/*"
class = "Streams"
name = "{name}"
access = "public"
"#;

fn with_routes(work: impl AsyncFn(&Running)) {
    let folder = tempfile::tempdir().unwrap();
    let file = routes_file(&folder, ROUTES);
    with_servers(&[1, 2, 4], |server| server.routes_file(&file), work);
}

async fn begin(running: &Running, method: &str, path: &str, text: &str, line: &str) -> Client {
    let mut client = Client::open(running).await;
    let bearer = format!("authorization: Bearer {text}");
    client.begin(method, &format!("/mine{path}"), &[&bearer, line]).await;
    client
}

/// A response that says nothing is cut off as well, and one that is by another reference goes on.
#[test]
fn bodies_end_with_the_time_of_their_reference() {
    with_routes(async |running| {
        let end = now_ms() + 1500;
        let mut all = Vec::new();
        for name in ["a", "b", "c"] {
            let (forever, short) = reference_until(running, "Streams", name, end).await;
            let mut stays = begin(running, "GET", "/events", &forever, "x: y").await;
            let mut ends = begin(running, "GET", "/events", &short, "x: y").await;
            let mut up = begin(running, "POST", "/read", &short, CHUNKED).await;
            up.send_chunk(b"some").await;
            let path = format!("/streams/{name}/moved");
            until(running, &path, |moved| moved == "4").await;
            until(running, &format!("/streams/{name}/emit?text=1"), |heard| heard == "2").await;
            for client in [&mut stays, &mut ends] {
                assert_eq!(client.head().await.0, 200);
                assert!(client.chunk().await.unwrap().starts_with(b"data: 1"));
            }
            all.push((name, stays, ends, up));
        }
        assert!(now_ms() < end, "the machine is too slow for this test");
        for (name, mut stays, mut ends, mut up) in all {
            while let Some(chunk) = ends.chunk().await {
                assert!(chunk.starts_with(b"data: 1"), "it is not ended as if it were whole");
            }
            assert!(now_ms() > end);
            assert_eq!(up.head().await.0, 401);
            until(running, &format!("/streams/{name}/emit?text=2"), |heard| heard == "1").await;
            while !stays.chunk().await.unwrap().starts_with(b"data: 2") {}
            let error = until(running, &format!("/streams/{name}/error"), |e| e != "\"\"").await;
            assert!(error.contains("broke off"), "{error}");
            // The end of the server would wait for a response that goes on.
            drop(stays);
            until(running, &format!("/streams/{name}/emit?text=3"), |heard| heard == "0").await;
        }
    });
}

#[test]
fn a_response_is_cut_off_when_its_grant_is_revoked() {
    with_routes(async |running| {
        let (text, _) = reference_until(running, "Streams", "x", u64::MAX).await;
        let mut client = begin(running, "GET", "/events", &text, "x: y").await;
        until(running, "/streams/x/emit?text=1", |heard| heard == "1").await;
        assert_eq!(client.head().await.0, 200);
        let all: namespace::Client =
            capstead_client::restore(&running.namespaces()["Streams"]).await.unwrap();
        revoke(&by_name(&all, "x"), "").await;
        while let Some(chunk) = client.chunk().await {
            assert!(chunk.starts_with(b"data: 1"), "it is not ended as if it were whole");
        }
    });
}

/// The client's side of a response.
#[derive(Default)]
struct Reads(RefCell<Vec<u8>>);

impl client_request_context::Server for Reads {
    async fn start_response(
        self: Rc<Self>,
        _: client_request_context::StartResponseParams,
        mut results: client_request_context::StartResponseResults,
    ) -> Result<()> {
        results.get().set_body(capnp_rpc::new_client_from_rc(self));
        Ok(())
    }
}

impl byte_stream::Server for Reads {
    async fn write(self: Rc<Self>, params: byte_stream::WriteParams) -> Result<()> {
        self.0.borrow_mut().extend(params.get()?.get_bytes()?);
        Ok(())
    }

    async fn end(
        self: Rc<Self>,
        _: byte_stream::EndParams,
        _: byte_stream::EndResults,
    ) -> Result<()> {
        Ok(())
    }
}

/// Clients that ask by Cap'n Proto get no byte after the end, though the class writes on.
#[test]
fn no_byte_of_a_body_leaves_after_the_end_of_its_reference() {
    with_routes(async |running| {
        let end = now_ms() + 1000;
        let (_, short) = reference_until(running, "Streams", "x", end).await;
        let object: http_service::Client = capstead_client::restore(&short).await.unwrap();
        let reads = Rc::new(Reads::default());
        let mut request = object.request_request();
        let mut params = request.get();
        params.set_context(capnp_rpc::new_client_from_rc(reads.clone()));
        let mut head = params.init_request();
        head.set_url("/events");
        head.get_body_size().set_fixed(0);
        let asked = request.send().promise;
        until(running, "/streams/x/emit?text=1", |heard| heard == "1").await;
        let error = asked.await.err().unwrap();
        assert_eq!(Reason::of(&error), Some(Reason::Expired), "{error}");
        assert!(error.extra.ends_with("while the call was under way"), "{error}");
        assert!(now_ms() > end);
        until(running, "/streams/x/emit?text=2", |heard| heard == "0").await;
        let read = String::from_utf8(reads.0.take()).unwrap();
        assert!(read.contains("data: 1") && !read.contains("data: 2"), "{read}");
    });
}
