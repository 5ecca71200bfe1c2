//! Restoring over real sockets, from a listener that accepts every text.

use super::*;
use crate::limits::Limits;
use crate::sturdyref::{
    Caveats, ClusterId, GrantId, KeyId, NextSecret, Payload, Sturdyref, Target, TargetId,
};
use capnp_rpc::rpc_twoparty_capnp::Side;
use std::cell::Cell;
use std::rc::Rc;
use tokio::net::TcpListener;

/// Says that `owner` has every target, and restores each to itself, if the holders give proof.
struct Host {
    owner: String,
    proofs_asked_for: Rc<Cell<u32>>,
}

/// Waits for the proof of one reference.
struct Waiting {
    host: Rc<Host>,
    reference: Sturdyref,
    challenge: [u8; 32],
}

impl restoration::Server for Waiting {
    async fn finish(
        self: Rc<Self>,
        params: restoration::FinishParams,
        mut results: restoration::FinishResults,
    ) -> capnp::Result<()> {
        let signatures = params.get()?.get_signatures()?.iter();
        let signatures: Vec<_> = signatures.map(|one| one.unwrap().try_into().unwrap()).collect();
        self.reference.check_proofs(&self.challenge, &signatures)?;
        let host: restorer::Client = capnp_rpc::new_client_from_rc(self.host.clone());
        results.get().init_cap().set_as_capability(host.client.hook);
        Ok(())
    }
}

impl restorer::Server for Host {
    async fn restore(
        self: Rc<Self>,
        params: restorer::RestoreParams,
        mut results: restorer::RestoreResults,
    ) -> capnp::Result<()> {
        let shown = TextReference::parse(params.get()?.get_sturdy_ref()?.to_str()?)?;
        if !shown.reference().claimed_caveats()?.holders().is_empty() {
            return Err(Error::failed("it takes a proof".into()));
        }
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

    async fn challenge(
        self: Rc<Self>,
        params: restorer::ChallengeParams,
        mut results: restorer::ChallengeResults,
    ) -> capnp::Result<()> {
        self.proofs_asked_for.set(self.proofs_asked_for.get() + 1);
        let shown = TextReference::parse(params.get()?.get_sturdy_ref()?.to_str()?)?;
        let challenge = [self.proofs_asked_for.get() as u8; 32];
        results.get().set_challenge(&challenge);
        let reference = shown.reference().clone();
        let waiting = Waiting { host: self, reference, challenge };
        results.get().set_restoration(capnp_rpc::new_client(waiting));
        Ok(())
    }
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// Serves a listener; returns the counter of the connections that it accepted.
fn serve(listener: TcpListener, owner: &str) -> Rc<Cell<u32>> {
    serve_counting_proofs(listener, owner, &Rc::default())
}

fn serve_counting_proofs(
    listener: TcpListener,
    owner: &str,
    proofs_asked_for: &Rc<Cell<u32>>,
) -> Rc<Cell<u32>> {
    let accepted = Rc::new(Cell::new(0));
    let (count, owner) = (accepted.clone(), owner.to_owned());
    let proofs_asked_for = proofs_asked_for.clone();
    tokio::task::spawn_local(async move {
        let mut connections = Vec::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            count.set(count.get() + 1);
            let proofs_asked_for = proofs_asked_for.clone();
            let host = Host { owner: owner.clone(), proofs_asked_for };
            let host: restorer::Client = capnp_rpc::new_client(host);
            let limits = Limits::default();
            connections.push(Connection::new(stream, Side::Server, Some(host.client), limits));
        }
    });
    accepted
}

fn text(address: &str) -> String {
    reference(Caveats::none()).expose_text(address).unwrap()
}

fn reference(caveats: Caveats) -> Sturdyref {
    let next = NextSecret::from_seed([1; 32]);
    let payload = Payload {
        cluster: ClusterId::from_bytes([2; 32]),
        key: KeyId::from_bytes([3; 8]),
        target: Target::Object(TargetId::from_bytes([4; 16])),
        grant: GrantId::from_bytes([5; 16]),
        caveats,
        next: next.public(),
    };
    Sturdyref::assemble(&payload, &[0; 64], &next)
}

/// The owner's answer to `locate`, after the reference was restored there.
async fn owner_seen_by(text: &str) -> String {
    owner_said_by(restore(text).await.unwrap()).await.unwrap()
}

async fn owner_said_by(host: restorer::Client) -> capnp::Result<String> {
    let answer = host.locate_request().send().promise.await?;
    Ok(answer.get()?.get_address()?.to_str()?.to_owned())
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

#[tokio::test(flavor = "local")]
async fn holders_prove_themselves_and_nobody_else_is_asked() {
    let proofs = Rc::default();
    let (listener, address) = listen().await;
    serve_counting_proofs(listener, &address, &proofs);
    let keys = [1, 2, 3].map(|seed| SigningKey::from_bytes(&[seed; 32]));
    let holders = keys[..2].iter().map(SigningKey::verifying_key);
    let bound = holders.fold(Caveats::none(), |all, key| all.with_holder(key).unwrap());
    let bound = reference(bound).expose_text(&address).unwrap();

    let restored = restore_with(&bound, &keys).await.unwrap();
    assert_eq!(owner_said_by(restored).await.unwrap(), address);
    assert_eq!(proofs.get(), 1, "only to restore, not to locate");

    let missing = restore_with::<restorer::Client>(&bound, &keys[1..]).await.err().unwrap();
    assert!(missing.extra.contains("whose key is missing"), "{missing}");
    assert_eq!(proofs.get(), 2);

    assert!(owner_said_by(restore(&bound).await.unwrap()).await.is_err(), "without a proof");
    let restored = restore_with(&text(&address), &keys).await.unwrap();
    assert_eq!(owner_said_by(restored).await.unwrap(), address);
    assert_eq!(proofs.get(), 2, "it is bound to nobody");
}

#[tokio::test(flavor = "local")]
async fn a_proof_answers_its_own_challenge_only() {
    let (listener, address) = listen().await;
    serve(listener, &address);
    let key = SigningKey::from_bytes(&[1; 32]);
    let bound = reference(Caveats::none().with_holder(key.verifying_key()).unwrap());
    let host: restorer::Client = connect(address.clone(), None).await.unwrap().bootstrap();
    let begin = async || {
        let mut request = host.challenge_request();
        request.get().set_sturdy_ref(bound.expose_text(&address).unwrap());
        request.send().promise.await.unwrap()
    };
    let (first, second) = (begin().await, begin().await);
    let of = |answer: &capnp::capability::Response<restorer::challenge_results::Owned>| {
        let answer = answer.get().unwrap();
        let challenge = answer.get_challenge().unwrap().try_into().unwrap();
        (
            answer.get_restoration().unwrap(),
            bound.prove(&challenge, std::slice::from_ref(&key)).unwrap(),
        )
    };
    let ((first, proof_of_first), (second, proof_of_second)) = (of(&first), of(&second));
    let refused = finish(&second, &proof_of_first);
    assert!(owner_said_by(refused).await.is_err());
    for (restoration, proof) in [(first, proof_of_first), (second, proof_of_second)] {
        assert_eq!(owner_said_by(finish(&restoration, &proof)).await.unwrap(), address);
    }
}
