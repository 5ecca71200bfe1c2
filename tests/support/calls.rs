//! Calls on counters as a client makes them: pipelined, beginning with the reference.

use std::future::Future;

use capnp::capability::FromClientHook;
use capstead::counter_capnp::counter;
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
