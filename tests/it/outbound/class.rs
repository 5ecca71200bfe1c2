//! A class that calls what is in its slot, and its clients.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use capnp::capability::FromClientHook;
use capstead::http::{
    self, Answer, Body, Closed, Incoming, Message, Request, Response, StatusCode,
};
use capstead::http::{Socket, SocketHandler, Sockets, http_service};
use capstead::{Context, Object, Outbound, OutboundLimits, Result, Running, Server, failed};
use capstead_client::namespace;
use tokio::net::TcpStream;

use crate::forwarder_capnp::forwarder;
use crate::slot_capnp::slot;
use crate::support::DEADLINE;
use crate::support::exchange::{self, exchange};

/// `ALONE`: it runs one call at a time.
pub(super) struct Calling<const ALONE: bool> {
    ctx: Context,
    sockets: Sockets,
    /// The messages and ends of its sockets.
    heard: RefCell<Vec<String>>,
    /// The last error of a body.
    error: RefCell<String>,
}

pub(super) type Caller = Calling<false>;

impl<const ALONE: bool> Object for Calling<ALONE> {
    const CLASS: &'static str = if ALONE { "Alone" } else { "Caller" };
    const EXCLUSIVE: bool = ALONE;
    type Client = forwarder::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        let (heard, error) = Default::default();
        Ok(Self { sockets: ctx.sockets(), ctx, heard, error })
    }
}

impl<const ALONE: bool> Calling<ALONE> {
    fn service(&self) -> Result<http_service::Client> {
        self.ctx.storage().get_ref("service")?.ok_or_else(|| failed("it has no service"))
    }

    async fn http(self: Rc<Self>, request: Request<Incoming>) -> Answer {
        let text = http::query(&request, "text").unwrap_or_default();
        let (head, body) = request.into_parts();
        match head.uri.path() {
            "/bind" => {
                let service = self.ctx.namespace::<Outbound>("web")?.get(&text)?;
                self.ctx.storage().put_ref("service", &service).await?;
                http::json(StatusCode::OK, &true)
            }
            // Every URL.
            "/url" => {
                let asked = Request::get(text).body(Body::default());
                let asked = asked.map_err(|error| failed(error.to_string()))?;
                Ok(self.pass_on(http::send(&self.service()?, asked).await))
            }
            "/give-up" => {
                let asked = Request::get("/never").body(Body::default()).expect("a request");
                let service = self.service()?;
                let asking = http::send(&service, asked);
                let ended = tokio::time::timeout(Duration::from_millis(300), asking).await;
                assert!(text != "panic", "as the test wishes");
                http::json(StatusCode::OK, &ended.is_err())
            }
            "/open" => {
                let asked = Request::get("/").header("sec-websocket-protocol", "one, two");
                let asked = asked.body(()).expect("a request");
                let connect = self.sockets.connect(&self, &self.service()?, asked);
                Ok(match connect.tag("out").attachment("kept").open().await {
                    Ok(response) => {
                        let said = format!("{:?}", response.headers());
                        http::text(StatusCode::OK, said)
                    }
                    Err(error) => self.told(&error),
                })
            }
            "/say" => {
                for socket in self.sockets.tagged("out") {
                    drop(socket.send_text(&text));
                }
                http::json(StatusCode::OK, &self.sockets.len())
            }
            "/shut" => {
                for socket in self.sockets.all() {
                    socket.close(3000, &text);
                }
                http::json(StatusCode::OK, &true)
            }
            "/heard" => http::json(StatusCode::OK, &*self.heard.borrow()),
            "/error" => Ok(http::text(StatusCode::OK, &*self.error.borrow())),
            _ => self.call(head, body).await,
        }
    }

    /// Passes the request on, both bodies in parts. A header `ask-x` becomes `x`.
    async fn call(self: Rc<Self>, head: http_parts::Parts, mut body: Incoming) -> Answer {
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut asked = Request::builder().method(head.method).uri(path);
        for (name, value) in &head.headers {
            if let Some(name) = name.as_str().strip_prefix("ask-") {
                asked = asked.header(name, value);
            }
        }
        let passed = match body.size() {
            Some(0) => Body::default(),
            _ => Body::stream(async move |to| {
                while let Some(part) = body.next().await? {
                    to.send(part).await?;
                }
                Ok(())
            }),
        };
        let asked = asked.body(passed).map_err(|error| failed(error.to_string()))?;
        Ok(self.pass_on(http::send(&self.service()?, asked).await))
    }

    fn pass_on(self: &Rc<Self>, answer: Result<Response<http::ResponseBody>>) -> Response<Body> {
        let object = self.clone();
        match answer {
            Err(error) => self.told(&error),
            Ok(response) => response.map(|mut body| {
                Body::stream(async move |to| {
                    loop {
                        match body.next().await {
                            Ok(Some(part)) => to.send(part).await?,
                            Ok(None) => return Ok(()),
                            Err(error) => {
                                object.told(&error);
                                return Err(error);
                            }
                        }
                    }
                })
            }),
        }
    }

    fn told(&self, error: &capnp::Error) -> Response<Body> {
        let said = format!("{:?}: {}", error.kind, error.extra.replace("remote exception: ", ""));
        self.error.replace(said.clone());
        http::text(StatusCode::IM_A_TEAPOT, said)
    }
}

/// The parts of a request.
mod http_parts {
    pub(super) use http::request::Parts;
}

impl<const ALONE: bool> SocketHandler for Calling<ALONE> {
    async fn message(self: Rc<Self>, socket: Socket, message: Message) -> Result<()> {
        assert_eq!((socket.tags().join(" "), socket.attachment()), ("out".into(), b"kept".into()));
        self.heard.borrow_mut().push(match message {
            Message::Text(text) => text,
            Message::Data(bytes) => format!("{} bytes", bytes.len()),
        });
        Ok(())
    }

    async fn closed(self: Rc<Self>, _: Socket, closed: Closed) -> Result<()> {
        self.heard.borrow_mut().push(format!("closed {} {}", closed.code, closed.reason));
        Ok(())
    }
}

impl<const ALONE: bool> forwarder::Server for Calling<ALONE> {}

impl<const ALONE: bool> slot::Server for Calling<ALONE> {
    async fn fill(self: Rc<Self>, params: slot::FillParams, _: slot::FillResults) -> Result<()> {
        let service: http_service::Client = params.get()?.get_with().get_as_capability()?;
        self.ctx.storage().put_ref("service", &service).await
    }
}

impl<const ALONE: bool> http_service::Server for Calling<ALONE> {
    async fn request(
        self: Rc<Self>,
        params: http_service::RequestParams,
        results: http_service::RequestResults,
    ) -> Result<()> {
        http::serve_streaming(params, results, async |request| self.http(request).await).await
    }
}

/// The numbers of hosts to try.
pub(super) fn hosts() -> Vec<u16> {
    let hosts = std::env::var("CAPSTEAD_TEST_HOSTS").map(|hosts| vec![hosts.parse().unwrap()]);
    hosts.unwrap_or_else(|_| vec![1, 2, 4])
}

/// Runs `work` where a server can run beside it.
pub(super) fn run(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::LocalRuntime::new().unwrap();
    let work = async { tokio::time::timeout(DEADLINE, work).await };
    runtime.block_on(work).expect("it ends in time");
}

/// Runs a server that may call these origins, with the limits that all have.
pub(super) async fn served(hosts: u16, origins: &[&str], work: impl AsyncFnOnce(&Running)) {
    with_server((hosts, origins), |_| {}, async |running, _| work(running).await).await;
}

/// Runs `work` beside a server whose objects may call these origins.
pub(super) async fn with_server(
    (hosts, origins): (u16, &[&str]),
    limit: impl Fn(&mut OutboundLimits),
    work: impl AsyncFnOnce(&Running, &Path),
) {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().join("data");
    let any = "127.0.0.1:0".parse().unwrap();
    let mut limits = OutboundLimits::default();
    limit(&mut limits);
    let server = Server::new(&path).class::<Caller>().class::<Calling<true>>().hosts(hosts);
    let server = server.outbound(origins.iter().copied()).outbound_limits(limits);
    let server = server.bind::<Caller, Outbound>("web").bind::<Calling<true>, Outbound>("web");
    let server = server.json_calls().warm(Duration::from_millis(200));
    let running = server.listen(any).http(any).metrics(any).start().await.unwrap();
    work(&running, &path).await;
    running.until(async {}).await.unwrap();
}

/// A connection to the object.
pub(super) async fn dial(running: &Running) -> TcpStream {
    TcpStream::connect(running.http().unwrap()).await.unwrap()
}

/// A whole request, as it stands after the method and a slash.
pub(super) async fn ask(running: &Running, asked: &str) -> exchange::Answer {
    let (path, headers) = asked.split_once('\n').unwrap_or((asked, ""));
    let request = format!("GET /{path} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n");
    exchange(&mut dial(running).await, request.as_bytes()).await
}

/// The body of the answer, as text.
pub(super) async fn get(running: &Running, path: &str) -> String {
    String::from_utf8(ask(running, path).await.body).unwrap()
}

/// Gives the object a service by its binding.
pub(super) async fn bind(running: &Running, object: &str, origin: &str) {
    assert_eq!(get(running, &format!("{object}/bind?text={origin}")).await, "true");
}

/// Asks until the answer is as wished.
pub(super) async fn until(running: &Running, path: &str, is_it: impl Fn(&str) -> bool) -> String {
    loop {
        let said = get(running, path).await;
        if is_it(&said) {
            return said;
        }
        tokio::task::yield_now().await;
    }
}

/// The object of that name of a class, by Cap'n Proto.
pub(super) async fn object<C: FromClientHook>(running: &Running, class: &str, name: &str) -> C {
    let all: namespace::Client =
        capstead_client::restore(&running.namespaces()[class]).await.unwrap();
    let mut by_name = all.by_name_request();
    by_name.get().set_key(name);
    let object = by_name.send().pipeline.get_object().as_cap();
    C::new(object)
}
