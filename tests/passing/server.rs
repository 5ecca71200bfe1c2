//! Serves objects that pass capabilities on: what the tests in other languages start.

mod class;

use capstead::{Result, Server};
use class::{Exclusive, Passer, Plain};

#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used,
    missing_debug_implementations,
    missing_docs,
    unreachable_pub,
    reason = "generated code is not ours to change"
)]
pub mod passing_capnp {
    include!(concat!(env!("OUT_DIR"), "/passing_capnp.rs"));
}

#[tokio::main(flavor = "local")]
async fn main() -> Result<()> {
    Server::new("passing.data").class::<Passer<Plain>>().class::<Passer<Exclusive>>().run().await
}
