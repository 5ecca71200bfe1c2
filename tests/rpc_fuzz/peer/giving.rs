//! The capabilities that the peer puts into its messages: new ones, earlier ones, the server's own,
//! and paths into answers.

use capnp::private::capability::ClientHook;
use capnp_rpc::rpc_capnp::{cap_descriptor, payload};

use super::{Peer, pick};
use crate::messages::path;

impl Peer {
    /// Gives some capabilities away. Returns a table whose length is the index of the next
    /// capability pointer; sometimes the message has no capability at that index.
    pub(super) fn caps(&mut self, payload: payload::Builder) -> Vec<Option<Box<dyn ClientHook>>> {
        let count = 1 + self.random.below(2) * self.random.below(3);
        let mut table = payload.init_cap_table(count as u32);
        for at in 0..count {
            self.capability(table.reborrow().get(at as u32));
        }
        let places = if self.random.below(20) == 0 { 100 } else { count };
        (0..self.random.below(places)).map(|_| None).collect()
    }

    /// A capability of either side.
    fn capability(&mut self, cap: cap_descriptor::Builder) {
        match self.random.below(16) {
            0 => {}
            9 => match pick(&mut self.random, &self.promises) {
                // A number that the server knows as a promise's.
                Some(id) if self.random.below(60) == 0 => self.set_hosted(cap, id),
                _ => self.set_new_hosted(cap),
            },
            _ => self.live_capability(cap),
        }
    }

    pub(super) fn live_capability(&mut self, mut cap: cap_descriptor::Builder) {
        match self.random.below(10) {
            0..3 => self.set_new_hosted(cap),
            3 => match pick(&mut self.random, &self.hosted) {
                Some(id) => self.set_hosted(cap, id),
                None => self.set_new_hosted(cap),
            },
            4 => match pick(&mut self.random, &self.promises) {
                Some(id) => self.set_promise(cap, id),
                None => self.set_new_hosted(cap),
            },
            5 => match pick(&mut self.random, &self.imports) {
                Some(id) => cap.set_receiver_hosted(id),
                None => self.set_new_hosted(cap),
            },
            6..8 => {
                let steps = self.random.below(2) as u32;
                let mut on = cap.init_receiver_answer();
                on.set_question_id(self.any_question());
                path(on, steps);
            }
            _ => {
                let id = self.export();
                self.promises.push(id);
                self.set_promise(cap, id);
            }
        }
    }

    fn set_new_hosted(&mut self, cap: cap_descriptor::Builder) {
        let id = self.export();
        self.hosted.push(id);
        self.set_hosted(cap, id);
    }

    fn set_hosted(&mut self, mut cap: cap_descriptor::Builder, id: u32) {
        *self.given.entry(id).or_default() += 1;
        cap.set_sender_hosted(id);
    }

    fn set_promise(&mut self, mut cap: cap_descriptor::Builder, id: u32) {
        *self.given.entry(id).or_default() += 1;
        cap.set_sender_promise(id);
    }
}
