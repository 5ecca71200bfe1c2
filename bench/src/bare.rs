//! Baselines: servers of capnp-rpc and of hyper alone, without objects or storage.
//!
//! They run in a separate process, as the server does, and on one thread; the forwarding one uses
//! two. They use the stock parts exactly as the parts' own documentation does, without any of our
//! code.

use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use capnp::capability::Client;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{RpcSystem, twoparty};
use clap::ValueEnum;
use futures::io::{BufReader, BufWriter};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

use super::broadcast;
use capstead::Result;
use capstead::counter_capnp::counter;
use capstead_client::http_capnp::http_service;
use capstead_client::restorer_capnp::restorer;

/// Seconds that a client may take for the head of a request; the same limit as in the gateway.
const HTTP_HEADER_SECS: u64 = 10;

/// Selects the bare server.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum BareServer {
    /// capnp-rpc: a counter whose `read` answers with a constant.
    Echo,
    /// capnp-rpc: a counter that asks an `Echo` counter, on another thread, over a socket pair.
    Forward,
    /// capnp-rpc: a restorer that returns a new counter for every text.
    Exports,
    /// hyper: HTTP/1 that answers everything with `1`.
    Http,
    /// tokio-tungstenite: WebSockets of which each hears what any says.
    Broadcast,
}

impl BareServer {
    /// Arguments with which this program serves it.
    pub(crate) fn args(self) -> [&'static str; 2] {
        let kind = match self {
            Self::Echo => "echo",
            Self::Forward => "forward",
            Self::Exports => "exports",
            Self::Http => "http",
            Self::Broadcast => "broadcast",
        };
        ["bare", kind]
    }
}

/// Serves until it is killed; prints its address first.
pub(crate) fn serve(kind: BareServer) -> ExitCode {
    match super::block_on(accept(kind)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => super::fail(&error),
    }
}

async fn accept(kind: BareServer) -> Result<()> {
    let offered = match kind {
        BareServer::Echo => Some(echo().client),
        BareServer::Forward => {
            let forward: counter::Client = capnp_rpc::new_client(Forward(on_another_thread()?));
            Some(forward.client)
        }
        BareServer::Exports => {
            let exports: restorer::Client = capnp_rpc::new_client(Exports);
            Some(exports.client)
        }
        BareServer::Http | BareServer::Broadcast => None,
    };
    let sockets = Rc::default();
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    writeln!(std::io::stdout().lock(), "{}", listener.local_addr()?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        // Each task ends with its connection, and all of them with the process.
        match &offered {
            _ if matches!(kind, BareServer::Broadcast) => {
                tokio::task::spawn_local(broadcast::repeat(stream, Rc::clone(&sockets)));
            }
            Some(offered) => {
                let offered = Client::new(offered.hook.add_ref());
                let system = stock(stream, Side::Server, Some(offered));
                tokio::task::spawn_local(async move { system.await.ok() });
            }
            None => {
                tokio::task::spawn_local(answer_http(stream));
            }
        }
    }
}

/// An RPC system over the stock network, built as in capnp-rpc's own examples.
pub(crate) fn stock(stream: TcpStream, side: Side, bootstrap: Option<Client>) -> RpcSystem<Side> {
    stock_over(stream.into_split(), side, bootstrap)
}

fn stock_over(
    (read, write): (impl AsyncRead + Unpin + 'static, impl AsyncWrite + Unpin + 'static),
    side: Side,
    bootstrap: Option<Client>,
) -> RpcSystem<Side> {
    let (read, write) = (BufReader::new(read.compat()), BufWriter::new(write.compat_write()));
    let network =
        twoparty::VatNetwork::new(read, write, side, capnp::message::ReaderOptions::new());
    RpcSystem::new(Box::new(network), bootstrap)
}

/// The bare counter, served on a thread of its own over a socket pair.
fn on_another_thread() -> Result<counter::Client> {
    let (near, far) = std::os::unix::net::UnixStream::pair()?;
    near.set_nonblocking(true)?;
    far.set_nonblocking(true)?;
    let near = UnixStream::from_std(near)?;
    let serve = move || {
        super::block_on(async {
            let far = UnixStream::from_std(far)?;
            stock_over(far.into_split(), Side::Server, Some(echo().client)).await
        })
    };
    // Detached: the process ends it.
    std::thread::Builder::new().spawn(serve)?;
    let mut system = stock_over(near.into_split(), Side::Client, None);
    let far = system.bootstrap(Side::Server);
    tokio::task::spawn_local(async move { system.await.ok() });
    Ok(far)
}

/// A counter that always returns 1.
pub(crate) fn echo() -> counter::Client {
    capnp_rpc::new_client(Echo)
}

struct Echo;

impl counter::Server for Echo {
    async fn read(
        self: Rc<Self>,
        _: counter::ReadParams,
        mut results: counter::ReadResults,
    ) -> Result<()> {
        results.get().set_value(1);
        Ok(())
    }
}

impl http_service::Server for Echo {}

/// Returns the values of another counter.
struct Forward(counter::Client);

impl counter::Server for Forward {
    async fn read(
        self: Rc<Self>,
        _: counter::ReadParams,
        mut results: counter::ReadResults,
    ) -> Result<()> {
        let reply = self.0.read_request().send().promise.await?;
        results.get().set_value(reply.get()?.get_value());
        Ok(())
    }
}

impl http_service::Server for Forward {}

/// Returns a new capability for every text.
struct Exports;

impl restorer::Server for Exports {
    async fn restore(
        self: Rc<Self>,
        _: restorer::RestoreParams,
        mut results: restorer::RestoreResults,
    ) -> Result<()> {
        results.get().init_cap().set_as_capability(echo().client.hook);
        Ok(())
    }
}

async fn answer_http(stream: TcpStream) {
    let answer = |_: Request<Incoming>| {
        let mut response = Response::new(Full::new(Bytes::from_static(b"1")));
        let plain = http::HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(http::header::CONTENT_TYPE, plain);
        async { Ok::<_, Infallible>(response) }
    };
    let service = hyper::service::service_fn(answer);
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(hyper_util::rt::TokioTimer::new())
        .header_read_timeout(Duration::from_secs(HTTP_HEADER_SECS))
        .serve_connection(hyper_util::rt::TokioIo::new(stream), service);
    // An error means that the client has left.
    let _ = connection.await;
}
