//! Serves documents: `cargo run`, and open <http://127.0.0.1:8080/editor>.

use capstead::{Result, Server};

#[tokio::main(flavor = "local")]
async fn main() -> Result<()> {
    editor::editor::add_to(Server::new("editor.data")).run().await
}
