//! A client of Cap'n Proto that opens a socket itself, with the RPC system as its library has it:
//! that drops calls whose callers don't wait for the answer.
#![allow(clippy::disallowed_methods, reason = "the client takes its time")]

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use capnp::capability::FromClientHook;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{RpcSystem, twoparty};
use capstead::http::http_service;
use capstead::{Result, Running};
use capstead_client::http_capnp::http_service::client_request_context;
use capstead_client::http_capnp::{HttpMethod, web_socket};
use capstead_client::namespace;
use capstead_client::restorer_capnp::restorer;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

use super::talk::with_server;

/// The client's side of the socket.
#[derive(Default)]
struct Ear {
    heard: RefCell<Vec<String>>,
    hears: Notify,
    up: RefCell<Option<web_socket::Client>>,
}

struct Down(Rc<Ear>);

impl web_socket::Server for Down {
    async fn send_text(self: Rc<Self>, params: web_socket::SendTextParams) -> Result<()> {
        // A caller that drops the call meanwhile ends this.
        tokio::time::sleep(Duration::from_millis(20)).await;
        self.0.heard.borrow_mut().push(params.get()?.get_text()?.to_string()?);
        self.0.hears.notify_one();
        Ok(())
    }

    async fn close(
        self: Rc<Self>,
        _: web_socket::CloseParams,
        _: web_socket::CloseResults,
    ) -> Result<()> {
        Ok(())
    }
}

struct Opens(Rc<Ear>);

impl client_request_context::Server for Opens {
    async fn start_web_socket(
        self: Rc<Self>,
        params: client_request_context::StartWebSocketParams,
        mut results: client_request_context::StartWebSocketResults,
    ) -> Result<()> {
        self.0.up.replace(Some(params.get()?.get_up_socket()?));
        results.get().set_down_socket(capnp_rpc::new_client(Down(self.0.clone())));
        Ok(())
    }
}

impl Ear {
    async fn hears(&self, count: usize) -> Vec<String> {
        while self.heard.borrow().len() < count {
            self.hears.notified().await;
        }
        self.heard.borrow().clone()
    }
}

/// The object, over a connection of the library alone.
async fn object(running: &Running, name: &str) -> http_service::Client {
    let stream = TcpStream::connect(running.capnp()).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (read, write) = stream.into_split();
    let network = twoparty::VatNetwork::new(
        futures::io::BufReader::new(read.compat()),
        write.compat_write(),
        Side::Client,
        capnp::message::ReaderOptions::new(),
    );
    let mut system = RpcSystem::new(Box::new(network), None);
    let root: restorer::Client = system.bootstrap(Side::Server);
    tokio::task::spawn_local(system);
    let mut restore = root.restore_request();
    restore.get().set_sturdy_ref(&running.namespaces()["Talk"]);
    let all: namespace::Client = restore.send().pipeline.get_cap().as_cap().cast_to();
    let mut by_name = all.by_name_request();
    by_name.get().set_key(name);
    by_name.send().pipeline.get_object().as_cap().cast_to()
}

#[test]
fn what_is_sent_without_waiting_arrives_at_any_client() {
    for hosts in [1, 2] {
        with_server(hosts, async |running| {
            for name in ["a", "b", "c"] {
                let (ear, object) = (Rc::new(Ear::default()), object(running, name).await);
                let mut request = object.request_request();
                let mut params = request.get();
                params.set_context(capnp_rpc::new_client(Opens(ear.clone())));
                let mut head = params.init_request();
                head.set_method(HttpMethod::Get);
                head.set_url("/");
                head.reborrow().get_body_size().set_fixed(0);
                let mut header = head.init_headers(1).get(0).init_uncommon();
                header.set_name("upgrade");
                header.set_value("websocket");
                request.send().promise.await.unwrap();
                let up = ear.up.borrow().clone().expect("it was accepted");
                for text in ["one", "two", "three"] {
                    let mut send = up.send_text_request();
                    send.get().set_text(text);
                    send.send().await.unwrap();
                }
                assert_eq!(ear.hears(3).await, ["one", "two", "three"], "{hosts} hosts");
            }
        });
    }
}
