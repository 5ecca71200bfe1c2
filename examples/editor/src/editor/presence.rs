//! The people who are there, and their cursors. Never stored.
//!
//! Invariant: a client numbers its own states upward. A state that isn't newer is neither kept nor
//! told, since every client sends on what it hears of others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use capstead::http::Socket;
use serde_json::Value;
use yrs::ClientID;
use yrs::sync::AwarenessUpdate;
use yrs::sync::awareness::AwarenessUpdateEntry;

use super::SOCKETS_MAX;
use super::refused::{Outcome, Refused};

/// Clients of one document, with those that have left. Each socket has room for one: further ones
/// are shown while there is other room.
const CLIENTS_MAX: usize = 2 * SOCKETS_MAX;
/// Clients that one socket speaks for: the windows of a browser send each other's cursors.
const CLIENTS_OF_SOCKET_MAX: usize = 16;
/// The longest state of a client: a name, a colour, a cursor.
const STATE_BYTES_MAX: usize = 4 << 10;
/// The longest colour.
const COLOUR_BYTES_MAX: usize = 64;

/// The state of a client that leaves.
const GONE: &str = "null";

#[derive(Default)]
pub(super) struct Presence {
    clients: BTreeMap<ClientID, Client>,
    /// Those of which others don't know the latest.
    changed: BTreeSet<ClientID>,
}

struct Client {
    clock: u32,
    /// JSON, or [`GONE`].
    state: Arc<str>,
    /// The socket that spoke first for it.
    socket: Socket,
}

impl Presence {
    pub(super) fn apply(&mut self, socket: &Socket, update: AwarenessUpdate) -> Outcome<()> {
        for (id, entry) in update.clients {
            let is_gone = &*entry.json == GONE;
            let known = self.clients.get(&id);
            let is_new = known.is_none_or(|known| {
                entry.clock > known.clock
                    || entry.clock == known.clock && is_gone && &*known.state != GONE
            });
            if !is_new || (known.is_none() && is_gone) {
                continue;
            }
            if entry.json.len() > STATE_BYTES_MAX {
                return Err(Refused::NotYjs);
            }
            check_state(&entry.json)?;
            let its_socket = known.filter(|known| &*known.state != GONE).map(|known| &known.socket);
            let its_socket = its_socket.unwrap_or(socket).clone();
            let comes = known.is_none_or(|known| &*known.state == GONE) && !is_gone;
            if comes && !self.has_room(socket)? {
                continue;
            }
            let client = Client { clock: entry.clock, state: entry.json, socket: its_socket };
            self.clients.insert(id, client);
            self.changed.insert(id);
        }
        Ok(())
    }

    /// Tells whether there is room for one more client of a socket. Those who have left are
    /// remembered as long as there is.
    fn has_room(&mut self, socket: &Socket) -> Outcome<bool> {
        let is_its = |client: &&Client| client.socket == *socket && &*client.state != GONE;
        let of_socket = self.clients.values().filter(is_its).count();
        if of_socket >= CLIENTS_OF_SOCKET_MAX {
            return Err(Refused::TooManyClients);
        }
        let room = if of_socket == 0 { CLIENTS_MAX } else { CLIENTS_MAX - SOCKETS_MAX };
        if self.clients.len() >= room {
            self.clients.retain(|id, client| &*client.state != GONE || self.changed.contains(id));
        }
        Ok(self.clients.len() < room)
    }

    /// Its clients have left with it.
    pub(super) fn leave(&mut self, socket: &Socket) {
        for (id, client) in &mut self.clients {
            if client.socket == *socket && &*client.state != GONE {
                client.state = GONE.into();
                self.changed.insert(*id);
            }
        }
    }

    pub(super) fn is_told(&self) -> bool {
        self.changed.is_empty()
    }

    /// The states to tell everybody, also those who said it: a client that hears nothing for 30 s,
    /// not even itself, takes its connection for dead.
    pub(super) fn take_changes(&mut self) -> Option<AwarenessUpdate> {
        let changed = std::mem::take(&mut self.changed);
        self.update(|id, _| changed.contains(id))
    }

    /// All who are there.
    pub(super) fn all(&self) -> Option<AwarenessUpdate> {
        self.update(|_, client| &*client.state != GONE)
    }

    fn update(&self, which: impl Fn(&ClientID, &Client) -> bool) -> Option<AwarenessUpdate> {
        let chosen = self.clients.iter().filter(|(id, client)| which(id, client));
        let entry = |client: &Client| AwarenessUpdateEntry {
            clock: client.clock,
            json: client.state.clone(),
        };
        let clients = chosen.map(|(id, client)| (*id, entry(client))).collect();
        let update = AwarenessUpdate { clients };
        (!update.clients.is_empty()).then_some(update)
    }
}

/// Looks whether a state is JSON, and whether the colours in it are no more than that: editors put
/// them into the style of a cursor as they are, where other text could cover the page.
fn check_state(json: &str) -> Outcome<()> {
    let state: Value = serde_json::from_str(json).map_err(|_| Refused::NotYjs)?;
    let is_safe = ["color", "colorLight"].iter().all(|name| match &state["user"][name] {
        Value::Null => true,
        Value::String(colour) => is_colour(colour),
        _ => false,
    });
    let is_known = matches!(state["user"], Value::Null | Value::Object(_));
    if is_safe && is_known { Ok(()) } else { Err(Refused::Colour) }
}

/// Tells whether it is written as colours are: `#30bced33`, `hsl(90deg 50% 40%)`, `orange`.
fn is_colour(text: &str) -> bool {
    let is_of_colours =
        |letter: char| letter.is_ascii_alphanumeric() || "#(),.%/ -".contains(letter);
    text.len() <= COLOUR_BYTES_MAX && text.chars().all(is_of_colours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_colours() {
        for (json, is_right) in [
            ("null", true),
            ("5", true),
            (r#"{"cursor":{"anchor":null}}"#, true),
            (r#"{"user":{"name":"Ada; color: red"}}"#, true),
            (r##"{"user":{"color":"#30bced","colorLight":"#30bced33"}}"##, true),
            (r#"{"user":{"color":"hsl(90deg 50% 40% / .5)"}}"#, true),
            (r#"{"user":{"color":"orange"}}"#, true),
            (r#"{"user":{"color":null}}"#, true),
            (r#"{"user":{"color":"red; position: fixed; inset: 0"}}"#, false),
            (r#"{"user":{"colorLight":"red\u003b inset:0"}}"#, false),
            (r#"{"user":{"c\u006flor":"red; inset: 0"}}"#, false),
            (r#"{"user":{"color":"red","color":"red; inset: 0"}}"#, false),
            (r#"{"user":{"color":["red; inset: 0"]}}"#, false),
            (r#"{"user":["red; inset: 0"]}"#, false),
            (r#"{"user":{"color":"red","#, false),
        ] {
            assert_eq!(check_state(json).is_ok(), is_right, "{json}");
        }
    }
}
