//! The test vectors of `docs/sturdyref.md`: the document has exactly the bytes made here.
//!
//! `tests/python/sturdyref.py` reads them from the document, and verifies them with code of its
//! own.

use super::*;
use crate::sturdyref_capnp::{CAVEAT_METHODS, CAVEAT_NOT_AFTER};
use std::fmt::Write;

const DOCUMENT: &str = include_str!("../../../../docs/sturdyref.md");
const ADDRESS: &str = "127.0.0.1:4000";

fn assert_documented(lines: &str) {
    assert!(DOCUMENT.contains(lines), "docs/sturdyref.md should have:\n{lines}");
}

/// The table from this offset on.
fn assert_table(reference: &Sturdyref, from: usize) {
    let mut lines = String::from("| at | part | bytes |\n|---|---|---|\n");
    let mut at = 0;
    for (part, lengths) in parts(reference) {
        let start = at;
        let pieces = pieces(&reference.bytes, &mut at, &lengths);
        if start >= from {
            writeln!(lines, "| {start} | {part} | {pieces} |").unwrap();
        }
    }
    assert_eq!(at, reference.bytes.len());
    assert_documented(&lines);
    assert_documented(&format!("{at} bytes"));
}

fn pieces(bytes: &[u8], at: &mut usize, lengths: &[usize]) -> String {
    let piece = |&length: &usize| {
        let start = *at;
        *at += length;
        format!("`{}`", hex(&bytes[start..*at]))
    };
    lengths.iter().map(piece).collect::<Vec<_>>().join(" ")
}

/// The parts of a reference in order, and the lengths of the pieces in which each is printed.
fn parts(reference: &Sturdyref) -> Vec<(String, Vec<usize>)> {
    let (bytes, layout) = (&reference.bytes, &reference.layout);
    let head = [("version", 1), ("cluster", 32), ("signing key", 8), ("kind of target", 1)];
    let head = [&head[..], &[("target", 16), ("grant", 16)]].concat();
    let head_length = head.iter().map(|(_, length)| length).sum();
    let mut parts: Vec<_> = head.into_iter().map(|(part, length)| (part, vec![length])).collect();
    parts.push(("caveats", caveat_pieces(&bytes[head_length..])));
    parts.extend([("next", vec![32]), ("signature", vec![32, 32]), ("count of links", vec![1])]);
    let mut parts: Vec<_> = parts.into_iter().map(|(part, of)| (part.to_owned(), of)).collect();
    for (number, link) in (1..).zip(&layout.links) {
        parts.push((format!("caveats of link {number}"), caveat_pieces(&bytes[link.start..])));
        parts.push((format!("next key of link {number}"), vec![32]));
        parts.push((format!("signature of link {number}"), vec![32, 32]));
    }
    let proof = if reference.is_sealed() { vec![1, 32, 32] } else { vec![1, 32] };
    parts.push(("proof".to_owned(), proof));
    parts
}

fn caveat_pieces(list: &[u8]) -> Vec<usize> {
    let mut pieces = vec![1];
    for _ in 0..list[0] {
        let at: usize = pieces.iter().sum();
        let length = usize::from(u16::from_be_bytes([list[at + 1], list[at + 2]]));
        let value = match list[at] {
            CAVEAT_NOT_AFTER => &[8][..],
            CAVEAT_METHODS => &[8, 2],
            _ => &[32],
        };
        pieces.extend([1, 2]);
        pieces.extend(value.repeat(length / value.iter().sum::<usize>()));
    }
    pieces
}

#[test]
fn the_document_has_the_bytes_of_times() {
    let root = reference(4, Caveats::not_after(NOW));
    assert_table(&root, 0);
    assert_documented(&root.expose_text(ADDRESS).unwrap());
    assert_table(&narrowed(&root, 1, NOW - 1).seal(), root.layout.links_at());
}

/// The third vector: methods in the payload and in a link, holders in both links.
fn bound() -> Sturdyref {
    let [first, second] = [1, 2].map(|seed| holder(seed).verifying_key());
    let in_payload = [(0x0102_0304_0506_0708, 0), (0x0102_0304_0506_0708, 1), (u64::MAX, 258)]
        .map(|(interface, ordinal)| Method::new(interface, ordinal));
    let root = reference(5, Caveats::none().with_methods(in_payload).unwrap());
    let one = Caveats::not_after(NOW).with_holder(first).unwrap();
    let two = Caveats::not_after(NOW + 1).with_methods(in_payload.into_iter().skip(1)).unwrap();
    let two = two.with_holder(second).unwrap();
    let narrow = root.narrow_with(&one, &NextSecret::from_seed([0x11; 32])).unwrap();
    narrow.narrow_with(&two, &NextSecret::from_seed([0x22; 32])).unwrap().seal()
}

#[test]
fn the_document_has_the_bytes_of_methods_and_holders() {
    let bound = bound();
    assert!(verify(&bound, NOW).is_ok());
    assert_table(&bound, 0);
    assert_documented(&bound.expose_text(ADDRESS).unwrap());
}

#[test]
fn the_document_has_the_bytes_of_a_proof() {
    let (bound, challenge) = (bound(), [0x33; 32]);
    let mut lines = String::from("| part | bytes |\n|---|---|\n");
    let mut row = |part: &str, bytes: &[u8], lengths: &[usize]| {
        writeln!(lines, "| {part} | {} |", pieces(bytes, &mut 0, lengths)).unwrap();
    };
    row("challenge", &challenge, &[32]);
    row("message", &proof_message(&cluster(), &bound.bytes, &challenge), &[24, 32, 32, 32]);
    let signatures = bound.prove(&challenge, &[holder(1), holder(2)]).unwrap();
    let keys = bound.claimed_caveats().unwrap();
    for (holder, signature) in keys.holders().iter().zip(&signatures) {
        row("holder", holder.as_bytes(), &[32]);
        row("its holder's signature", signature, &[32, 32]);
    }
    assert_documented(&lines);
}
