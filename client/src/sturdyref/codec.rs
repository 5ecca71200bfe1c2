//! The layout of a reference, byte by byte: the only file that turns bytes into parts and back.
//!
//! Parsing checks the layout alone. It verifies no signature and decodes no point of the curve:
//! anybody can show a text full of keys, and each point would cost as much as a small call.

use super::refused::Flaw;
use super::{
    Caveats, ClusterId, GrantId, KeyId, NextSecret, Payload, PublicKey, Refused, Target, TargetId,
};

use crate::sturdyref_capnp::{
    LINKS_MAX, PROOF_OPEN, PROOF_SEALED, TARGET_NAMESPACE, TARGET_OBJECT, VERSION,
};
use ed25519_dalek::SIGNATURE_LENGTH;
use sha2::{Digest, Sha256};

pub(super) const PAYLOAD_DOMAIN: &[u8] = b"capstead sturdyref v1";
pub(super) const LINK_DOMAIN: &[u8] = b"capstead sturdyref link v1";
pub(super) const SEAL_DOMAIN: &[u8] = b"capstead sturdyref seal v1";

/// The refusal of bytes that are not laid out as a reference.
pub(super) const LAYOUT: Refused = Refused::because(Flaw::Layout);

/// The positions of a reference's parts in its bytes.
#[derive(Clone)]
pub(super) struct Layout {
    pub(super) payload: Payload,
    /// The payload ends here, and its signature starts.
    pub(super) payload_end: usize,
    pub(super) links: Vec<Link>,
    /// The links end here, and the proof starts.
    pub(super) proof_at: usize,
    pub(super) proof: Proof,
}

impl Layout {
    /// The position of the count of links, after the payload's signature.
    pub(super) fn links_at(&self) -> usize {
        self.payload_end + SIGNATURE_LENGTH
    }

    /// The key whose secret the proof shows.
    pub(super) fn last_next(&self) -> &PublicKey {
        self.links.last().map_or(&self.payload.next, |link| &link.next)
    }
}

/// One narrowing.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) caveats: Caveats,
    pub(super) next: PublicKey,
    pub(super) start: usize,
    /// The signed part of the link ends here, and its signature starts.
    pub(super) signature_at: usize,
}

/// The proof that the holder has the secret of the last next key.
#[derive(Clone, Copy)]
pub(super) enum Proof {
    /// The secret itself follows the tag.
    Open,
    /// A signature with it follows the tag.
    Sealed,
}

pub(super) fn encode_payload(payload: &Payload) -> Vec<u8> {
    let (kind, target) = match payload.target {
        Target::Object(id) => (TARGET_OBJECT, id),
        Target::Namespace(id) => (TARGET_NAMESPACE, id),
    };
    let mut bytes = vec![VERSION];
    bytes.extend(payload.cluster.as_bytes());
    bytes.extend(payload.key.as_bytes());
    bytes.push(kind);
    bytes.extend(target.as_bytes());
    bytes.extend(payload.grant.as_bytes());
    payload.caveats.encode_into(&mut bytes);
    bytes.extend(payload.next.as_bytes());
    bytes
}

pub(super) fn parse(all: &[u8]) -> Result<Layout, Refused> {
    let mut bytes = Bytes::new(all);
    let parsed = parse_all(&mut bytes);
    if bytes.ran_out { Err(Refused::because(Flaw::Cut)) } else { parsed }
}

fn parse_all(bytes: &mut Bytes) -> Result<Layout, Refused> {
    let payload = parse_payload(bytes)?;
    let payload_end = bytes.at;
    bytes.take(SIGNATURE_LENGTH)?;
    let count = bytes.u8()?;
    if count > LINKS_MAX {
        return Err(LAYOUT);
    }
    let links = (0..count).map(|_| parse_link(bytes)).collect::<Result<_, _>>()?;
    let proof_at = bytes.at;
    let (proof, length) = match bytes.u8()? {
        PROOF_OPEN => (Proof::Open, size_of::<NextSecret>()),
        PROOF_SEALED => (Proof::Sealed, SIGNATURE_LENGTH),
        _ => return Err(LAYOUT),
    };
    bytes.take(length)?;
    if bytes.at != bytes.all.len() {
        return Err(LAYOUT);
    }
    Ok(Layout { payload, payload_end, links, proof_at, proof })
}

fn parse_payload(bytes: &mut Bytes) -> Result<Payload, Refused> {
    if bytes.u8()? != VERSION {
        return Err(Refused::because(Flaw::Version));
    }
    let cluster = ClusterId(bytes.array()?);
    let key = KeyId(bytes.array()?);
    let kind = bytes.u8()?;
    let id = TargetId(bytes.array()?);
    let target = match kind {
        TARGET_OBJECT => Target::Object(id),
        TARGET_NAMESPACE => Target::Namespace(id),
        _ => return Err(LAYOUT),
    };
    let grant = GrantId(bytes.array()?);
    let caveats = Caveats::parse(bytes)?;
    let next = bytes.key()?;
    Ok(Payload { cluster, key, target, grant, caveats, next })
}

fn parse_link(bytes: &mut Bytes) -> Result<Link, Refused> {
    let start = bytes.at;
    let caveats = Caveats::parse(bytes)?;
    let next = bytes.key()?;
    let signature_at = bytes.at;
    bytes.take(SIGNATURE_LENGTH)?;
    Ok(Link { caveats, next, start, signature_at })
}

/// The message that the previous next key signs: everything before the link, then the link. It
/// leaves out the count of links, because later links raise it.
pub(super) fn link_message(all: &[u8], links_at: usize, start: usize, link: &[u8]) -> Vec<u8> {
    let mut before = Sha256::new();
    before.update(&all[..links_at]);
    before.update(&all[links_at + 1..start]);
    [LINK_DOMAIN, &before.finalize()[..], link].concat()
}

/// The message that the last next key signs to seal: everything before the proof.
pub(super) fn seal_message(before: &[u8]) -> Vec<u8> {
    [SEAL_DOMAIN, &Sha256::digest(before)[..]].concat()
}

pub(super) fn hash(domain: &[u8], bytes: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(domain).chain_update(bytes).finalize().into()
}

/// Bytes that are read from front to back.
pub(super) struct Bytes<'a> {
    all: &'a [u8],
    at: usize,
    /// A read asked for more bytes than there were.
    ran_out: bool,
}

impl<'a> Bytes<'a> {
    pub(super) fn new(all: &'a [u8]) -> Self {
        Self { all, at: 0, ran_out: false }
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], Refused> {
        let taken = self.all[self.at..].get(..length);
        self.ran_out |= taken.is_none();
        let taken = taken.ok_or(LAYOUT)?;
        self.at += length;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Refused> {
        self.take(N)?.try_into().map_err(|_| LAYOUT)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Refused> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn key(&mut self) -> Result<PublicKey, Refused> {
        key(self.array()?)
    }
}

/// Takes the bytes of a public key that proves something. Each coordinate has one accepted
/// encoding, and points of small order are refused. The existence of a point for the coordinate is
/// checked only when something is proved by it.
pub(super) fn key(bytes: [u8; 32]) -> Result<PublicKey, Refused> {
    if is_sound(&bytes) { Ok(PublicKey(bytes)) } else { Err(LAYOUT) }
}

pub(super) fn is_sound(key: &[u8; 32]) -> bool {
    // A coordinate of 2^255 - 19 or more, without the sign bit, is a second encoding of a smaller
    // one.
    let [low, middle @ .., high] = key;
    let is_reduced = *low < 0xed || high & 0x7f < 0x7f || middle.iter().any(|byte| *byte < 0xff);
    let mut coordinate = *key;
    coordinate[31] &= 0x7f;
    is_reduced && !OF_SMALL_ORDER.contains(&coordinate)
}

/// The coordinates of the eight points of small order, without the sign bit: with such a key one
/// signature fits many messages.
const OF_SMALL_ORDER: [[u8; 32]; 5] = [
    [0; 32],
    {
        let mut one = [0; 32];
        one[0] = 1;
        one
    },
    {
        let mut minus_one = [0xff; 32];
        (minus_one[0], minus_one[31]) = (0xec, 0x7f);
        minus_one
    },
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98,
        0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53,
        0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67,
        0x0f, 0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac,
        0x03, 0x7a,
    ],
];
