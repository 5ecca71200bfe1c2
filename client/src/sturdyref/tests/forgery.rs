//! Forgeries of references with all kinds of caveats: only the genuine ones are accepted.

use super::*;
use std::collections::BTreeSet;

/// The order of the group, little-endian. Adding it to the second half of a signature gives another
/// encoding of the same number.
const ORDER: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

/// All encodings of points of small order: with some of these keys one signature fits many
/// messages.
fn small_order_keys() -> Vec<[u8; 32]> {
    let of_ends = |first: u8, middle: u8, last: u8| {
        let mut key = [middle; 32];
        (key[0], key[31]) = (first, last);
        key
    };
    let mut keys = Vec::new();
    for sign in [0, 0x80] {
        keys.extend([0, 1].map(|low| of_ends(low, 0, sign)));
        // The last two are 0 and 1 again, plus the prime.
        keys.extend([0xec, 0xed, 0xee].map(|low| of_ends(low, 0xff, 0x7f | sign)));
        for of_order_8 in [
            "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        ] {
            let mut key = unhex(of_order_8).try_into().unwrap();
            let key: &mut [u8; 32] = &mut key;
            key[31] |= sign;
            keys.push(*key);
        }
    }
    keys
}

/// With the neutral element as the key, this is a signature of every message unless it is verified
/// strictly.
fn signature_by_the_neutral() -> [u8; 64] {
    let mut signature = [0; 64];
    signature[0] = 1;
    signature
}

fn all_kinds(seed: u8) -> Caveats {
    let caveats = Caveats::not_after(NOW + u64::from(seed));
    let caveats =
        caveats.with_methods([Method::new(u64::from(seed), 0), Method::new(u64::MAX, 1)]).unwrap();
    let two = [holder(seed), holder(seed + 1)].map(|key| key.verifying_key());
    two.into_iter().fold(caveats, |caveats, key| caveats.with_holder(key).unwrap())
}

/// `length` links with secrets derived from `seed`; the first entry is the root.
fn chain(root: &Sturdyref, seed: u8, length: u8) -> Vec<Sturdyref> {
    let mut chain = vec![root.clone()];
    for link in 0..length {
        let next = NextSecret::from_seed([seed ^ (link << 6); 32]);
        let last = chain.last().unwrap();
        chain.push(last.narrow_with(&all_kinds(seed + link), &next).unwrap());
    }
    chain
}

fn longest(seed: u8, length: u8) -> Sturdyref {
    chain(&reference(seed, all_kinds(seed)), seed + 1, length).pop().unwrap()
}

#[test]
fn no_bit_of_a_chain_can_be_flipped() {
    for genuine in [longest(2, 2), longest(3, 1).seal()] {
        let mut bytes = genuine.expose_bytes().to_vec();
        assert!(accepted(&bytes));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!accepted(&bytes), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

/// Flips bits of each signature in the longest chain: all of them are verified, up to the last one.
#[test]
fn every_link_of_the_longest_chain_counts() {
    let genuine = longest(2, 16).seal();
    assert!(verify(&genuine, NOW).is_ok());
    for link in &genuine.layout.links {
        for at in [link.start + 7, link.signature_at - 1, link.signature_at, link.signature_at + 63]
        {
            let mut bytes = genuine.bytes.clone();
            bytes[at] ^= 1;
            assert!(!accepted(&bytes));
        }
    }
}

/// A stranger without the last secret makes a link with a key of their own.
#[test]
fn a_stranger_cannot_add_a_link() {
    let stranger = NextSecret::from_seed([0x77; 32]);
    for genuine in chain(&reference(2, Caveats::none()), 2, 15) {
        let (at, links_at) = (genuine.layout.proof_at, genuine.layout.links_at());
        let mut bytes = genuine.bytes[..at].to_vec();
        let link = [&Caveats::none().encode()[..], stranger.public().as_bytes()].concat();
        let message = codec::link_message(&bytes, links_at, at, &link);
        bytes[links_at] += 1;
        bytes.extend(link);
        bytes.extend(stranger.signing_key().sign(&message).to_bytes());
        let open = [&bytes[..], &[crate::sturdyref_capnp::PROOF_OPEN], &stranger.0].concat();
        let forged = Sturdyref::from_bytes(&open).unwrap();
        assert_eq!(reason(verify(&forged, NOW)), "a signature is wrong");
        assert_eq!(reason(verify(&forged.seal(), NOW)), "a signature is wrong");
    }
}

/// Tries every row of up to three links out of two chains from one root and one chain from another,
/// on both roots and with every proof that exists. Only the rows that were really made are
/// accepted.
#[test]
fn links_cannot_be_removed_reordered_or_spliced() {
    let roots = [reference(2, all_kinds(2)), reference(4, Caveats::none())];
    let chains = [chain(&roots[0], 1, 3), chain(&roots[0], 2, 1), chain(&roots[1], 3, 1)];
    let made: Vec<_> =
        chains.iter().flatten().flat_map(|open| [open.clone(), open.seal()]).collect();
    let genuine: BTreeSet<_> = made.iter().map(|one| one.bytes.clone()).collect();
    let links: Vec<_> = chains.iter().flat_map(|chain| links(chain.last().unwrap())).collect();
    assert_eq!((genuine.len(), links.len()), (14, 5));

    let mut rows: Vec<Vec<&[u8]>> = vec![vec![]];
    for from in 0..1 + 5 + 25 {
        let longer = links.iter().map(|link| [&rows[from][..], &[&link[..]]].concat());
        rows.extend(longer.collect::<Vec<_>>());
    }
    let mut found = 0;
    for (root, row) in roots.iter().flat_map(|root| rows.iter().map(move |row| (root, row))) {
        let start =
            [&root.bytes[..root.layout.links_at()], &[row.len() as u8], &row.concat()].concat();
        for proof in &made {
            let bytes = [&start[..], &proof.bytes[proof.layout.proof_at..]].concat();
            let is_genuine = genuine.contains(&bytes);
            assert_eq!(accepted(&bytes), is_genuine);
            found += usize::from(is_genuine);
        }
    }
    // Each root is found once for each chain that starts at it.
    assert_eq!(found, 14 + 2);
}

fn links(reference: &Sturdyref) -> Vec<Vec<u8>> {
    let links = reference.layout.links.iter();
    links.map(|link| reference.bytes[link.start..link.signature_at + 64].to_vec()).collect()
}

#[test]
fn a_signature_has_one_encoding() {
    let genuine = longest(2, 2).seal();
    let links = genuine.layout.links.iter().map(|link| link.signature_at);
    let signatures = [genuine.layout.payload_end, genuine.layout.proof_at + 1];
    for at in links.chain(signatures) {
        let mut bytes = genuine.bytes.clone();
        add_order(&mut bytes[at + 32..at + 64]);
        assert!(!accepted(&bytes));
    }
    let bound = reference(2, all_kinds(2));
    let mut proof = bound.prove(&[1; 32], &[holder(2), holder(3)]).unwrap();
    assert!(bound.check_proofs(&[1; 32], &proof).is_ok());
    add_order(&mut proof[0][32..]);
    assert!(bound.check_proofs(&[1; 32], &proof).is_err());
}

fn add_order(number: &mut [u8]) {
    let mut carry = 0;
    for (byte, add) in number.iter_mut().zip(ORDER) {
        let sum = u16::from(*byte) + u16::from(add) + carry;
        (*byte, carry) = (sum as u8, sum >> 8);
    }
    assert_eq!(carry, 0, "it fits");
}

/// A reference with such a key could be narrowed and sealed by anybody.
#[test]
fn no_key_is_of_small_order() {
    let genuine = longest(2, 1);
    let (link, payload_end) = (&genuine.layout.links[0], genuine.layout.payload_end);
    let mut genuine_key = [0; 32];
    genuine_key.copy_from_slice(&genuine.bytes[link.signature_at - 32..link.signature_at]);
    let secret = reference(2, all_kinds(2)).secret().unwrap();
    // The holder of the root signs the link, and the signing key the payload, no matter which keys
    // are in them.
    let with_keys = |in_payload: Option<[u8; 32]>, in_link: [u8; 32]| {
        let mut bytes = genuine.bytes[..payload_end].to_vec();
        if let Some(key) = in_payload {
            bytes[payload_end - 32..].copy_from_slice(&key);
        }
        let signature = signing().sign(&[codec::PAYLOAD_DOMAIN, &bytes].concat());
        bytes.extend(signature.to_bytes());
        bytes.push(1);
        let start = bytes.len();
        let signed = [&genuine.bytes[link.start..link.signature_at - 32], &in_link].concat();
        let message = codec::link_message(&bytes, start - 1, start, &signed);
        bytes.extend(signed);
        bytes.extend(match in_payload {
            Some(_) => signature_by_the_neutral(),
            None => secret.signing_key().sign(&message).to_bytes(),
        });
        bytes
    };
    let proof = &genuine.bytes[genuine.layout.proof_at..];
    assert!(accepted(&[&with_keys(None, genuine_key), proof].concat()));
    let sealed =
        [&[crate::sturdyref_capnp::PROOF_SEALED][..], &signature_by_the_neutral()].concat();
    for small in small_order_keys() {
        assert!(!accepted(&[&with_keys(Some(small), genuine_key), proof].concat()));
        assert!(!accepted(&[&with_keys(None, small), &sealed[..]].concat()));
    }
}

#[test]
fn no_signing_key_is_of_small_order() {
    let genuine = reference(2, Caveats::none());
    let mut bytes = genuine.bytes.clone();
    let at = genuine.layout.payload_end;
    bytes[at..at + 64].copy_from_slice(&signature_by_the_neutral());
    let forged = Sturdyref::from_bytes(&bytes).unwrap();
    let small = small_order_keys();
    assert_eq!(small.len(), 14);
    let keys: Vec<_> = small.iter().filter_map(|key| VerifyingKey::from_bytes(key).ok()).collect();
    assert!(keys.len() >= 8);
    for key in keys {
        assert!(forged.verify(&cluster(), |_| Some(key), NOW).is_err());
    }
}

#[test]
fn no_holder_is_of_small_order() {
    for small in small_order_keys() {
        if let Ok(key) = VerifyingKey::from_bytes(&small) {
            assert!(Caveats::none().with_holder(key).is_err());
        }
        let list = [&[1, 0x83, 0, 32][..], &small].concat();
        assert!(Caveats::decode(&list).is_err());
        assert!(Sturdyref::from_bytes(&with_caveats(&list)).is_err());
    }
}

/// Of the 19 numbers with two encodings in 255 bits, those that are coordinates of points.
#[test]
fn keys_have_one_encoding() {
    let mut points = 0;
    for low in 0xed..=0xff {
        let mut key = [0xff; 32];
        (key[0], key[31]) = (low, 0x7f);
        let Ok(twice) = VerifyingKey::from_bytes(&key) else { continue };
        points += usize::from(!twice.is_weak());
        assert!(Caveats::none().with_holder(twice).is_err());
        assert!(Caveats::decode(&[&[1, 0x83, 0, 32][..], &key].concat()).is_err());
    }
    assert!(points > 0, "some of them are no worse than others, but for their encoding");
}

#[test]
fn another_cluster_refuses_a_chain() {
    let genuine = longest(2, 2);
    let key = signing().verifying_key();
    let other = ClusterId::of(&holder(1).verifying_key());
    assert!(genuine.verify(&cluster(), |_| Some(key), NOW).is_ok());
    let refused = genuine.verify(&other, |_| Some(key), NOW);
    assert_eq!(reason(refused), "it belongs to another cluster");
    let mut bytes = genuine.bytes.clone();
    bytes[1..33].copy_from_slice(other.as_bytes());
    let moved = Sturdyref::from_bytes(&bytes).unwrap();
    assert!(moved.verify(&other, |_| Some(key), NOW).is_err());
}

/// Tries the time in the payload, in the first link and in the last.
#[test]
fn it_expires_after_its_last_millisecond() {
    let lists = |at: usize| {
        let later = Caveats::not_after(NOW + 99_999);
        (0..3).map(move |link| if link == at { Caveats::not_after(NOW) } else { later.clone() })
    };
    for at in 0..3 {
        let mut lists = lists(at);
        let root = reference(2, lists.next().unwrap());
        let whole = lists.fold(root, |all, list| all.narrow(&list).unwrap());
        for good in [NOW - 1000, NOW - 1, NOW] {
            assert!(verify(&whole, good).is_ok());
        }
        for late in [NOW + 1, NOW + 1000] {
            assert_eq!(reason(verify(&whole, late)), "it has expired");
        }
    }
}

/// A text has room for this many holders' keys.
fn full_of_keys() -> Sturdyref {
    (0..180).map(holder).fold(reference(2, Caveats::none()), |bound, key| {
        let caveats = bound.claimed_caveats().unwrap().with_holder(key.verifying_key()).unwrap();
        reference(2, caveats)
    })
}

/// Anyone can show texts full of keys without having a reference, and each point takes
/// microseconds.
#[test]
fn no_point_is_read_before_the_signature_is_good() {
    let genuine = full_of_keys();
    let forged = |at: usize| {
        let mut bytes = genuine.bytes.clone();
        bytes[at] ^= 1;
        Sturdyref::from_bytes(&bytes).unwrap()
    };
    // The cluster, the signing key, and the signature.
    for at in [1, 33, genuine.layout.payload_end] {
        POINTS_READ.set(0);
        assert!(verify(&forged(at), NOW).is_err());
        assert_eq!(POINTS_READ.get(), 0);
    }
    POINTS_READ.set(0);
    assert!(verify(&genuine, NOW).is_ok());
    assert_eq!(POINTS_READ.get(), 0, "no holder has proved anything yet");
    assert!(genuine.check_proofs(&[1; 32], &vec![[0; 64]; 180]).is_err());
    assert_eq!(POINTS_READ.get(), 1, "the first proof is wrong");
}

/// Links that nobody signed cost no more than the first of them either.
#[test]
fn links_are_read_one_by_one() {
    let genuine = longest(2, 16).seal();
    POINTS_READ.set(0);
    assert!(verify(&genuine, NOW).is_ok());
    assert_eq!(POINTS_READ.get(), 17);
    let mut bytes = genuine.bytes.clone();
    bytes[genuine.layout.links[0].signature_at] ^= 1;
    POINTS_READ.set(0);
    assert!(!accepted(&bytes));
    assert_eq!(POINTS_READ.get(), 1);
}

/// About half of all coordinates belong to no point. Nothing can be proved with such a key.
#[test]
fn a_key_without_a_point_proves_nothing() {
    let none = (2..100)
        .map(|low| [&[low][..], &[0; 31]].concat())
        .find(|key| VerifyingKey::from_bytes(key[..].try_into().unwrap()).is_err());
    let list = [&[1, 0x83, 0, 32][..], &none.unwrap()].concat();
    let bound = Sturdyref::from_bytes(&with_caveats(&list)).unwrap();
    assert!(verify(&bound, NOW).is_ok());
    assert!(bound.check_proofs(&[1; 32], &[[0; 64]]).is_err());
    assert!(bound.check_proofs(&[1; 32], &[signature_by_the_neutral()]).is_err());
}
