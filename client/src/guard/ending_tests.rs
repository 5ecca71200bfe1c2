//! The end of a connection to which no more can be written.

use super::raw::{Desk, bootstrap, bytes_of, call, release, settle};
use super::*;
use crate::connection::Connection;
use crate::restorer_capnp::restorer;
use capnp_rpc::rpc_twoparty_capnp::Side;
use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Waker;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::net::{TcpSocket, TcpStream};

#[derive(Default)]
struct Faults {
    holds_reads: Cell<bool>,
    reader: RefCell<Option<Waker>>,
    fails_writes: Cell<bool>,
}

impl Faults {
    fn let_read(&self) {
        self.holds_reads.set(false);
        self.reader.take().into_iter().for_each(Waker::wake);
    }
}

/// A stream whose peer can be slow, or gone.
struct Faulty(DuplexStream, Rc<Faults>);

impl AsyncRead for Faulty {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.1.holds_reads.get() {
            *self.1.reader.borrow_mut() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Faulty {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.1.fails_writes.get() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

// The connection used to end at the first failed write, which lost answers that had arrived.
#[tokio::test(flavor = "local")]
async fn answers_that_came_before_the_peer_was_gone_are_read() {
    let (near, far) = duplex(64 << 10);
    let faults = Rc::new(Faults::default());
    let near = Faulty(near, faults.clone());
    let client = Rc::new(RefCell::new(GuardState::new(near, Limits::default(), Arc::default())));
    let desk: restorer::Client = capnp_rpc::new_client(Desk::default());
    let limits = Limits::default();
    let far = Rc::new(RefCell::new(GuardState::new(far, limits, Arc::default())));
    let server = Connection::over(far, Side::Server, Some(desk.client)).unwrap();
    let client = Connection::over(client, Side::Client, None).unwrap();
    let desk: restorer::Client = client.bootstrap();
    desk.restore_request().send().promise.await.unwrap();

    let answered = desk.restore_request().send().promise;
    faults.holds_reads.set(true);
    settle().await;
    server.disconnect().await;
    faults.fails_writes.set(true);
    let unsent = desk.restore_request().send().promise;
    settle().await;
    assert!(!client.is_closed(), "there is more to read");
    faults.let_read();
    answered.await.expect("it was answered");
    let error = unsent.await.map(drop).unwrap_err();
    assert_eq!(error.kind, capnp::ErrorKind::Disconnected);
    client.closed().await;
}

// Closing a stream while the peer still sends resets it, and answers that haven't arrived are lost.
#[tokio::test(flavor = "local")]
async fn a_peer_that_reads_slowly_and_still_sends_gets_its_answers_at_the_end() {
    let (mut peer, near) = slow_pair().await;
    let state = Rc::new(RefCell::new(GuardState::new(near, Limits::default(), Arc::default())));
    let desk: restorer::Client = capnp_rpc::new_client(Desk::default());
    let server = Connection::over(state, Side::Server, Some(desk.client)).unwrap();
    let asked = "x".repeat(100_000).leak();
    peer.write_all(&bytes_of(&[bootstrap(0), call(1, asked, vec![])])).await.unwrap();
    peer.readable().await.unwrap();

    let ends = async { server.disconnect_because("the server ends").await };
    let reads = async {
        // Long enough for a server that doesn't wait to close, and for its reset to arrive.
        tokio::time::sleep(Duration::from_millis(100)).await;
        peer.write_all(&bytes_of(&[release(1, 1)])).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut read = Vec::new();
        peer.read_to_end(&mut read).await.expect("the stream ends in order");
        drop(peer);
        read
    };
    let ((), read) = tokio::join!(ends, reads);
    assert!(read.len() > asked.len(), "{} bytes", read.len());
    assert!(read.windows(15).any(|text| text == b"the server ends"), "{} bytes", read.len());
}

/// A connection that holds little until the first end reads, while the second end sends everything.
async fn slow_pair() -> (TcpStream, TcpStream) {
    let (near, far) = (TcpSocket::new_v4().unwrap(), TcpSocket::new_v4().unwrap());
    near.set_send_buffer_size(200_000).unwrap();
    far.set_recv_buffer_size(4096).unwrap();
    near.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let listener = near.listen(1).unwrap();
    let far = far.connect(listener.local_addr().unwrap()).await.unwrap();
    (far, listener.accept().await.unwrap().0)
}
