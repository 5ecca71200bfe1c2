//! Restoring over real sockets, from a listener that knows every text.

use super::*;
use crate::guard::limits::Limits;
use crate::sturdyref::{
    Caveats, ClusterId, GrantId, KeyId, NextSecret, Payload, Sturdyref, Target, TargetId,
};
use capnp_rpc::rpc_twoparty_capnp::Side;
use std::cell::Cell;
use std::rc::Rc;
use tokio::net::TcpListener;

/// Says that `owner` has every target, and restores each to itself.
struct Host {
    owner: String,
}

impl restorer::Server for Host {
    async fn restore(
        self: Rc<Self>,
        _: restorer::RestoreParams,
        mut results: restorer::RestoreResults,
    ) -> capnp::Result<()> {
        let this: restorer::Client = capnp_rpc::new_client_from_rc(self);
        results.get().init_cap().set_as_capability(this.client.hook);
        Ok(())
    }

    async fn locate(
        self: Rc<Self>,
        _: restorer::LocateParams,
        mut results: restorer::LocateResults,
    ) -> capnp::Result<()> {
        results.get().set_address(&self.owner);
        Ok(())
    }
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// Serves a listener; returns how many connections it has accepted.
fn serve(listener: TcpListener, owner: &str) -> Rc<Cell<u32>> {
    let accepted = Rc::new(Cell::new(0));
    let (count, owner) = (accepted.clone(), owner.to_owned());
    tokio::task::spawn_local(async move {
        let mut connections = Vec::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            count.set(count.get() + 1);
            let host: restorer::Client = capnp_rpc::new_client(Host { owner: owner.clone() });
            let limits = Limits::default();
            connections.push(Connection::new(stream, Side::Server, Some(host.client), limits));
        }
    });
    accepted
}

fn text(address: &str) -> String {
    let next = NextSecret::from_seed([1; 32]);
    let payload = Payload {
        cluster: ClusterId::from_bytes([2; 32]),
        key: KeyId::from_bytes([3; 8]),
        target: Target::Object(TargetId::from_bytes([4; 16])),
        grant: GrantId::from_bytes([5; 16]),
        caveats: Caveats::none(),
        next: next.public(),
    };
    Sturdyref::assemble(&payload, &[0; 64], &next).expose_text(address).unwrap()
}

/// What the restored host says when it is asked where things are.
async fn owner_seen_by(text: &str) -> String {
    let host: restorer::Client = restore(text).await.unwrap();
    let answer = host.locate_request().send().promise.await.unwrap();
    answer.get().unwrap().get_address().unwrap().to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "local")]
async fn it_restores_at_the_owner_over_one_connection_for_each_address() {
    let ((front, front_address), (back, back_address)) = (listen().await, listen().await);
    let at_front = serve(front, &back_address);
    let at_back = serve(back, "the owner itself");
    let text = text(&front_address);
    let ten = futures::future::join_all((0..10).map(|_| owner_seen_by(&text))).await;
    assert_eq!(ten, ["the owner itself"; 10]);
    assert_eq!((at_front.get(), at_back.get()), (1, 1));
}

#[tokio::test(flavor = "local")]
async fn it_restores_where_it_is_if_the_owner_cannot_be_reached() {
    let (listener, address) = listen().await;
    serve(listener, "127.0.0.1:1");
    assert_eq!(owner_seen_by(&text(&address)).await, "127.0.0.1:1");
}

#[tokio::test(flavor = "local")]
async fn a_connection_that_is_over_is_dialled_anew() {
    let (listener, address) = listen().await;
    let accepted = serve(listener, &address);
    assert_eq!(owner_seen_by(&text(&address)).await, address);
    connect(address.clone(), None).await.unwrap().disconnect().await;
    assert_eq!(owner_seen_by(&text(&address)).await, address);
    assert_eq!(accepted.get(), 2);
}

#[tokio::test(flavor = "local")]
async fn errors_say_what_to_do() {
    let kind = async |text: &str| restore::<restorer::Client>(text).await.err().unwrap().kind;
    assert_eq!(kind("no reference").await, capnp::ErrorKind::Failed);
    assert_eq!(kind(&text("127.0.0.1:1")).await, capnp::ErrorKind::Disconnected);
}
