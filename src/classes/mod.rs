//! The classes that come with the server. They use what every class may use, and nothing else.

/// The example `counter`, word for word.
#[path = "../../examples/counter/src/counter.rs"]
mod counter;
mod poll;

pub use counter::Counter;
pub use poll::Poll;

use crate::Server;

/// A server with all bundled classes: [`Counter`], and [`Poll`], whose options are counters. All their methods can
/// be called in JSON.
pub fn bundled(data: impl Into<std::path::PathBuf>) -> Server {
    let server = Server::new(data).class::<Counter>().class::<Poll>();
    server.bind::<Poll, Counter>("votes").json_calls()
}
