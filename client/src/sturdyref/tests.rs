//! References made from fixed keys: the checks accept the genuine ones, and above all refuse the
//! others.

mod caveats;
mod forgery;
mod holder;
mod vectors;

use super::*;
use ed25519_dalek::Signer;
use proptest::prelude::*;

const NOW: u64 = 1_800_000_000_000;

fn signing() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

/// The key of a holder that a reference is bound to.
fn holder(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed ^ 0x3c; 32])
}

fn cluster() -> ClusterId {
    ClusterId::of(&SigningKey::from_bytes(&[9; 32]).verifying_key())
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digits).collect()
}

/// A genuine reference with identities derived from `seed`.
fn reference(seed: u8, caveats: Caveats) -> Sturdyref {
    let next = NextSecret::from_seed([seed ^ 0x5a; 32]);
    let id = TargetId([seed; 16]);
    let target = if seed & 1 == 0 { Target::Object(id) } else { Target::Namespace(id) };
    let payload = Payload {
        cluster: cluster(),
        key: KeyId::of(&signing().verifying_key()),
        target,
        grant: GrantId([!seed; 16]),
        caveats,
        next: next.public(),
    };
    let signature = signing().sign(&payload.signed_bytes()).to_bytes();
    Sturdyref::assemble(&payload, &signature, &next)
}

fn narrowed(reference: &Sturdyref, seed: u8, not_after: u64) -> Sturdyref {
    let next = NextSecret::from_seed([seed ^ 0xa5; 32]);
    reference.narrow_with(&Caveats::not_after(not_after), &next).unwrap()
}

/// The four shapes of a reference in turn.
fn shape(seed: u8) -> Sturdyref {
    let root = reference(seed, Caveats::not_after(NOW + 9));
    match seed % 4 {
        0 => root,
        1 => root.seal(),
        2 => narrowed(&root, seed, NOW + 5),
        _ => narrowed(&narrowed(&root, seed, NOW + 5), seed / 2, NOW + 7).seal(),
    }
}

fn verify(reference: &Sturdyref, now: u64) -> Result<Verified, Refused> {
    let key = signing().verifying_key();
    reference.verify(&cluster(), |id| (id == KeyId::of(&key)).then_some(key), now)
}

/// Tells whether these bytes are a reference that is valid now.
fn accepted(bytes: &[u8]) -> bool {
    Sturdyref::from_bytes(bytes).is_ok_and(|reference| verify(&reference, NOW).is_ok())
}

fn reason<T: fmt::Debug>(result: Result<T, Refused>) -> &'static str {
    result.unwrap_err().reason()
}

#[test]
fn what_was_put_in_is_what_is_verified() {
    let verified = verify(&reference(6, Caveats::none()), NOW).unwrap();
    assert_eq!(verified.target, Target::Object(TargetId([6; 16])));
    assert_eq!(verified.grant, GrantId([!6; 16]));
    assert!(verified.caveats.is_none());
}

/// Flips every bit of the first reference of each shape, and every 16th bit of the others, at
/// another offset in each, for 200 references: a check takes a tenth of a millisecond.
#[test]
fn no_bit_can_be_flipped() {
    for seed in 0..200 {
        let genuine = shape(seed);
        let mut bytes = genuine.expose_bytes().to_vec();
        assert!(accepted(&bytes));
        let (first, step) = if seed < 4 { (0, 1) } else { (usize::from(seed / 4) % 16, 16) };
        for bit in (first..bytes.len() * 8).step_by(step) {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!accepted(&bytes), "bit {bit} of reference {seed}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn nothing_can_be_cut_off_or_added() {
    for seed in 0..4 {
        let genuine = shape(seed);
        let bytes = genuine.expose_bytes();
        for length in 0..bytes.len() {
            assert!(Sturdyref::from_bytes(&bytes[..length]).is_err());
        }
        for trailing in [0, 1, 255] {
            assert!(Sturdyref::from_bytes(&[bytes, &[trailing]].concat()).is_err());
        }
    }
}

#[test]
fn other_clusters_and_keys_are_refused() {
    let genuine = reference(2, Caveats::none());
    let key = signing().verifying_key();
    let other = SigningKey::from_bytes(&[8; 32]).verifying_key();
    let other_cluster = genuine.verify(&ClusterId::of(&other), |_| Some(key), NOW);
    assert_eq!(reason(other_cluster), "it belongs to another cluster");
    let no_key = genuine.verify(&cluster(), |_| None, NOW);
    assert_eq!(reason(no_key), "the signing key is unknown");
    let wrong_key = genuine.verify(&cluster(), |_| Some(other), NOW);
    assert_eq!(reason(wrong_key), "a signature is wrong");
}

#[test]
fn it_is_valid_in_its_last_millisecond_and_not_in_the_next() {
    let genuine = reference(2, Caveats::not_after(NOW));
    assert!(verify(&genuine, NOW).is_ok());
    assert_eq!(reason(verify(&genuine, NOW + 1)), "it has expired");
    // The time comes before the signatures: no other key than that of the cluster was needed.
    let other = SigningKey::from_bytes(&[8; 32]).verifying_key();
    let forged = genuine.verify(&cluster(), |_| Some(other), NOW + 1);
    assert_eq!(reason(forged), "it has expired");
}

#[test]
fn the_earliest_expiry_holds_whatever_was_added_later() {
    let root = reference(2, Caveats::not_after(NOW + 9));
    let twice = narrowed(&narrowed(&root, 1, NOW + 3), 2, NOW + 6);
    assert_eq!(verify(&twice, NOW).unwrap().caveats.not_after_ms(), Some(NOW + 3));
    assert_eq!(reason(verify(&twice, NOW + 4)), "it has expired");
    assert_eq!(twice.payload_hash(), root.payload_hash());
}

#[test]
fn a_sealed_reference_holds_no_secret_and_cannot_be_narrowed() {
    let root = reference(2, Caveats::none());
    let sealed = root.seal();
    let secret = root.secret().unwrap().0;
    assert!(!sealed.expose_bytes().windows(32).any(|window| window == secret));
    assert!(sealed.narrow(&Caveats::not_after(NOW)).is_err());
    assert_eq!(sealed.seal().expose_bytes(), sealed.expose_bytes());
    assert!(verify(&sealed, NOW).is_ok());
}

#[test]
fn it_can_be_narrowed_sixteen_times() {
    let mut narrow = reference(2, Caveats::none());
    for _ in 0..16 {
        narrow = narrow.narrow(&Caveats::not_after(NOW)).unwrap();
    }
    assert!(verify(&narrow, NOW).is_ok());
    assert!(narrow.narrow(&Caveats::not_after(NOW)).is_err());
}

/// A genuine payload with these bytes as its caveats.
fn with_caveats(caveats: &[u8]) -> Vec<u8> {
    let next = NextSecret::from_seed([3; 32]);
    let plain = reference(2, Caveats::none());
    let mut payload = plain.bytes[..plain.layout.payload_end - 33].to_vec();
    payload.extend(caveats);
    payload.extend(next.public().as_bytes());
    let signature = signing().sign(&[codec::PAYLOAD_DOMAIN, &payload[..]].concat());
    let proof = [&[0, crate::sturdyref_capnp::PROOF_OPEN][..], &next.0].concat();
    [&payload[..], &signature.to_bytes(), &proof].concat()
}

#[test]
fn unknown_caveats_are_refused_if_critical_and_caveats_have_one_encoding() {
    assert!(accepted(&with_caveats(&[0])));
    assert!(accepted(&with_caveats(&[1, 0x05, 0, 2, 1, 2])), "not critical");
    assert!(!accepted(&with_caveats(&[1, 0x85, 0, 2, 1, 2])), "critical");
    assert!(accepted(&with_caveats(&[2, 0x05, 0, 0, 0x06, 0, 0])));
    assert!(!accepted(&with_caveats(&[2, 0x06, 0, 0, 0x05, 0, 0])), "descending");
    assert!(!accepted(&with_caveats(&[2, 0x05, 0, 0, 0x05, 0, 0])), "twice");
    assert!(!accepted(&with_caveats(&[1, 0x81, 0, 1, 255])), "a short time");
    assert!(!accepted(&with_caveats(&[17])), "too many");
}

#[test]
fn the_text_is_exact() {
    let genuine = reference(2, Caveats::none()).seal();
    let text = genuine.expose_text("localhost:4000").unwrap();
    let parsed = TextReference::parse(&text).unwrap();
    assert_eq!(parsed.address(), "localhost:4000");
    assert_eq!(parsed.reference().expose_bytes(), genuine.expose_bytes());
    assert!(genuine.expose_text("[::1]:4000").is_ok());
    for address in ["", "localhost", "localhost:", "localhost:+1", "localhost:01", ":1", "a/b:1"] {
        assert!(genuine.expose_text(address).is_err(), "{address}");
    }
    for wrong in [
        text.replace("capstead:", "Capstead:"),
        text.replace("capstead:", "http:"),
        text.replace("capstead:", "capstead+TLS:"),
        text.replace("capstead:", "capstead+tls+tls:"),
        text.replace("/#", "#"),
        text.replace("/#", "/x#"),
        format!("{text}="),
        format!("{text} "),
        format!(" {text}"),
    ] {
        assert!(TextReference::parse(&wrong).is_err());
    }
}

// The part of a text about its listener can make a client ask for more proof, and never for less.
#[test]
fn the_scheme_says_where_tls_is_needed() {
    let genuine = reference(2, Caveats::none());
    let plain = TextReference::parse(&genuine.expose_text("example.org:1").unwrap()).unwrap();
    let tls = TextReference::parse(&genuine.expose_tls_text("[::1]:1").unwrap()).unwrap();
    for (address, is_here) in [
        ("localhost:1", true),
        ("LocalHost:1", true),
        ("127.0.0.1:1", true),
        ("127.9.9.9:1", true),
        ("[::1]:1", true),
        ("[0:0:0:0:0:0:0:1]:1", true),
        ("128.0.0.1:1", false),
        ("0.0.0.0:1", false),
        ("127.0.0.1.example.org:1", false),
        ("localhost.example.org:1", false),
        ("127.1:1", false),
        ("[::]:1", false),
        ("[::ffff:127.0.0.1]:1", false),
        ("[fe80::1]:1", false),
        ("", false),
    ] {
        assert_eq!(plain.proof_needed_at(address), (!is_here).then(cluster), "{address}");
        assert_eq!(tls.proof_needed_at(address), Some(cluster()), "{address}");
    }
    let sealed = genuine.seal();
    assert_eq!(
        plain.expose_text_of(&sealed).unwrap(),
        sealed.expose_text("example.org:1").unwrap()
    );
    assert_eq!(tls.expose_text_of(&sealed).unwrap(), sealed.expose_tls_text("[::1]:1").unwrap());
    assert!(tls.expose_text_of(&sealed).unwrap().starts_with("capstead+tls://[::1]:1/#"));
}

#[test]
fn base64_with_bits_left_over_is_refused() {
    // The last of 205 bytes stands alone: it takes two characters, and four bits of the second are
    // left over.
    let genuine = reference(2, Caveats::none());
    let text = genuine.expose_text("localhost:1").unwrap();
    assert_eq!(genuine.expose_bytes().len() % 3, 1);
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let last = text.bytes().next_back().unwrap();
    let index = alphabet.iter().position(|&letter| letter == last).unwrap();
    for left_over in 1..16 {
        let other = char::from(alphabet[index + left_over]);
        let wrong = format!("{}{other}", &text[..text.len() - 1]);
        assert_eq!(reason(TextReference::parse(&wrong)), "it is cut off: its end is missing");
    }
}

#[test]
fn nothing_secret_is_printed() {
    let genuine = reference(2, Caveats::none());
    let secret = hex(&genuine.secret().unwrap().0);
    let text = TextReference::parse(&genuine.expose_text("localhost:1").unwrap()).unwrap();
    let printed = format!("{genuine:?} {text:?} {:?} {:?}", genuine.secret(), verify(&genuine, 0));
    assert!(!printed.contains(&secret));
    assert!(printed.contains("NextSecret(hidden)"));
    let refused = Sturdyref::from_bytes(b"").unwrap_err();
    assert_eq!(format!("{refused} {refused:?}"), "the reference was refused Refused");
}

proptest! {
    #[test]
    fn parts_survive_encoding(
        target: [u8; 16], grant: [u8; 16], not_after: Option<u64>, object: bool, seed: [u8; 32],
    ) {
        let next = NextSecret::from_seed(seed);
        let id = TargetId(target);
        let payload = Payload {
            cluster: cluster(),
            key: KeyId::of(&signing().verifying_key()),
            target: if object { Target::Object(id) } else { Target::Namespace(id) },
            grant: GrantId(grant),
            caveats: not_after.map_or(Caveats::none(), Caveats::not_after),
            next: next.public(),
        };
        let signature = signing().sign(&payload.signed_bytes()).to_bytes();
        let made = Sturdyref::assemble(&payload, &signature, &next);
        let read = Sturdyref::from_bytes(made.expose_bytes()).unwrap();
        prop_assert_eq!(&read.layout.payload, &payload);
        let verified = verify(&read, 0).unwrap();
        prop_assert_eq!(verified.caveats.not_after_ms(), not_after);
        let text = made.expose_text("127.0.0.1:9").unwrap();
        let parsed = TextReference::parse(&text).unwrap();
        prop_assert_eq!(parsed.reference().expose_bytes(), made.expose_bytes());
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(!accepted(&bytes));
    }
}
