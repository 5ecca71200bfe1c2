//! Serves documents: `cargo run`. Try `cargo run -- --help`.

use capstead::{HttpLimits, Result, Server};
use editor::editor::{Editor, MESSAGE_BYTES_MAX};

#[tokio::main(flavor = "local")]
async fn main() -> Result<()> {
    let mut limits = HttpLimits::default();
    // Whoever wrote a lot without a connection sends it in one message when there is one.
    limits.socket_message_bytes = MESSAGE_BYTES_MAX;
    Server::new("editor.data").class::<Editor>().http_limits(limits).run().await
}
