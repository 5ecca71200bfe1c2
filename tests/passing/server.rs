//! Serves objects that pass capabilities on, for the tests in other languages.

mod class;
mod forwarder;

use capstead::classes::Counter;
use capstead::{Result, Server};
use class::{Exclusive, Passer, Plain};
use forwarder::Forwarder;

capstead_client::generated! { forwarder_capnp passing_capnp slot_capnp }

#[tokio::main(flavor = "local")]
async fn main() -> Result<()> {
    let server = Server::new("passing.data").class::<Passer<Plain>>().class::<Passer<Exclusive>>();
    server.class::<Forwarder>().class::<Counter>().run().await
}
