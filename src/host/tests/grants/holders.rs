//! Holders of references: their say over grants, and the proof that a bound reference asks of them.

use capnp::Error;
use capstead_client::sturdyref::TextReference;
use ed25519_dalek::SigningKey;

use super::super::references::host;
use super::super::trial::{read, run, trial};
use super::{Terms, as_facet, assert_revoked, labelled, labels, listed, restore, revoke, save};
use crate::host::authority::giving;
use crate::host::authority::records;
use crate::id::{ObjectId, Pool};
use crate::schema::restorer_capnp::{restoration, restorer};
use crate::sturdyref::Parent;

/// The holder of a reference has no say over the grants of others.
#[test]
fn a_holder_lists_and_revokes_what_was_made_from_their_own_grant() {
    run(async {
        let (world, agent) = host().await;
        let owner = world.object("x");
        let one = restore(&agent, &save(&owner, &labelled("one")).await.unwrap()).await.unwrap();
        let two = restore(&agent, &save(&owner, &labelled("two")).await.unwrap()).await.unwrap();
        save(&one, &labelled("from one")).await.unwrap();
        assert_eq!(labels(&one).await, ["from one"]);
        assert_eq!(labels(&two).await, Vec::<String>::new());
        let ids = listed(&owner).await.unwrap();
        for (label, id) in &ids {
            let mut request = as_facet(&two).revoke_request();
            request.get().set_grant(id);
            let refused = request.send().promise.await.err().unwrap();
            assert!(refused.extra.contains("no-such-grant:"), "{label}: {refused}");
        }
        assert_eq!(listed(&owner).await.unwrap(), ids);
        revoke(&one, "from one").await.unwrap();
        assert_eq!(labels(&owner).await, ["one", "two"]);
    });
}

async fn challenge(
    door: &restorer::Client,
    text: &str,
) -> Result<([u8; 32], restoration::Client), Error> {
    let mut request = door.challenge_request();
    request.get().set_sturdy_ref(text);
    let reply = request.send().promise.await?;
    let reply = reply.get()?;
    Ok((reply.get_challenge()?.try_into().unwrap(), reply.get_restoration()?))
}

async fn finish(of: &restoration::Client, signatures: &[[u8; 64]]) -> Result<trial::Client, Error> {
    let mut request = of.finish_request();
    let mut list = request.get().init_signatures(signatures.len() as u32);
    for (at, signature) in (0..).zip(signatures) {
        list.set(at, signature);
    }
    request.send().promise.await?.get()?.get_cap().get_as_capability()
}

/// It proves nothing, and its grant would not be looked at.
#[test]
fn a_challenge_is_for_references_with_holders() {
    run(async {
        let (world, agent) = host().await;
        let text = save(&world.object("x"), &Terms::default()).await.unwrap();
        let refused = challenge(&agent.restorer(), &text).await.err().unwrap();
        assert_eq!(refused.extra, "the reference was refused");
        assert_eq!(world.metrics.restores_refused_total.get(), 1);
        restore(&agent, &text).await.unwrap();
    });
}

/// A stolen reference is of no use without the holder's key, and a proof is good once, here.
#[test]
fn a_reference_that_is_bound_to_a_holder_takes_their_proof() {
    run(async {
        let (world, agent) = host().await;
        let key = SigningKey::from_bytes(&[4; 32]);
        let bound = Terms { holder: Some(key.verifying_key().to_bytes()), ..Terms::default() };
        let text = save(&world.object("x"), &bound).await.unwrap();
        let refused = "the reference was refused";
        assert_eq!(restore(&agent, &text).await.err().unwrap().extra, refused);

        let door = agent.restorer();
        let reference = TextReference::parse(&text).unwrap();
        let prove =
            |challenge| reference.reference().prove(challenge, std::slice::from_ref(&key)).unwrap();
        let (fresh, restoration) = challenge(&door, &text).await.unwrap();
        let other = SigningKey::from_bytes(&[5; 32]);
        let forged = ed25519_dalek::Signer::sign(&other, &fresh).to_bytes();
        for wrong in [vec![], vec![forged], vec![prove(&fresh)[0], prove(&fresh)[0]]] {
            let (_, restoration) = challenge(&door, &text).await.unwrap();
            assert_eq!(finish(&restoration, &wrong).await.err().unwrap().extra, refused);
            let again = finish(&restoration, &prove(&fresh)).await.err().unwrap();
            assert!(again.extra.contains("ask for another one"), "{again}");
        }
        let (_, elsewhere) = challenge(&door, &text).await.unwrap();
        let replayed = finish(&elsewhere, &prove(&fresh)).await.err().unwrap();
        assert_eq!(replayed.extra, refused, "a proof for another challenge");

        let live = finish(&restoration, &prove(&fresh)).await.unwrap();
        read(&live).await.unwrap();
        assert!(
            finish(&restoration, &prove(&fresh)).await.is_err(),
            "a challenge is for one proof"
        );
        let saved = save(&live, &Terms::default()).await.unwrap();
        assert_eq!(restore(&agent, &saved).await.err().unwrap().extra, refused, "still bound");

        let (late, restoration) = challenge(&door, &text).await.unwrap();
        world.now.set(world.now.get() + 30_001);
        assert!(finish(&restoration, &prove(&late)).await.is_err());

        // Those who prove to be its holders are told that a reference was revoked; others are
        // refused.
        let id = ObjectId::named(Pool::default(), "Trial", "x");
        let grants = records::list_behind(&world.vat, id, None, 9).unwrap();
        let (first, _) = grants.iter().find(|(_, grant)| grant.parent == Parent::None).unwrap();
        giving::revoke(&world.vat, id, *first).await.unwrap();
        assert_eq!(restore(&agent, &text).await.err().unwrap().extra, refused);
        let (fresh, restoration) = challenge(&door, &text).await.unwrap();
        assert_revoked(finish(&restoration, &prove(&fresh)).await);
    });
}
