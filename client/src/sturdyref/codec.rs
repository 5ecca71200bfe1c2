//! The layout of a reference, byte by byte: the only file that turns bytes into parts and back.
//!
//! Parsing checks the layout alone. It verifies no signature and decodes no point of the curve:
//! anybody can show a text full of keys, and each point would cost as much as a small call.

use super::bytes::{Bytes, LAYOUT};
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

/// The positions of a reference's parts in its bytes.
#[derive(Clone)]
pub(super) struct Layout {
    pub(super) payload: Payload,
    /// The payload ends here, and its signature starts.
    pub(super) payload_end: usize,
    pub(super) links: Vec<LinkLayout>,
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
pub(super) struct LinkLayout {
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

fn parse_link(bytes: &mut Bytes) -> Result<LinkLayout, Refused> {
    let start = bytes.at;
    let caveats = Caveats::parse(bytes)?;
    let next = bytes.key()?;
    let signature_at = bytes.at;
    bytes.take(SIGNATURE_LENGTH)?;
    Ok(LinkLayout { caveats, next, start, signature_at })
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
