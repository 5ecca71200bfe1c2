//! HTTP/1 with a server on the same thread: one request, one whole answer, and nothing after it.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An answer, byte for byte.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: Vec<u8>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Tells whether the head contains these bytes.
    pub(crate) fn says(&self, bytes: &[u8]) -> bool {
        self.head.windows(bytes.len()).any(|window| window == bytes)
    }
}

/// Sends a request unchanged, and reads the answer.
pub(crate) async fn exchange(stream: &mut TcpStream, request: &[u8]) -> Answer {
    stream.write_all(request).await.expect("the server hears it");
    let mut head = Vec::new();
    let end = loop {
        assert_ne!(stream.read_buf(&mut head).await.expect("it answers"), 0, "the head is whole");
        if let Some(at) = head.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
    };
    let mut body = head.split_off(end);
    let text = String::from_utf8_lossy(&head);
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length = length.map_or(0, |length| length.parse().expect("a length is a number"));
    let length = if request.starts_with(b"HEAD") { 0 } else { length };
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.expect("a status");
    if status == 101 {
        // Frames of the socket may have come as well.
        return Answer { status, head, body };
    }
    while body.len() < length {
        assert_ne!(stream.read_buf(&mut body).await.expect("it answers"), 0, "the body is whole");
    }
    assert_eq!(body.len(), length, "nothing comes behind the body");
    Answer { status, head, body }
}
