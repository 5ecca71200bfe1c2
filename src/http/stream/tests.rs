//! Bodies between a writer and a reader, step by step.

use std::sync::Arc;

use futures::FutureExt;

use super::*;
use crate::http::Room;
use crate::limits::HTTP_RESPONSE_BYTES_MAX;

fn flow(size: Option<u64>, most: usize, room: &Arc<Room>) -> (Writer, Reader) {
    Flow::open("response", room.body(), size, most)
}

fn room(bytes: usize) -> Arc<Room> {
    Room::of_gateway(bytes, Arc::default())
}

fn read(reader: &Reader) -> Option<std::result::Result<Option<Vec<u8>>, Cut>> {
    let next = reader.next().now_or_never()?;
    Some(next.map(|part| part.map(Held::into_bytes)))
}

#[test]
fn what_is_written_is_read_once_and_then_the_end() {
    let (writer, reader) = flow(Some(5), 100, &room(1000));
    assert_eq!(read(&reader), None);
    writer.0.add(b"ab").unwrap();
    writer.0.add(b"c").unwrap();
    assert_eq!(reader.size(), Some(5));
    assert_eq!(read(&reader), Some(Ok(Some(b"abc".to_vec()))));
    assert_eq!((read(&reader), reader.size()), (None, Some(2)));
    writer.0.add(b"de").unwrap();
    writer.0.end().unwrap();
    writer.0.end().unwrap();
    assert!(writer.0.add(b"f").is_err());
    drop(writer);
    assert!(!reader.is_over());
    assert_eq!(read(&reader), Some(Ok(Some(b"de".to_vec()))));
    assert_eq!((read(&reader), reader.is_over()), (Some(Ok(None)), true));
}

#[test]
fn a_body_without_its_end_is_cut_and_never_over() {
    let cases: [(&dyn Fn(Writer), Cut); 4] = [
        (&drop, Cut::Left),
        (&|writer| drop(writer.0.add(b"abcdef")), Cut::TooLong),
        (&|writer| drop(writer.0.end()), Cut::TooShort),
        (&|writer| drop(writer.0.add(&[0; 2])), Cut::TooLarge),
    ];
    for (end, expected) in cases {
        let most = if expected == Cut::TooLarge { 1 } else { 100 };
        let (writer, reader) = flow(Some(5), most, &room(1000));
        end(writer);
        assert_eq!(reader.progress(), Progress::Cut(expected));
        assert_eq!(read(&reader), Some(Err(expected)));
        assert!(!reader.is_over());
    }
}

/// A client that counts bytes would take it for whole.
#[test]
fn the_last_bytes_wait_for_the_end() {
    for ends in [true, false] {
        let (writer, reader) = flow(Some(3), 100, &room(1000));
        writer.0.add(b"ab").unwrap();
        assert_eq!(read(&reader), Some(Ok(Some(b"ab".to_vec()))));
        writer.0.add(b"c").unwrap();
        assert!(writer.0.drained().now_or_never().is_some(), "nobody can read it now");
        assert_eq!(read(&reader), None);
        if ends {
            writer.0.end().unwrap();
        }
        drop(writer);
        let expected = if ends { Ok(Some(b"c".to_vec())) } else { Err(Cut::Left) };
        assert_eq!(read(&reader), Some(expected));
    }
}

#[test]
fn whoever_writes_waits_for_a_reader_that_is_behind_and_learns_that_it_is_gone() {
    let (writer, reader) = flow(None, HTTP_RESPONSE_BYTES_MAX, &room(10 << 20));
    let part = vec![0; HTTP_PART_BYTES];
    for _ in 0..HTTP_WINDOW_BYTES / HTTP_PART_BYTES {
        writer.0.drained().now_or_never().expect("there is room for a part").unwrap();
        writer.0.add(&part).unwrap();
    }
    let mut waiting = Box::pin(writer.0.drained());
    assert!(waiting.as_mut().now_or_never().is_none());
    assert!(matches!(read(&reader), Some(Ok(Some(part))) if part.len() == HTTP_WINDOW_BYTES));
    assert!(waiting.as_mut().now_or_never().expect("it was read").is_ok());
    writer.0.add(&vec![0; HTTP_WINDOW_BYTES]).unwrap();
    let mut waiting = Box::pin(writer.0.drained());
    assert!(waiting.as_mut().now_or_never().is_none());
    drop(reader);
    assert!(waiting.as_mut().now_or_never().expect("nobody reads").is_err());
    assert!(writer.0.add(b"x").is_err());
}

#[test]
fn a_writer_hears_at_once_of_the_end_of_the_reading() {
    let ends: [fn(Writer, Reader); 3] =
        [|_, reader| drop(reader), |writer, _| drop(writer), |writer, _| writer.0.end().unwrap()];
    for end in ends {
        let (writer, reader) = flow(None, 100, &room(1000));
        let flow = writer.0.clone();
        let mut unread = Box::pin(flow.unread());
        writer.0.add(b"ab").unwrap();
        reader.take();
        assert_eq!(unread.as_mut().now_or_never(), None);
        end(writer, reader);
        assert_eq!(unread.now_or_never(), Some(()));
    }
}

/// Others that read slowly fill the room.
#[test]
fn a_reader_that_keeps_up_is_not_cut_when_the_room_is_full() {
    let room = room(1 << 20);
    let mut full = room.body();
    assert!(full.extend(&vec![0; 1 << 20]));
    let (writer, reader) = flow(None, HTTP_RESPONSE_BYTES_MAX, &room);
    let part = vec![0; HTTP_PART_BYTES];
    for _ in 0..100 {
        writer.0.add(&part).unwrap();
        let mut waiting = Box::pin(writer.0.drained());
        assert!(waiting.as_mut().now_or_never().is_none(), "until all is read");
        assert!(matches!(read(&reader), Some(Ok(Some(_)))));
        assert!(waiting.as_mut().now_or_never().expect("it was read").is_ok());
    }
    assert!(writer.0.add(&vec![0; 1 << 20]).is_err());
    assert_eq!(read(&reader), Some(Err(Cut::NoRoom)));
}
