//! The bare servers that Capstead is compared to: capnp-rpc and hyper with nothing behind them.
//!
//! They run in a process of their own, as the server does, and on one thread. They use the stock
//! parts exactly as their own documentation does: none of our code is in their way.

use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{RpcSystem, twoparty};
use clap::ValueEnum;
use futures::io::{BufReader, BufWriter};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

use crate::error::Result;
use crate::limits::HTTP_HEADER_SECS;
use crate::schema::counter_capnp::counter;
use crate::schema::http_capnp::http_service;
use crate::schema::restorer_capnp::restorer;

/// Which of them to serve.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum BareServer {
    /// capnp-rpc: a counter whose `read` answers with a constant.
    Echo,
    /// capnp-rpc: a restorer that gives another counter for every text.
    Exports,
    /// hyper: HTTP/1 that answers everything with `1`.
    Http,
}

impl BareServer {
    /// The arguments that make this binary serve it.
    pub(crate) fn args(self) -> [&'static str; 2] {
        let kind = match self {
            Self::Echo => "echo",
            Self::Exports => "exports",
            Self::Http => "http",
        };
        ["bench-server", kind]
    }
}

/// Serves until it is killed; prints its address first.
pub(crate) fn serve(kind: BareServer) -> ExitCode {
    match super::super::block_on(async { Ok(accept(kind).await?) }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ExitCode::from(super::super::fail(&error)),
    }
}

async fn accept(kind: BareServer) -> Result<()> {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    writeln!(std::io::stdout().lock(), "{}", listener.local_addr()?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        // Each ends with its connection, and all with the process.
        match kind {
            BareServer::Echo => {
                let echo: counter::Client = capnp_rpc::new_client(Echo);
                let system = stock(stream, Side::Server, Some(echo.client));
                tokio::task::spawn_local(async move { system.await.ok() });
            }
            BareServer::Exports => {
                let exports: restorer::Client = capnp_rpc::new_client(Exports);
                let system = stock(stream, Side::Server, Some(exports.client));
                tokio::task::spawn_local(async move { system.await.ok() });
            }
            BareServer::Http => {
                tokio::task::spawn_local(answer_http(stream));
            }
        }
    }
}

/// An RPC system over the stock network, put together as capnp-rpc's own examples do.
pub(crate) fn stock(
    stream: TcpStream,
    side: Side,
    bootstrap: Option<capnp::capability::Client>,
) -> RpcSystem<Side> {
    let (read, write) = stream.into_split();
    let (read, write) = (BufReader::new(read.compat()), BufWriter::new(write.compat_write()));
    let network =
        twoparty::VatNetwork::new(read, write, side, capnp::message::ReaderOptions::new());
    RpcSystem::new(Box::new(network), bootstrap)
}

/// A counter that only ever says 1.
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

/// Has a new capability for everybody.
struct Exports;

impl restorer::Server for Exports {
    async fn restore(
        self: Rc<Self>,
        _: restorer::RestoreParams,
        mut results: restorer::RestoreResults,
    ) -> Result<()> {
        let echo: counter::Client = capnp_rpc::new_client(Echo);
        results.get().init_cap().set_as_capability(echo.client.hook);
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
    // How a client leaves is its own affair.
    let _ = connection.await;
}
