//! Entry points for fuzzers: everything that decodes stored bytes. They are built with
//! `--cfg fuzzing` only.
//!
//! Each function takes any bytes, and must neither panic nor take long. None writes anything.
#![allow(missing_docs, reason = "there are no users but the fuzzers")]

use crate::host;
use crate::id::ObjectId;
use crate::storage::archive::{ArchiveReader, ArchiveWriter, Frame, Frames, Head, Record, Records};
use crate::storage::lmdb::layout::keys::RecordPath;
use crate::storage::lmdb::layout::{EnvironmentRecord, ShardMeta, whole};
use crate::storage::log::batch::WriteSet;
use crate::storage::{Kind, Space, Usage};
use crate::sturdyref::{Citation, Grant, Nonce, ReferenceCipher};

/// The records and keys of LMDB.
pub fn layout(bytes: &[u8]) {
    drop((ShardMeta::decode(bytes), Usage::decode(bytes), Grant::decode(bytes)));
    drop([Kind::Objects, Kind::Config].map(|kind| EnvironmentRecord::decode(bytes, kind)));
    drop(Citation::decode_all(bytes));
    drop(ReferenceCipher::new(&[7; 32]).decrypt(ObjectId::from_bytes([7; 16]), b"key", bytes));
    whole(b"key", bytes);
    if let [space, key @ ..] = bytes
        && let Some(space) = Space::from_byte(*space)
    {
        drop(RecordPath::new(ObjectId::from_bytes([7; 16]), space, key));
    }
}

/// The writes of one turn: each has exactly one encoding.
pub fn write_set(bytes: &[u8]) {
    if let Ok(writes) = WriteSet::decode(bytes)
        && !writes.is_empty()
    {
        assert_eq!(writes.as_bytes(), bytes);
    }
}

/// The records that the server itself keeps of an object: its header, and its request ids.
pub fn host_records(bytes: &[u8]) {
    host::decode_records(bytes);
}

/// A whole archive, frames in memory, and the records in a frame.
pub fn archive(bytes: &[u8]) {
    if let Ok(mut reader) = ArchiveReader::open(bytes) {
        while let Ok(Some(_)) = reader.read() {}
    }
    Frames::of(bytes).for_each(drop);
    Records::encoded(bytes).into_iter().for_each(drop);
}

/// One sample of each, from which fuzzers start.
pub fn samples() -> Vec<Vec<u8>> {
    let object = ObjectId::from_bytes([7; 16]);
    let mut writes = WriteSet::new(object);
    writes.put(Space::Data, b"key", b"value").expect("it is within the limits");
    writes.delete(Space::Data, b"other").expect("it is within the limits");
    writes.clear(Space::Data);
    let mut record = Vec::new();
    Record { space: Space::Data, key: b"key", value: b"value" }.encode(&mut record);
    let head = Head { created_ms: 1, cluster: [7; 32], hosts: 1, asked: "all" };
    let mut archive = ArchiveWriter::begin(Vec::new(), &head).expect("memory takes it");
    archive.frame(&Frame::Host(0)).expect("memory takes it");
    let (_, archive) = archive.finish().expect("memory takes it");
    let mut samples = host::sample_records();
    samples.extend([writes.as_bytes().to_vec(), record, archive]);
    samples.push(
        Usage { keys: 3, bytes: 300, references: 1, requests: 7, grants: 9 }.encode().to_vec(),
    );
    let cipher = ReferenceCipher::new(&[7; 32]);
    samples.push(cipher.encrypt(object, b"key", &[], b"", Nonce::default()));
    samples.push(Grant::root(1).encode());
    samples
}
