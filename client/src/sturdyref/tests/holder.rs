//! Proofs of holders: each is good for its challenge, its reference and its cluster.

use super::*;

const CHALLENGE: [u8; 32] = [1; 32];

fn bound(seeds: &[u8]) -> Sturdyref {
    let keys = seeds.iter().map(|&seed| holder(seed).verifying_key());
    let caveats = keys.fold(Caveats::none(), |all, key| all.with_holder(key).unwrap());
    reference(2, caveats)
}

fn prove(reference: &Sturdyref) -> Vec<[u8; 64]> {
    reference.prove(&CHALLENGE, &[0, 1, 2].map(holder)).unwrap()
}

#[test]
fn a_proof_is_good_for_its_challenge_and_reference() {
    let one = bound(&[1]);
    let proof = prove(&one);
    assert!(one.check_proofs(&CHALLENGE, &proof).is_ok());
    assert_eq!(
        reason(one.check_proofs(&[2; 32], &proof)),
        "the proof of a holder is missing or wrong"
    );
    let narrow = one.narrow(&Caveats::none()).unwrap();
    for other in [one.seal(), narrow, bound(&[2])] {
        assert!(other.check_proofs(&CHALLENGE, &prove(&other)).is_ok());
        assert!(other.check_proofs(&CHALLENGE, &proof).is_err());
    }
    let elsewhere = proof_message(&ClusterId([0; 32]), one.expose_bytes(), &CHALLENGE);
    let proof = holder(1).sign(&elsewhere).to_bytes();
    assert!(one.check_proofs(&CHALLENGE, &[proof]).is_err());
}

#[test]
fn every_holder_proves_themselves_once_and_in_order() {
    let two = bound(&[1, 2]);
    let proof = prove(&two);
    let (first, second) = (proof[0], proof[1]);
    assert!(two.check_proofs(&CHALLENGE, &[first, second]).is_ok());
    for wrong in
        [&[][..], &[first], &[second], &[second, first], &[first, first], &[first, second, second]]
    {
        assert!(two.check_proofs(&CHALLENGE, wrong).is_err());
    }
    assert!(bound(&[]).check_proofs(&CHALLENGE, &[]).is_ok());
    assert!(bound(&[]).check_proofs(&CHALLENGE, &[first]).is_err());
}

/// A link can bind a reference to more holders, and never release it from one.
#[test]
fn holders_of_links_are_added() {
    let caveats = Caveats::none().with_holder(holder(2).verifying_key()).unwrap();
    let both = bound(&[1]).narrow(&caveats).unwrap();
    assert_eq!(verify(&both, NOW).unwrap().caveats.holders().len(), 2);
    assert_eq!(prove(&both).len(), 2);
    assert!(both.prove(&CHALLENGE, &[holder(2)]).is_err());
}

#[test]
fn no_bit_of_a_proof_can_be_flipped() {
    let one = bound(&[1]);
    for bit in 0..64 * 8 {
        let mut proof = prove(&one);
        proof[0][bit / 8] ^= 1 << (bit % 8);
        assert!(one.check_proofs(&CHALLENGE, &proof).is_err(), "bit {bit}");
    }
}

#[test]
fn whose_key_is_missing_is_said() {
    let missing = bound(&[1]).prove(&CHALLENGE, &[holder(2)]).unwrap_err();
    assert!(missing.extra.contains(&hex(holder(1).verifying_key().as_bytes())), "{missing}");
}
