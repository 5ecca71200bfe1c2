//! Serves feeds and users: `cargo run`. Try `cargo run -- --help`.

use capstead::{Result, Server};
use feed::feed::Feed;
use feed::user::User;

// Users are bound to no class: they reach only the feeds that they were given.
#[tokio::main(flavor = "local")]
async fn main() -> Result<()> {
    Server::new("feed.data").class::<Feed>().class::<User>().run().await
}
