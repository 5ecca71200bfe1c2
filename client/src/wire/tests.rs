//! The memory that a wire keeps between two polls: none that another connection could use.

use super::*;
use capnp::{any_pointer, data};
use std::task::Waker;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

/// A message as it comes from the wire.
pub(crate) fn incoming(message: &Builder<HeapAllocator>) -> ReceivedMessage {
    let bytes = capnp::serialize::write_message_to_words(message);
    let mut wire = Wire::new(tokio::io::empty(), 1 << 20, ReaderOptions::new());
    wire.end = bytes.len();
    wire.input = bytes;
    match wire.poll_read(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(Some(incoming))) => incoming,
        _ => panic!("it is a message"),
    }
}

fn wire(room: usize) -> (DuplexStream, Wire<DuplexStream>) {
    let (near, far) = duplex(room);
    (near, Wire::new(far, 1 << 20, ReaderOptions::new()))
}

fn message(bytes: usize) -> Builder<HeapAllocator> {
    let mut message = Builder::new_default();
    let root = message.init_root::<any_pointer::Builder>();
    root.initn_as::<data::Builder>(bytes as u32).fill(7);
    message
}

fn next(wire: &mut Wire<DuplexStream>) -> Option<usize> {
    match wire.poll_read(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(Some(incoming))) => Some(incoming.get_root::<data::Reader>().unwrap().len()),
        Poll::Ready(_) => panic!("it is a message"),
        Poll::Pending => None,
    }
}

/// Works wherever the bytes are cut, and no matter what other connections read in between.
#[tokio::test(flavor = "local")]
async fn a_wire_at_rest_keeps_the_rest_of_a_message_and_no_buffer() {
    let sent =
        [10, 5000, 0, 300].map(|bytes| capnp::serialize::write_message_to_words(&message(bytes)));
    let sent = sent.concat();
    for cut in (0..sent.len()).step_by(7) {
        // The runtime lets a task read only a limited number of times before it yields.
        tokio::task::yield_now().await;
        let (mut near, mut wire) = wire(64 << 10);
        let (mut other_near, mut other) = self::wire(64 << 10);
        let mut read = Vec::new();
        for part in [&sent[..cut], &sent[cut..]] {
            near.write_all(part).await.unwrap();
            read.extend(next(&mut wire));
            wire.rest();
            assert!(wire.input.len() <= part.len());
            other_near.write_all(&sent).await.unwrap();
            assert_eq!(std::iter::from_fn(|| next(&mut other)).count(), 4);
            other.rest();
            assert_eq!(other.input.capacity(), 0);
            read.extend(std::iter::from_fn(|| next(&mut wire)));
        }
        wire.rest();
        assert_eq!((read, wire.input.capacity()), (vec![10, 5000, 0, 300], 0));
    }
}

/// Without the limit, a peer that always leaves something unread would make the buffer grow without
/// end.
#[tokio::test(flavor = "local")]
async fn what_is_written_is_not_kept_while_more_waits() {
    let (mut near, mut wire) = wire(16 << 10);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..1000 {
        tokio::task::yield_now().await;
        wire.push(&message(16 << 10));
        assert!(wire.poll_flush(&mut context).is_pending());
        near.read_exact(&mut [0; 16 << 10]).await.unwrap();
    }
    assert!(wire.pending_bytes() < 128 << 10);
    assert!(wire.output.held() < 512 << 10, "{}", wire.output.held());
    // Once everything is written, other connections can use the buffer.
    let mut rest = vec![0; 64 << 10];
    while wire.poll_flush(&mut context).is_pending() {
        assert!(near.read(&mut rest).await.unwrap() > 0);
        tokio::task::yield_now().await;
    }
    assert_eq!(wire.output.held(), 0);
}

/// Some streams take all bytes long before their flush is done, and more is pushed meanwhile.
#[test]
fn bytes_leave_in_their_order_and_no_piece_is_offered_twice() {
    for first in [100, 300 << 10, 700 << 10] {
        let (mut output, mut expected, mut written) = (Output::default(), Vec::new(), Vec::new());
        for (n, bytes) in [first, 10, 300 << 10, 20, 5000, 300 << 10].into_iter().enumerate() {
            output.push(&message(bytes));
            expected.extend(capnp::serialize::write_message_to_words(&message(bytes)));
            // All of it, or all but a part.
            let left = if n % 3 == 2 { 7000 } else { 0 };
            while output.pending() > left {
                let count = output.next().len().min(output.pending() - left).min(50_000);
                assert!(count > 0, "an empty write looks like the end of the stream");
                written.extend_from_slice(&output.next()[..count]);
                output.advance(count);
            }
            assert!(output.held() >= output.pending());
        }
        while output.pending() > 0 {
            written.extend_from_slice(output.next());
            output.advance(output.next().len());
        }
        assert!(written == expected, "{first}");
    }
}

/// A message that is announced and doesn't arrive costs no memory.
#[tokio::test(flavor = "local")]
async fn a_message_takes_as_much_memory_as_came_of_it() {
    let sent = capnp::serialize::write_message_to_words(&message(1 << 19));
    let (mut near, mut wire) = wire(64 << 10);
    let mut came = 0;
    for part in sent.chunks(20_000) {
        assert!(next(&mut wire).is_none());
        wire.rest();
        tokio::task::yield_now().await;
        let taken = wire.partial.as_ref().map_or(0, |partial| partial.segments.words.capacity());
        assert!(taken * WORD <= 2 * came + 2 * INPUT_BYTES, "{taken} words for {came} bytes");
        near.write_all(part).await.unwrap();
        came += part.len();
    }
    assert_eq!(next(&mut wire), Some(1 << 19));
    assert_eq!(wire.unfinished(1), None);
}

#[test]
fn segments_cost_something_even_without_bytes() {
    let small = incoming(&message(0));
    let places = vec![(0, 0); SEGMENTS_MAX];
    let many = Reader::new(Segments { words: Vec::new(), places }, ReaderOptions::new());
    assert_eq!((cost(&small), cost(&many)), (8 + 16, SEGMENTS_MAX * 16));
}

/// Other connections have their turn between two polls, and later polls read the rest of the
/// message.
#[tokio::test(flavor = "local")]
async fn one_poll_reads_a_part_of_a_large_message() {
    const BYTES: usize = 1_000_000;
    let sent = capnp::serialize::write_message_to_words(&message(BYTES));
    let (mut near, mut wire) = wire(2 * BYTES);
    near.write_all(&sent).await.unwrap();
    let mut polls = 0;
    let read = loop {
        tokio::task::yield_now().await;
        let before = wire.received;
        let read = next(&mut wire);
        assert!(wire.received - before <= IN_A_POLL_BYTES as u64);
        wire.rest();
        polls += 1;
        if let Some(read) = read {
            break read;
        }
    };
    assert_eq!((read, polls), (BYTES, BYTES.div_ceil(IN_A_POLL_BYTES)));
}
