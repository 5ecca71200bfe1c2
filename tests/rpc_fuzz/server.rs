//! The server that is fuzzed: a separate process, with a class that does everything with the
//! capabilities of its callers that a class can do.
//!
//! The process runs this test program again. The class keeps no promise of its own: it doesn't
//! matter whether a request succeeds.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;

use capnp::capability::{FromClientHook, FromServer};
use capstead::classes::Counter;
use capstead::http::http_service::{self, client_request_context};
use capstead::{Context, Object, Result, Server, Stored};
use capstead_client::http_capnp::{byte_stream, web_socket};

use super::support::{Process, Served, own};

type Peer = client_request_context::Client;

/// The largest number of callers' capabilities that one object keeps.
const KEPT: usize = 16;

/// The actions that a request can ask for, by its URL.
pub(crate) const URLS: [&str; 11] = [
    "/call",
    "/pipeline",
    "/return",
    "/offer",
    "/keep",
    "/later",
    "/own",
    "/pass",
    "/promise",
    "/both",
    "/write",
];

/// The variable with the number of hosts of that process.
const ON_HOSTS: &str = "CAPSTEAD_TEST_RPC_FUZZ_HOSTS";

/// Starts a server of [`Fuzzed`] objects and counters.
pub(crate) fn start(data: &Path) -> Served {
    start_hosts(data, 1)
}

/// The same with this number of hosts.
pub(crate) fn start_hosts(data: &Path, hosts: u16) -> Served {
    let mut program = own::program("serve_the_fuzzed", data);
    program.env(ON_HOSTS, hosts.to_string()).env("RUST_BACKTRACE", "0");
    Served::ready(Process::start(program))
}

/// The other process runs this.
pub(crate) fn serve() {
    let Some(data) = own::data() else { return };
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let hosts = std::env::var(ON_HOSTS).ok().and_then(|text| text.parse().ok());
    own::serve(Server::new(data).class::<Fuzzed>().class::<Counter>().hosts(hosts.unwrap_or(1)));
}

/// An object that performs the actions of [`URLS`].
struct Fuzzed {
    written: Stored<i64>,
    kept: RefCell<Vec<Peer>>,
    turn: Cell<usize>,
}

impl Object for Fuzzed {
    const CLASS: &'static str = "Fuzzed";
    type Client = http_service::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        let written = ctx.stored("written")?;
        Ok(Self { written, kept: RefCell::default(), turn: Cell::default() })
    }
}

impl http_service::Server for Fuzzed {
    async fn request(
        self: Rc<Self>,
        params: http_service::RequestParams,
        mut results: http_service::RequestResults,
    ) -> Result<()> {
        let params = params.get()?;
        let url = params.get_request()?.get_url()?.to_str()?;
        let peer = params.get_context()?;
        match url {
            "/call" => drop(peer.start_response_request().send().promise.await?),
            "/pipeline" => write_to(respond(&peer)).await?,
            "/return" => results.get().set_request_body(cast(&peer)),
            "/offer" => {
                results.get().set_request_body(cast(&peer));
                results.set_pipeline()?;
                peer.start_response_request().send().promise.await?;
            }
            "/keep" => self.keep(peer),
            "/later" => {
                let kept = self.kept();
                kept.unwrap_or(peer).start_response_request().send().promise.await?;
            }
            "/own" => results.get().set_request_body(Sink::client()),
            "/pass" => pass(&peer, &self.kept().unwrap_or(peer.clone())).await?,
            "/promise" => results.get().set_request_body(respond(&peer)),
            "/both" => {
                // The capability from the peer's answer is passed back to it, and written to.
                let answer = peer.start_response_request().send().promise.await?;
                let body = answer.get()?.get_body()?;
                results.get().set_request_body(body.clone());
                results.set_pipeline()?;
                write_to(body).await?;
            }
            "/write" => {
                self.written.set(self.written.get() + 1)?;
                drop(peer.start_response_request().send());
            }
            _ => {}
        }
        Ok(())
    }
}

impl Fuzzed {
    fn keep(&self, peer: Peer) {
        let mut kept = self.kept.borrow_mut();
        if kept.len() < KEPT {
            return kept.push(peer);
        }
        self.turn.set((self.turn.get() + 1) % KEPT);
        kept[self.turn.get()] = peer;
    }

    fn kept(&self) -> Option<Peer> {
        let kept = self.kept.borrow();
        self.turn.set((self.turn.get() + 1) % KEPT);
        kept.get(self.turn.get() % kept.len().max(1)).cloned()
    }
}

/// The same capability as another interface, which it may not implement.
fn cast<T: FromClientHook>(peer: &Peer) -> T {
    peer.clone().cast_to()
}

/// The stream for the body, before the peer has answered.
fn respond(peer: &Peer) -> byte_stream::Client {
    peer.start_response_request().send().pipeline.get_body()
}

async fn write_to(body: byte_stream::Client) -> Result<()> {
    for _ in 0..3 {
        let mut write = body.write_request();
        write.get().set_bytes(&[7; 40]);
        write.send().await?;
    }
    body.end_request().send().promise.await.map(drop)
}

/// Gives the peer its own capability, or that of another peer, and one of ours.
async fn pass(peer: &Peer, other: &Peer) -> Result<()> {
    let mut request = peer.start_web_socket_request();
    request.get().set_up_socket(cast(other));
    let down: web_socket::Client = request.send().pipeline.get_down_socket();
    let mut stream = cast::<byte_stream::Client>(peer).get_substream_request();
    stream.get().set_callback(Sink::client::<byte_stream::Client>().cast_to());
    let sent = stream.send().promise;
    let mut text = down.send_text_request();
    text.get().set_text("text");
    text.send().await?;
    sent.await.map(drop)
}

/// Accepts all bytes.
struct Sink;

impl Sink {
    fn client<C: FromServer<Self> + FromClientHook>() -> C
    where
        Self: Sized,
    {
        capnp_rpc::new_client(Self)
    }
}

impl byte_stream::Server for Sink {
    async fn write(self: Rc<Self>, _: byte_stream::WriteParams) -> Result<()> {
        Ok(())
    }

    async fn end(
        self: Rc<Self>,
        _: byte_stream::EndParams,
        _: byte_stream::EndResults,
    ) -> Result<()> {
        Ok(())
    }
}
