//! The people who are there, and their cursors. Never stored.
//!
//! Invariant: what a client says of itself counts up. What isn't newer is neither kept nor told,
//! since every client sends on what it hears of others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use capstead::http::Socket;
use serde::de::IgnoredAny;
use yrs::ClientID;
use yrs::sync::AwarenessUpdate;
use yrs::sync::awareness::AwarenessUpdateEntry;

use super::refused::{Outcome, Refused};

/// Clients of one document, with those that have left.
const CLIENTS_MAX: usize = 1024;
/// Clients that one socket speaks for: the windows of a browser send each other's cursors.
const CLIENTS_OF_SOCKET_MAX: usize = 16;
/// The longest state of a client: a name, a colour, a cursor.
const STATE_BYTES_MAX: usize = 4 << 10;

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
            let is_json = serde_json::from_str::<IgnoredAny>(&entry.json).is_ok();
            if !is_json || entry.json.len() > STATE_BYTES_MAX {
                return Err(Refused::NotYjs);
            }
            let its_socket = known.filter(|known| &*known.state != GONE).map(|known| &known.socket);
            let its_socket = its_socket.unwrap_or(socket).clone();
            if its_socket == *socket && known.is_none() {
                self.make_room(socket)?;
            }
            let client = Client { clock: entry.clock, state: entry.json, socket: its_socket };
            self.clients.insert(id, client);
            self.changed.insert(id);
        }
        Ok(())
    }

    /// Those who have left are remembered as long as there is room.
    fn make_room(&mut self, socket: &Socket) -> Outcome<()> {
        let of_socket = self.clients.values().filter(|client| client.socket == *socket);
        if of_socket.count() >= CLIENTS_OF_SOCKET_MAX {
            return Err(Refused::TooManyClients);
        }
        if self.clients.len() >= CLIENTS_MAX {
            self.clients.retain(|_, client| &*client.state != GONE);
            self.changed.retain(|id| self.clients.contains_key(id));
        }
        if self.clients.len() >= CLIENTS_MAX {
            return Err(Refused::TooFast);
        }
        Ok(())
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
