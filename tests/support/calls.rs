//! Calls on counters as a client makes them: pipelined, beginning with the reference.

use std::future::Future;

use capnp::capability::{Client, FromClientHook};
use capstead::counter_capnp::counter;
use capstead_client::facet_capnp::facet;
use capstead_client::{Connection, Terms, namespace};

use super::{DEADLINE, Served};

/// Runs `work` where capabilities can live, and fails it at the deadline.
pub(crate) fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::LocalRuntime::new().expect("a runtime");
    let work = async { tokio::time::timeout(DEADLINE, work).await };
    runtime.block_on(work).expect("it ends before the deadline")
}

/// A new connection, and the namespace of counters over it.
pub(crate) async fn connect(served: &Served) -> (Connection, namespace::Client) {
    connect_to(served, "Counter").await
}

/// A new connection, and the namespace of a class over it.
pub(crate) async fn connect_to(served: &Served, class: &str) -> (Connection, namespace::Client) {
    let connection = Connection::dial(&served.announced.capnp).await.expect("it is reached");
    let reference = &served.announced.namespaces[class];
    let objects = connection.restore(reference).expect("a restore can be asked for");
    (connection, objects)
}

/// The text of a new reference with this label.
pub(crate) async fn save(of: &impl FromClientHook, label: &str) -> String {
    capstead_client::share(of, Terms::new(label)).await.expect("it can be saved")
}

/// The counter of that name. It doesn't wait for an answer.
pub(crate) fn by_name(counters: &namespace::Client, name: &str) -> counter::Client {
    let mut request = counters.by_name_request();
    request.get().set_key(name);
    request.send().pipeline.get_object().as_cap().cast_to()
}

/// Makes the call at once, even if the result is never polled.
pub(crate) fn increment(
    counter: &counter::Client,
) -> impl Future<Output = capnp::Result<i64>> + use<> {
    let sent = counter.increment_request().send().promise;
    async move { Ok(sent.await?.get()?.get_value()) }
}

/// Reads the counter, at once as [`increment`] does.
pub(crate) fn read(counter: &counter::Client) -> impl Future<Output = capnp::Result<i64>> + use<> {
    let sent = counter.read_request().send().promise;
    async move { Ok(sent.await?.get()?.get_value()) }
}

/// Revokes the grant with this label, which the capability may list.
pub(crate) async fn revoke(of: &impl FromClientHook, label: &str) {
    let facet = || facet::Client { client: Client::new(of.as_client_hook().add_ref()) };
    let reply = facet().grants_request().send().promise.await.expect("they are listed");
    let grants = reply.get().and_then(facet::grants_results::Reader::get_grants);
    let grants = grants.expect("the answer has a list");
    let grant = grants
        .iter()
        .find(|grant| grant.get_label().is_ok_and(|found| found.as_bytes() == label.as_bytes()));
    let grant = grant.expect("the grant is listed");
    let mut request = facet().revoke_request();
    request.get().set_grant(grant.get_id().expect("a grant has an id"));
    request.send().promise.await.expect("it can be revoked");
}
