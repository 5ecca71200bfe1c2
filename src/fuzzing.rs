//! Entry points for fuzzers: everything that decodes stored bytes, JSON with its messages and
//! schemas, routes, connections of HTTP, and frames of WebSockets. They are built with
//! `--cfg fuzzing` only.
//!
//! Each function takes any bytes, and must neither panic nor take long. None writes anything.
#![allow(missing_docs, reason = "there are no users but the fuzzers")]

use capstead_client::Interface;
use tokio::runtime::LocalRuntime;

use crate::dynamic::{NoCapSink, NoCapSource, Root, RootBuilder, Table, parse};
use crate::host;
use crate::id::ObjectId;
use crate::schema::counter_capnp::counter;
use crate::storage::archive::{ArchiveReader, ArchiveWriter, Frame, Frames, Head, Record, Records};
use crate::storage::lmdb::layout::keys::RecordPath;
use crate::storage::lmdb::layout::{EnvironmentRecord, ShardMeta, whole};
use crate::storage::log::batch::WriteSet;
use crate::storage::log::block::ShardBlock;
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

/// A block of writes, and the writes of one turn, which have exactly one encoding.
pub fn write_set(bytes: &[u8]) {
    if let Ok(block) = ShardBlock::decode(bytes) {
        assert_eq!(block.encode(), bytes);
    }
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

thread_local! {
    /// The class with the most kinds of fields: it speaks HTTP.
    static COUNTER: Table =
        Table::new(<counter::Client as Interface>::SCHEMA).expect("the schema is good");
}

/// JSON, as the parameters of each method of a class, and then what it became, as JSON again.
pub fn json(bytes: &[u8]) {
    let Ok(json) = parse(bytes) else { return };
    COUNTER.with(|table| {
        for method in table.methods(<counter::Client as Interface>::ID) {
            let mut message = capnp::message::Builder::new_default();
            let root = RootBuilder::of(message.init_root::<capnp::any_pointer::Builder<'_>>());
            if table.write(&method.params, &json, root, 1 << 20, &mut NoCapSource).is_ok() {
                let root = message.get_root_as_reader().and_then(Root::of).expect("it was written");
                let read = table.read(&method.params, root, 8 << 20, &mut NoCapSink);
                let read = read.expect("what was JSON can be JSON");
                assert!(parse(&read).is_ok());
            }
        }
    });
}

/// A message, as the parameters and results of each method of a class.
pub fn message(bytes: &[u8]) {
    let options = capnp::message::ReaderOptions::new();
    let Ok(message) = capnp::serialize::read_message(bytes, options) else { return };
    COUNTER.with(|table| {
        for method in table.methods(<counter::Client as Interface>::ID) {
            for of in [&method.params, &method.results] {
                let Ok(root) = message.get_root().and_then(Root::of) else { return };
                if let Ok(json) = table.read(of, root, 1 << 20, &mut NoCapSink) {
                    assert!(json.len() <= 1 << 20 && parse(&json).is_ok());
                }
            }
        }
    });
}

/// A schema that a class says it has.
pub fn schema(bytes: &[u8]) {
    if let Ok(table) = Table::new(bytes) {
        drop(table.methods(<counter::Client as Interface>::ID));
    }
}

/// A file of routes, and a request that looks for its way in it.
pub fn routes(bytes: &[u8]) {
    crate::gateway::fuzz_routes(bytes);
}

/// Files and requests, from which the fuzzer of routes starts.
pub fn route_samples() -> Vec<Vec<u8>> {
    crate::gateway::route_samples()
}

thread_local! {
    static RUNTIME: LocalRuntime = LocalRuntime::new().expect("there is a thread");
}

/// All that a client of HTTP says on its connection to a gateway with routes, JSON and a class.
pub fn connection(bytes: &[u8]) {
    RUNTIME.with(|runtime| runtime.block_on(crate::gateway::fuzz_connection(bytes)));
}

/// Requests, from which the fuzzer of connections starts.
pub fn connection_samples() -> Vec<Vec<u8>> {
    crate::gateway::connection_samples()
}

/// All that the client of a WebSocket says, behind a byte that says how it is cut.
pub fn frames(bytes: &[u8]) {
    RUNTIME.with(|runtime| runtime.block_on(crate::gateway::fuzz_frames(bytes)));
}

/// Frames, from which the fuzzer of WebSockets starts.
pub fn frame_samples() -> Vec<Vec<u8>> {
    crate::gateway::frame_samples()
}

/// Messages, JSON and a schema, from which the fuzzer of JSON starts.
pub fn json_samples() -> Vec<Vec<u8>> {
    let mut message = capnp::message::Builder::new_default();
    let mut params =
        message.init_root::<crate::schema::http_capnp::http_service::request_params::Builder<'_>>();
    let mut request = params.reborrow().init_request();
    request.set_url("/x?y");
    let mut header = request.init_headers(1).get(0).init_uncommon();
    header.set_name("a");
    header.set_value("b");
    let json = [
        r#"{"by": "-5"}"#,
        r#"{"request": {"method": "post", "url": "/x", "headers": [{"uncommon": {"name": "a", "value": "b"}}],
            "bodySize": {"fixed": 3}}, "context": null}"#,
    ];
    let mut samples: Vec<_> = json.iter().map(|json| json.as_bytes().to_vec()).collect();
    samples.push(capnp::serialize::write_message_to_words(&message));
    samples.push(<crate::schema::poll_capnp::poll::Client as Interface>::SCHEMA.to_vec());
    samples
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
