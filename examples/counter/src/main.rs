//! Serves counters: `cargo run`. Try `cargo run -- --help`.

use capstead::{Result, Server};
use counter::counter::Counter;

#[tokio::main(flavor = "local")]
async fn main() -> Result<()> {
    Server::new("counter.data").class::<Counter>().run().await
}
