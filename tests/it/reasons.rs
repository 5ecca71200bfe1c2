//! A client that breaks a rule can read the reason before the connection is closed.

use std::io::Write;
use std::net::TcpStream;
use std::sync::mpsc;

use crate::support::{DEADLINE, raw, scratch, serve};

/// A message of 100 MiB, as far as the server takes it.
fn send_large(mut stream: TcpStream) -> std::io::Result<()> {
    stream.write_all(&[0_u32.to_le_bytes(), (100_u32 << 17).to_le_bytes()].concat())?;
    let some = vec![0; 1 << 20];
    (0..100).try_for_each(|_| stream.write_all(&some))
}

/// Most clients read and write at the same time, and take the first failure for the end. So the
/// reason must arrive before a write fails.
#[test]
fn a_peer_reads_why_it_is_cut_off_before_it_is_every_time() {
    let (_folder, data) = scratch();
    let served = serve(&data);
    for time in 0..50 {
        let stream = raw::dial(&served);
        let (writes, reads) = (stream.try_clone().unwrap(), stream.try_clone().unwrap());
        let (first, ends) = mpsc::channel();
        let failed = first.clone();
        let writer =
            std::thread::spawn(move || drop(failed.send(format!("{:?}", send_large(writes)))));
        let reader =
            std::thread::spawn(move || drop(first.send(raw::reason_of_end(reads).unwrap())));
        let first = ends.recv_timeout(DEADLINE).unwrap();
        let expected = "a message of 104857600 bytes is refused; the limit is 8388608";
        assert_eq!(first, expected, "time {time}");
        // The peer has read it, and leaves: the server waits no longer.
        stream.shutdown(std::net::Shutdown::Both).unwrap();
        writer.join().unwrap();
        reader.join().unwrap();
    }
}
