//! The classes that come with the server. They use what every class may use, and nothing else.

/// The example `chat`, word for word.
#[path = "../../examples/chat/src/chat.rs"]
mod chat;
/// The example `counter`, word for word.
#[path = "../../examples/counter/src/counter.rs"]
mod counter;
/// The example `editor`, word for word.
#[path = "../../examples/editor/src/editor/mod.rs"]
mod editor;
mod index;
mod poll;

pub use chat::{ChatLimiter, ChatRoom, add_to as add_chat_to};
pub use counter::Counter;
pub use editor::{Editor, add_to as add_editor_to};
pub use index::Index;
pub use poll::Poll;

use crate::Server;

/// A server with all bundled classes: [`Counter`], [`Poll`], whose options are counters, the chat,
/// documents, and the page `/` with links to them. All their methods can be called in JSON, and
/// Cap'n Proto is spoken over WebSockets, too.
pub fn bundled(data: impl Into<std::path::PathBuf>) -> Server {
    let server = Server::new(data).class::<Counter>().class::<Poll>();
    let server = server.bind::<Poll, Counter>("votes").json_calls().capnp_over_http();
    add_editor_to(add_chat_to(server)).class::<Index>().route::<Index>("/", "index", "/")
}
