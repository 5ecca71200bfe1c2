//! Bodies of HTTP requests reach the object, and its responses come back whole.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::rc::Rc;

use capstead::counter_capnp::counter;
use capstead::http::{self, Body, Request, Response, StatusCode, http_service};
use capstead::{Context, Object, Result, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Answers with the request's method, path and body, after it has written the body.
struct Echo(Context);

impl Object for Echo {
    const CLASS: &'static str = "Echo";
    type Client = counter::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        Ok(Self(ctx))
    }
}

impl Echo {
    fn http(&self, request: Request<Body>) -> Result<Response<Body>> {
        let head = format!("{} {}\n", request.method(), request.uri());
        self.0.storage().put("head", &head)?;
        let body = [head.into_bytes(), request.into_body().into_bytes()].concat();
        let mut response = http::text(StatusCode::CREATED, "");
        *response.body_mut() = Body::from(body);
        Ok(response)
    }
}

impl counter::Server for Echo {}

impl http_service::Server for Echo {
    async fn request(
        self: Rc<Self>,
        params: http_service::RequestParams,
        results: http_service::RequestResults,
    ) -> Result<()> {
        http::serve(params, results, async |request| self.http(request)).await
    }
}

async fn exchange(stream: &mut TcpStream, request: &[u8]) -> (String, Vec<u8>) {
    stream.write_all(request).await.unwrap();
    let mut received = Vec::new();
    let head_end = loop {
        assert_ne!(stream.read_buf(&mut received).await.unwrap(), 0, "the response has a head");
        if let Some(at) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
    };
    let head = String::from_utf8(received[..head_end].to_vec()).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let length: usize = length.parse().unwrap();
    while received.len() < head_end + length {
        assert_ne!(stream.read_buf(&mut received).await.unwrap(), 0, "the body is whole");
    }
    (head, received.split_off(head_end))
}

/// Bodies of every kind of length, on one connection that stays open.
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
            let (head, answer) = exchange(&mut stream, &[head.as_bytes(), &body].concat()).await;
            assert!(head.starts_with("HTTP/1.1 201"), "{head}");
            assert_eq!(answer.len(), "PUT /b?c=d\n".len() + length);
            assert!(answer.starts_with(b"PUT /b?c=d\n") && answer.ends_with(&body));
        }
        let chunked = b"POST /echo/a HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n\
                        3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(exchange(&mut stream, chunked).await.1, b"POST /\nabcde");

        let long = format!(
            "PUT /echo/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\nexpect: 100-continue\r\n\r\n",
            (1 << 20) + 1
        );
        let (head, _) = exchange(&mut stream, long.as_bytes()).await;
        assert!(head.starts_with("HTTP/1.1 413"), "{head}");

        drop(stop);
        served.await.unwrap().unwrap();
    });
}
