//! Bytes of a peer, into a connection that serves an object which calls its caller back.
#![no_main]

use capnp::capability::FromClientHook;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capstead_client::http_capnp::http_service;
use capstead_client::{Connection, Limits};
use libfuzzer_sys::fuzz_target;
use std::rc::Rc;
use tokio::io::AsyncWriteExt;
use tokio::runtime::LocalRuntime;

thread_local! {
    static RUNTIME: LocalRuntime = LocalRuntime::new().expect("a runtime");
}

/// Calls the context that it is given, and gives it back.
struct Service;

impl http_service::Server for Service {
    async fn request(
        self: Rc<Self>,
        params: http_service::RequestParams,
        mut results: http_service::RequestResults,
    ) -> capnp::Result<()> {
        let context = params.get()?.get_context()?;
        results.get().set_request_body(context.clone().cast_to());
        context.start_response_request().send().promise.await.map(drop)
    }
}

fuzz_target!(|bytes: &[u8]| {
    RUNTIME.with(|runtime| runtime.block_on(serve(bytes)));
});

/// Serves a peer that says this, and goes.
async fn serve(bytes: &[u8]) {
    let service: http_service::Client = capnp_rpc::new_client(Service);
    let bootstrap = capnp::capability::Client::new(service.into_client_hook());
    let (mut near, far) = tokio::io::duplex(1 << 20);
    let connection = Connection::new(far, Side::Server, Some(bootstrap), Limits::default());
    let connection = connection.expect("the runtime is a local one");
    // It may be cut on the way.
    let _ = near.write_all(bytes).await;
    let _ = near.shutdown().await;
    connection.closed().await;
}
