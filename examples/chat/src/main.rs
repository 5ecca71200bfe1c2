//! Serves the chat: `cargo run`, and open <http://127.0.0.1:8080/chat>.

use capstead::{Result, Server};

#[tokio::main(flavor = "local")]
async fn main() -> Result<()> {
    chat::chat::add_to(Server::new("chat.data")).run().await
}
