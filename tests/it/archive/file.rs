//! Archives as docs/archive-format.md describes them, written and read without the server's code.

use sha2::{Digest, Sha256};

/// An object's id, the number of a space, a key and a value.
pub(crate) type Record = ([u8; 16], u8, Vec<u8>, Vec<u8>);

const MAGIC: &[u8] = b"capstead archive\x01";

/// The records in an archive, without the frames about its time and origin.
pub(crate) fn records(archive: &[u8]) -> Vec<Record> {
    let mut rest = archive.strip_prefix(MAGIC).expect("an archive");
    let (mut found, mut object) = (Vec::new(), None);
    while !rest.is_empty() {
        let length = u32_at(rest, 0);
        let payload = &rest[8..8 + length];
        assert_eq!(sum(payload).to_le_bytes(), rest[4..8]);
        match payload[0] {
            5 => object = Some(payload[1..].try_into().expect("an id")),
            6 => add_records(&payload[1..], object.expect("an object"), &mut found),
            _ => {}
        }
        rest = &rest[8 + length..];
    }
    found
}

fn add_records(mut rest: &[u8], object: [u8; 16], found: &mut Vec<Record>) {
    while !rest.is_empty() {
        let key_end = 3 + usize::from(u16::from_le_bytes([rest[1], rest[2]]));
        let end = key_end + 4 + u32_at(rest, key_end);
        found.push((object, rest[0], rest[3..key_end].to_vec(), rest[key_end + 4..end].to_vec()));
        rest = &rest[end..];
    }
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize
}

fn sum(payload: &[u8]) -> u32 {
    let length = (payload.len() as u32).to_le_bytes();
    crc32c::crc32c_append(crc32c::crc32c(&length), payload)
}

/// An archive of one counter with this value, and with further values in `more`.
pub(crate) fn counter(name: &str, value: i64, more: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    counter_with_grants(name, value, more, 0)
}

/// As [`counter`], with so many grants.
pub(crate) fn counter_with_grants(
    name: &str,
    value: i64,
    more: &[(Vec<u8>, Vec<u8>)],
    grants: u32,
) -> Vec<u8> {
    let mut archive = begin(&named("Counter", name));
    let header = [&[1, 7][..], b"Counter", &[1], name.as_bytes()].concat();
    let mut payload = vec![6];
    record(&mut payload, 0, b"", &header);
    frame(&mut archive, &payload);
    let own = (b"value".to_vec(), value.to_be_bytes().to_vec());
    let mut data = [more, &[own]].concat();
    data.sort();
    let mut bytes = 0;
    for (key, value) in &data {
        bytes += (key.len() + value.len()) as u64;
        let mut payload = vec![6];
        record(&mut payload, 1, key, value);
        frame(&mut archive, &payload);
    }
    add_grants(&mut archive, grants, "L");
    end(archive, [1, data.len() as u64, bytes])
}

/// An archive of the grants of a namespace: so many, each with a label of 200 bytes.
pub(crate) fn grants(class: &str, count: u32) -> Vec<u8> {
    let mut archive = begin(&id(b"capstead namespace v1", class, ""));
    add_grants(&mut archive, count, &"L".repeat(200));
    end(archive, [0; 3])
}

/// An archive down to the frame of its one object.
fn begin(id: &[u8; 16]) -> Vec<u8> {
    let mut archive = MAGIC.to_vec();
    let head = [&[1][..], &[0; 8], &[0; 32], &1_u16.to_le_bytes(), b"by hand"].concat();
    frame(&mut archive, &head);
    frame(&mut archive, &[2 + 1, 0, 0]);
    frame(&mut archive, &[&[4][..], &[id[1], id[0]], &[1], &[0; 32]].concat());
    frame(&mut archive, &[&[5][..], id].concat());
    archive
}

fn add_grants(archive: &mut Vec<u8>, count: u32, label: &str) {
    // Version, flags, depth, no parent, made, last restored, length of the caveats, none, label.
    let grant = [&[4, 0, 0, 0][..], &[0; 16], &[0, 1], &[0], label.as_bytes()].concat();
    for first in (0..count).step_by(1_000) {
        let mut payload = vec![6];
        for number in first..count.min(first + 1_000) {
            record(&mut payload, 2, &(u128::from(number) + 1).to_be_bytes(), &grant);
        }
        frame(archive, &payload);
    }
}

/// Ends an archive with the numbers of objects, keys and bytes.
fn end(mut archive: Vec<u8>, totals: [u64; 3]) -> Vec<u8> {
    let mut end = vec![7];
    for number in totals {
        end.extend_from_slice(&number.to_le_bytes());
    }
    end.extend_from_slice(&Sha256::digest(&archive));
    frame(&mut archive, &end);
    archive
}

fn frame(archive: &mut Vec<u8>, payload: &[u8]) {
    archive.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    archive.extend_from_slice(&sum(payload).to_le_bytes());
    archive.extend_from_slice(payload);
}

fn record(payload: &mut Vec<u8>, space: u8, key: &[u8], value: &[u8]) {
    payload.push(space);
    payload.extend_from_slice(&(key.len() as u16).to_le_bytes());
    payload.extend_from_slice(key);
    payload.extend_from_slice(&(value.len() as u32).to_le_bytes());
    payload.extend_from_slice(value);
}

/// The id of a named object (docs/storage-format.md).
pub(crate) fn named(class: &str, name: &str) -> [u8; 16] {
    id(b"capstead named object v1", class, name)
}

fn id(domain: &[u8], class: &str, name: &str) -> [u8; 16] {
    let mut hash = Sha256::new();
    hash.update(domain);
    hash.update((class.len() as u32).to_be_bytes());
    hash.update(class);
    hash.update(name);
    let mut id: [u8; 16] = hash.finalize()[..16].try_into().expect("16 bytes");
    let shard = u16::from_be_bytes([id[0], id[1]]) >> 4;
    id[..2].copy_from_slice(&shard.to_be_bytes());
    id
}
