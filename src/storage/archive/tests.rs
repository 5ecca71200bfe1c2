//! An archive returns exactly the content that was written, or an error; it never returns less, and
//! never panics.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;

const CLUSTER: [u8; 32] = [9; 32];

type Found = (ObjectId, Space, Vec<u8>, Vec<u8>);

fn head() -> Head<'static> {
    Head { created_ms: 5, cluster: CLUSTER, hosts: 1, asked: "everything" }
}

fn object(byte: u8) -> ObjectId {
    ObjectId::from_bytes([byte; 16])
}

/// An archive of these objects, in the given order.
fn write(found: &[Found]) -> Vec<u8> {
    let mut writer = ArchiveWriter::begin(Vec::new(), &head()).unwrap();
    writer.frame(&Frame::Secret { name: "cluster", text: b"secret" }).unwrap();
    writer.frame(&Frame::Host(0)).unwrap();
    let mut last = None;
    for (id, space, key, value) in found {
        if last != Some(*id) {
            writer.frame(&Frame::Shard(id.home_shard(), ShardMeta::default())).unwrap();
            writer.frame(&Frame::Object(*id)).unwrap();
            last = Some(*id);
        }
        let (mut records, mut frame) = (Vec::new(), Vec::new());
        Record { space: *space, key, value }.encode(&mut records);
        Frame::Records(Records(&records)).encode(&mut frame);
        writer.frames(&frame).unwrap();
    }
    writer.finish().unwrap().1
}

fn read(bytes: &[u8]) -> Result<(Vec<Found>, Totals)> {
    let mut reader = ArchiveReader::open(bytes)?;
    let (mut found, mut object) = (Vec::new(), None);
    while let Some((frame, _)) = reader.read()? {
        match frame {
            Frame::Object(id) => object = Some(id),
            Frame::Records(records) => found.extend(records.into_iter().map(|record| {
                let Record { space, key, value } = record;
                (object.unwrap(), space, key.to_vec(), value.to_vec())
            })),
            _ => {}
        }
    }
    Ok((found, reader.totals()))
}

fn small() -> Vec<u8> {
    write(&[
        (object(1), Space::Header, vec![], b"header".to_vec()),
        (object(1), Space::Data, b"key".to_vec(), b"value".to_vec()),
        (object(1), Space::Data, vec![b'z'; 600], vec![]),
        (object(2), Space::Grants, b"grant".to_vec(), b"root".to_vec()),
    ])
}

#[test]
fn an_archive_has_this_beginning_and_these_totals() {
    let bytes = small();
    assert_eq!(&bytes[..17], b"capstead archive\x01");
    // The head has 1 + 8 + 32 + 2 bytes and the text.
    assert_eq!(bytes[17..21], 53_u32.to_le_bytes());
    assert_eq!(bytes[25..34], [1, 5, 0, 0, 0, 0, 0, 0, 0]);
    let (found, totals) = read(&bytes).unwrap();
    assert_eq!(found.len(), 4);
    assert_eq!(totals, Totals { objects: 1, keys: 2, bytes: 608 });
}

#[test]
fn every_bit_counts() {
    let bytes = small();
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(read(&damaged).is_err(), "bit {bit}");
    }
}

#[test]
fn a_cut_at_any_place_is_noticed_and_so_is_anything_behind_the_end() {
    let mut bytes = small();
    for end in 0..bytes.len() {
        let error = read(&bytes[..end]).unwrap_err();
        assert!(matches!(error, ArchiveError::Cut { at } if at == end as u64), "{end}: {error}");
    }
    bytes.push(0);
    assert!(matches!(read(&bytes), Err(ArchiveError::Damaged { .. })));
}

// Each part alone is good, but the whole was put together from two archives.
#[test]
fn parts_of_other_archives_are_noticed() {
    let one = small();
    let two = write(&[
        (object(1), Space::Header, vec![], b"HEADER".to_vec()),
        (object(1), Space::Data, b"key".to_vec(), b"VALUE".to_vec()),
        (object(1), Space::Data, vec![b'z'; 600], vec![]),
        (object(2), Space::Grants, b"grant".to_vec(), b"root".to_vec()),
    ]);
    assert_eq!(one.len(), two.len());
    let end = one.len() - HEAD_BYTES - 57;
    let mixed = [&one[..end], &two[end..]].concat();
    assert!(matches!(read(&mixed), Err(ArchiveError::Damaged { .. })));
}

#[test]
fn other_files_and_other_versions_are_refused_by_name() {
    let mut bytes = small();
    bytes[16] = VERSION + 1;
    let error = read(&bytes).unwrap_err();
    assert!(matches!(error, ArchiveError::Version { found: 2 }), "{error}");
    assert!(error.to_string().contains("version 2"), "{error}");
    bytes[0] = b'C';
    assert!(matches!(read(&bytes), Err(ArchiveError::Foreign)));
    assert!(matches!(read(b"PK\x03\x04 not ours"), Err(ArchiveError::Foreign)));
}

#[test]
fn what_is_out_of_order_is_refused() {
    let record = |space, key: &[u8]| {
        let mut records = Vec::new();
        Record { space, key, value: b"" }.encode(&mut records);
        records
    };
    let shard = Frame::Shard(object(1).home_shard(), ShardMeta::default());
    let (header, key) = (record(Space::Header, b""), record(Space::Data, b"k"));
    let twice = [key.clone(), key.clone()].concat();
    let backwards = [key.clone(), header.clone()].concat();
    let (usage, edges) = (record(Space::Usage, b""), record(Space::Edges, b"k"));
    let begun = [Frame::Host(0), shard, Frame::Object(object(1))];
    let refused: [&[Frame<'_>]; 10] = [
        &[Frame::Head(head())],
        &[Frame::Host(1)],
        &[shard],
        &[Frame::Host(0), shard, shard],
        &[Frame::Host(0), shard, Frame::Object(object(2))],
        &[Frame::Host(0), shard, Frame::Records(Records(&header))],
        &[begun[0], begun[1], begun[2], Frame::Records(Records(&twice))],
        &[begun[0], begun[1], begun[2], Frame::Records(Records(&backwards))],
        &[begun[0], begun[1], begun[2], Frame::Records(Records(&usage))],
        &[begun[0], begun[1], begun[2], Frame::Records(Records(&edges))],
    ];
    for frames in refused {
        let mut writer = ArchiveWriter::begin(Vec::new(), &head()).unwrap();
        let written = frames.iter().try_for_each(|frame| writer.frame(frame));
        assert!(matches!(written, Err(ArchiveError::Damaged { .. })), "{frames:?}");
    }
    let mut writer = ArchiveWriter::begin(Vec::new(), &head()).unwrap();
    begun.iter().try_for_each(|frame| writer.frame(frame)).unwrap();
    assert!(writer.finish().is_err(), "an object without records");
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        objects in btree_map(
            1..=255_u8,
            btree_map(vec(any::<u8>(), 1..600), vec(any::<u8>(), 0..300), 1..4),
            0..5,
        ),
    ) {
        let found: Vec<Found> = objects.into_iter().flat_map(|(id, data)| {
            let header = (object(id), Space::Header, vec![], vec![id]);
            let data = data.into_iter().map(move |(key, value)| (object(id), Space::Data, key, value));
            std::iter::once(header).chain(data)
        }).collect();
        prop_assert_eq!(read(&write(&found)).unwrap().0, found);
    }

    #[test]
    fn a_hostile_archive_ends_in_an_error(bytes in vec(any::<u8>(), 0..300), is_ours in any::<bool>()) {
        let start: &[u8] = if is_ours { b"capstead archive\x01" } else { b"" };
        prop_assert!(read(&[start, &bytes].concat()).is_err());
        let _ = Frame::decode(&bytes);
        let _ = Frames::of(&bytes).count();
    }

    // A length that promises more bytes than the file has takes no memory for them.
    #[test]
    fn a_frame_takes_no_more_memory_than_the_file_has(length in any::<u32>()) {
        let bytes = [b"capstead archive\x01".as_slice(), &length.to_le_bytes(), &[0; 40]].concat();
        let mut reader = ArchiveReader::open(bytes.as_slice()).unwrap();
        prop_assert!(reader.read().is_err());
        prop_assert!(reader.capacity() < 1_024);
    }
}
