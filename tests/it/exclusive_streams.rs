//! Streams and sockets that an exclusive class makes itself: calls on them are calls of the object,
//! unless they bring the one that runs what it waits for.
#![allow(clippy::disallowed_methods, reason = "a call that takes its time is what is tested")]

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use capnp::capability::FromClientHook;
use capstead::counter_capnp::counter;
use capstead::http::http_service;
use capstead::{Context, Object, Result, Server};
use capstead_client::http_capnp::http_service::client_request_context;
use capstead_client::http_capnp::{byte_stream, web_socket};
use capstead_client::namespace;
use tokio::sync::Notify;

use crate::support::calls::{by_name, increment, read, run};

struct Keeper(Rc<State>);

#[derive(Default)]
struct State {
    is_busy: Cell<bool>,
    /// Calls on what it made that came while another call ran.
    overlaps: Cell<i64>,
    calls: Cell<i64>,
    ended: Notify,
}

impl State {
    fn came(&self) {
        self.calls.set(self.calls.get() + 1);
        if self.is_busy.get() {
            self.overlaps.set(self.overlaps.get() + 1);
        }
    }
}

impl Object for Keeper {
    const CLASS: &'static str = "Keeper";
    const EXCLUSIVE: bool = true;
    type Client = counter::Client;

    async fn wake(_: Context) -> Result<Self> {
        Ok(Self(Rc::default()))
    }
}

impl counter::Server for Keeper {
    /// Takes its time.
    async fn increment(
        self: Rc<Self>,
        _: counter::IncrementParams,
        mut results: counter::IncrementResults,
    ) -> Result<()> {
        self.0.is_busy.set(true);
        tokio::time::sleep(Duration::from_millis(50)).await;
        self.0.is_busy.set(false);
        results.get().set_value(self.0.calls.get());
        Ok(())
    }

    async fn read(
        self: Rc<Self>,
        _: counter::ReadParams,
        mut results: counter::ReadResults,
    ) -> Result<()> {
        results.get().set_value(self.0.overlaps.get());
        Ok(())
    }
}

struct Stream(Rc<State>);

impl byte_stream::Server for Stream {
    async fn write(self: Rc<Self>, _: byte_stream::WriteParams) -> Result<()> {
        self.0.came();
        Ok(())
    }

    async fn end(
        self: Rc<Self>,
        _: byte_stream::EndParams,
        _: byte_stream::EndResults,
    ) -> Result<()> {
        self.0.ended.notify_one();
        Ok(())
    }
}

impl web_socket::Server for Stream {
    async fn send_text(self: Rc<Self>, _: web_socket::SendTextParams) -> Result<()> {
        self.0.came();
        Ok(())
    }
}

impl http_service::Server for Keeper {
    /// At `/early` it waits for the end of the stream that it offers, and else for nothing.
    async fn request(
        self: Rc<Self>,
        params: http_service::RequestParams,
        mut results: http_service::RequestResults,
    ) -> Result<()> {
        let params = params.get()?;
        results.get().set_request_body(capnp_rpc::new_client(Stream(self.0.clone())));
        match params.get_request()?.get_url()?.as_bytes() {
            b"/early" => {
                results.set_pipeline()?;
                self.0.ended.notified().await;
            }
            b"/socket" => {
                let mut start = params.get_context()?.start_web_socket_request();
                start.get().set_up_socket(capnp_rpc::new_client(Stream(self.0.clone())));
                start.send().promise.await?;
            }
            _ => {}
        }
        Ok(())
    }
}

#[derive(Default)]
struct Opens(RefCell<Option<web_socket::Client>>);

impl client_request_context::Server for Opens {
    async fn start_web_socket(
        self: Rc<Self>,
        params: client_request_context::StartWebSocketParams,
        mut results: client_request_context::StartWebSocketResults,
    ) -> Result<()> {
        let up = params.get()?.get_up_socket()?;
        results.get().set_down_socket(up.clone());
        self.0.replace(Some(up));
        Ok(())
    }
}

#[test]
fn calls_on_what_an_exclusive_class_made_wait_their_turn() {
    for hosts in [1, 2] {
        run(async {
            let folder = tempfile::tempdir().unwrap();
            let any = "127.0.0.1:0".parse().unwrap();
            let server = Server::new(folder.path().join("data")).class::<Keeper>().hosts(hosts);
            let running = server.listen(any).without_http().start().await.unwrap();
            let all: namespace::Client =
                capstead_client::restore(&running.namespaces()["Keeper"]).await.unwrap();
            for name in ["a", "b", "c"] {
                let object = by_name(&all, name);
                let context = Rc::new(Opens::default());
                let request = |url: &str| {
                    let service: http_service::Client = object.clone().cast_to();
                    let mut request = service.request_request();
                    let mut params = request.get();
                    params.set_context(capnp_rpc::new_client_from_rc(context.clone()));
                    params.init_request().set_url(url);
                    request.send()
                };
                let write = |to: &byte_stream::Client| to.write_request().send();

                // Offered ahead of the answer, it feeds the call that runs.
                let early = request("/early");
                let stream = early.pipeline.get_request_body();
                write(&stream).await.unwrap();
                stream.end_request().send().promise.await.unwrap();
                early.promise.await.unwrap();
                // From then on it waits as any other call.
                let busy = increment(&object);
                write(&stream).await.unwrap();
                assert_eq!(busy.await.unwrap(), 1);

                let made = request("/made").promise.await.unwrap();
                let stream = made.get().unwrap().get_request_body().unwrap();
                let busy = increment(&object);
                write(&stream).await.unwrap();
                assert_eq!(busy.await.unwrap(), 2);

                request("/socket").promise.await.unwrap();
                let up = context.0.borrow().clone().unwrap();
                let busy = increment(&object);
                up.send_text_request().send().await.unwrap();
                assert_eq!(busy.await.unwrap(), 3);
                assert_eq!(increment(&object).await.unwrap(), 4);
                assert_eq!(read(&object).await.unwrap(), 0, "{hosts} hosts");
            }
            running.until(async {}).await.unwrap();
        });
    }
}
