//! Serves objects that pass capabilities on, for the tests in other languages.

mod class;
mod passing_capnp;

use capstead::{Result, Server};
use class::{Exclusive, Passer, Plain};

#[tokio::main(flavor = "local")]
async fn main() -> Result<()> {
    Server::new("passing.data").class::<Passer<Plain>>().class::<Passer<Exclusive>>().run().await
}
