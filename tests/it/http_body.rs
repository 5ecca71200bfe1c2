//! Bodies of HTTP requests reach the object, and its responses come back whole.

use crate::support::echo::Echo;
use crate::support::exchange::exchange;
use capstead::Server;
use tokio::net::TcpStream;

/// Bodies with every way to give a length, on one connection that stays open.
#[test]
fn a_body_reaches_the_object_and_comes_back() {
    let data = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::LocalRuntime::new().unwrap();
    runtime.block_on(async {
        let any = "127.0.0.1:0".parse().unwrap();
        let server = Server::new(data.path().join("data")).class::<Echo>().listen(any).http(any);
        let running = server.start().await.unwrap();
        let address = running.http().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let served = tokio::task::spawn_local(running.until(async { drop(stopped.await) }));

        let mut stream = TcpStream::connect(address).await.unwrap();
        for length in [0, 1, 1000, 300_000, 1 << 20] {
            let body = vec![b'x'; length];
            let head = format!(
                "PUT /echo/a/b?c=d HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n"
            );
            let answer = exchange(&mut stream, &[head.as_bytes(), &body].concat()).await;
            assert_eq!(answer.status, 201);
            assert!(answer.body == [b"PUT /b?c=d\n", &body[..]].concat());
        }
        let chunked = b"POST /echo/a HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n\
                        3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(exchange(&mut stream, chunked).await.body, b"POST /\nabcde");

        let long = format!(
            "PUT /echo/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\nexpect: 100-continue\r\n\r\n",
            (1 << 20) + 1
        );
        assert_eq!(exchange(&mut stream, long.as_bytes()).await.status, 413);

        drop(stop);
        served.await.unwrap().unwrap();
    });
}
