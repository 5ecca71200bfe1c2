//! Sockets that survive the end of their object's host: what is stored of each in the object's
//! storage, and the numbers of its messages.
//!
//! The gateway keeps the client, and what it didn't hand over yet. All else of a socket is here,
//! written in the turns of the object, so that it is true exactly when what the object did is.
//!
//! Invariants:
//! - The turn that begins to handle a message says so in its own batch, and the one that ends it,
//!   too. So a message that comes again either finds that it was handled, or nothing of it was.
//! - A message whose handling had begun and not ended when the host went is never begun again: its
//!   socket ends, as it does when an instance is lost with one.
//! - A frame is stored, with the next number, in the turn that sends it, and until the gateway has
//!   it. It goes out behind the gate, so no frame is out that isn't stored.
//! - The numbers are read from the storage each time: a turn that is dropped takes its own back.
//! - An attachment is written in the turn that sets it, and stays when that is dropped: the host
//!   then stores it anew.
//! - There is one way in and one way out, the latest: what comes or goes by another is dropped or
//!   refused by its number.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::rc::Rc;

use capnp::capability::{FromClientHook, Promise};
use futures::future::TryFutureExt;

use super::over;
use crate::cursor::Cursor;
use crate::error::{Result, disconnected, failed, overloaded};
use crate::limits::{SURVIVING_UNSENT_BYTES_MAX, SURVIVING_UNSENT_MAX};
use crate::schema::http_capnp::web_socket;
use crate::schema::surviving_capnp::numbered_socket;

/// The name of a socket: 16 random bytes.
pub(super) type Id = [u8; 16];

/// The records of a socket are under its id and one of these.
const HEAD: u8 = 0;
/// See [`HEAD`].
const ATTACHMENT: u8 = 1;
/// See [`HEAD`].
const STATE: u8 = 2;
/// See [`HEAD`]. The number of the frame follows.
const FRAME: u8 = 3;

/// Counted for each frame beside its bytes.
const FRAME_BYTES: usize = 64;

/// The records of an object's surviving sockets.
pub(crate) trait Records {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Sets or deletes one, in the present turn.
    ///
    /// # Errors
    /// Outside a turn, and in a transaction, which could be undone.
    fn set(&self, key: &[u8], value: Option<&[u8]>) -> Result<()>;

    /// Visits those whose keys begin so, in the order of their keys.
    fn each(&self, prefix: &[u8], visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<()>;
}

/// The right by which a socket was opened, if it was opened by one.
pub(crate) trait Lease {
    /// Tells whether its grant was taken back.
    fn is_cut(&self) -> bool;
}

/// The part of one socket that survives.
pub(crate) struct Surviving {
    id: Id,
    /// The number of the way that is good.
    way: Cell<u64>,
    /// No way leads to the client now.
    is_away: Cell<bool>,
    /// The frames that the gateway hasn't acknowledged, with their bytes.
    waiting: RefCell<VecDeque<(u64, usize)>>,
    waiting_bytes: Cell<usize>,
    /// The last frame that it has acknowledged.
    acknowledged: Cell<u64>,
    /// The last frame that is stored no more.
    forgotten: Cell<u64>,
    /// The grant by which it was resumed.
    lease: RefCell<Option<Rc<dyn Lease>>>,
}

/// A frame of the object.
pub(super) enum Frame<'a> {
    Text(&'a str),
    Data(&'a [u8]),
    Close(u16, &'a str),
}

/// The numbers of a socket, as they are stored.
#[derive(Debug, Default, PartialEq, Eq)]
struct State {
    /// The last message whose handling began.
    begun: u64,
    /// The last frame that was sent.
    sent: u64,
    /// The messages whose handling hasn't ended.
    unfinished: Vec<u64>,
}

impl State {
    fn decode(record: &[u8]) -> Option<Self> {
        let (words, []) = record.as_chunks::<8>() else { return None };
        let mut words = words.iter().map(|word| u64::from_be_bytes(*word));
        let (begun, sent) = (words.next()?, words.next()?);
        Some(Self { begun, sent, unfinished: words.collect() })
    }

    fn encode(&self) -> Vec<u8> {
        let words = [self.begun, self.sent].into_iter().chain(self.unfinished.iter().copied());
        words.flat_map(u64::to_be_bytes).collect()
    }
}

impl Surviving {
    pub(super) fn new(id: Id) -> Self {
        Self {
            id,
            way: Cell::new(1),
            is_away: Cell::new(false),
            waiting: RefCell::default(),
            waiting_bytes: Cell::default(),
            acknowledged: Cell::default(),
            forgotten: Cell::default(),
            lease: RefCell::default(),
        }
    }

    pub(super) fn id(&self) -> &Id {
        &self.id
    }

    fn key(&self, kind: u8) -> Vec<u8> {
        [&self.id[..], &[kind]].concat()
    }

    fn frame_key(&self, number: u64) -> Vec<u8> {
        [&self.id[..], &[FRAME], &number.to_be_bytes()].concat()
    }

    fn state(&self, records: &dyn Records) -> Result<State> {
        let record = records.get(&self.key(STATE))?.ok_or_else(over)?;
        State::decode(&record).ok_or_else(corrupt)
    }

    fn set_state(&self, records: &dyn Records, state: &State) -> Result<()> {
        records.set(&self.key(STATE), Some(&state.encode()))
    }

    /// Writes all of a new socket down, in the present turn.
    pub(super) fn store(
        &self,
        records: &dyn Records,
        number: u64,
        tags: &[String],
        attachment: &[u8],
    ) -> Result<()> {
        let head = encode_head(number, tags);
        records.set(&self.key(HEAD), Some(&head))?;
        self.store_attachment(records, attachment)?;
        self.set_state(records, &State::default())
    }

    pub(super) fn store_attachment(&self, records: &dyn Records, bytes: &[u8]) -> Result<()> {
        records.set(&self.attachment_key(), Some(bytes))
    }

    /// The key of the record that has its attachment.
    pub(super) fn attachment_key(&self) -> Vec<u8> {
        self.key(ATTACHMENT)
    }

    /// Nothing of the socket is left when the present turn is durable.
    pub(super) fn delete(&self, records: &dyn Records) -> Result<()> {
        let mut keys = Vec::new();
        records.each(&self.id, &mut |key, _| keys.push(key.to_vec()))?;
        keys.iter().try_for_each(|key| records.set(key, None))
    }

    /// A message came. False if it came before; else it begins in the present turn.
    ///
    /// # Errors
    /// When messages before it didn't come.
    pub(super) fn begin(&self, records: &dyn Records, number: u64) -> Result<bool> {
        let mut state = self.state(records)?;
        if number <= state.begun {
            return Ok(false);
        }
        if number > state.begun + 1 {
            return Err(disconnected("messages before this one are missing: resume the socket"));
        }
        state.begun = number;
        state.unfinished.push(number);
        self.set_state(records, &state)?;
        Ok(true)
    }

    /// A message was handled to its end, in the present turn.
    pub(super) fn finish(&self, records: &dyn Records, number: u64) -> Result<()> {
        let mut state = self.state(records)?;
        state.unfinished.retain(|unfinished| *unfinished != number);
        self.set_state(records, &state)
    }

    /// Stores a frame in the present turn, and returns its number.
    pub(super) fn keep(&self, records: &dyn Records, frame: &Frame<'_>) -> Result<u64> {
        let record = frame.encode();
        let bytes = record.len() + FRAME_BYTES;
        let (waiting, waiting_bytes) = (self.waiting.borrow().len(), self.waiting_bytes.get());
        let is_full = waiting_bytes + bytes > SURVIVING_UNSENT_BYTES_MAX;
        if waiting >= SURVIVING_UNSENT_MAX || waiting > 0 && is_full {
            return Err(overloaded("too much waits for the socket's client: it was cut"));
        }
        let mut state = self.state(records)?;
        state.sent += 1;
        records.set(&self.frame_key(state.sent), Some(&record))?;
        self.set_state(records, &state)?;
        self.waits(state.sent, bytes);
        self.forget(records)?;
        Ok(state.sent)
    }

    fn waits(&self, number: u64, bytes: usize) {
        self.waiting.borrow_mut().push_back((number, bytes));
        self.waiting_bytes.set(self.waiting_bytes.get() + bytes);
    }

    /// The gateway has all frames up to this one.
    pub(super) fn acknowledge(&self, number: u64) {
        self.acknowledged.set(self.acknowledged.get().max(number));
        let mut waiting = self.waiting.borrow_mut();
        while let Some((_, bytes)) = waiting.pop_front_if(|(waits, _)| *waits <= number) {
            self.waiting_bytes.set(self.waiting_bytes.get() - bytes);
        }
    }

    /// Frames that the gateway has are removed in a turn that writes anyway.
    fn forget(&self, records: &dyn Records) -> Result<()> {
        for number in self.forgotten.get() + 1..=self.acknowledged.get() {
            records.set(&self.frame_key(number), None)?;
        }
        self.forgotten.set(self.forgotten.get().max(self.acknowledged.get()));
        Ok(())
    }

    /// It goes on by another way, whose gateway has all frames up to `received`. Gives the number
    /// of the last message that has begun, and those of the frames that the gateway hasn't got.
    pub(super) fn go_on(
        &self,
        records: &dyn Records,
        received: u64,
        lease: Option<Rc<dyn Lease>>,
    ) -> Result<(u64, RangeInclusive<u64>)> {
        let state = self.state(records)?;
        self.acknowledge(received.min(state.sent));
        self.forget(records)?;
        self.way.set(self.way.get() + 1);
        self.is_away.set(false);
        self.lease.replace(lease);
        Ok((state.begun, self.forgotten.get() + 1..=state.sent))
    }

    /// The record of a frame that the gateway hasn't got.
    pub(super) fn frame(&self, records: &dyn Records, number: u64) -> Result<Vec<u8>> {
        records.get(&self.frame_key(number))?.ok_or_else(corrupt)
    }

    /// The number of the way that is good now.
    pub(crate) fn way(&self) -> u64 {
        self.way.get()
    }

    pub(crate) fn is_away(&self) -> bool {
        self.is_away.get()
    }

    /// The way broke.
    pub(super) fn goes_away(&self) {
        self.is_away.set(true);
    }

    pub(super) fn is_cut(&self) -> bool {
        self.lease.borrow().as_ref().is_some_and(|lease| lease.is_cut())
    }
}

pub(super) fn corrupt() -> capnp::Error {
    failed("the records of a socket are corrupt")
}

fn encode_head(number: u64, tags: &[String]) -> Vec<u8> {
    let mut head = number.to_be_bytes().to_vec();
    for tag in tags {
        head.extend((tag.len() as u16).to_be_bytes());
        head.extend(tag.as_bytes());
    }
    head
}

fn decode_head(record: &[u8]) -> Option<(u64, Vec<String>)> {
    let mut cursor = Cursor::new(record);
    let number = u64::from_be_bytes(cursor.array()?);
    let mut tags = Vec::new();
    while let Some(length) = cursor.array() {
        let tag = cursor.slice(u16::from_be_bytes(length).into())?;
        tags.push(String::from_utf8(tag.to_vec()).ok()?);
    }
    cursor.rest().is_empty().then_some((number, tags))
}

impl<'a> Frame<'a> {
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Text(text) => [&[0], text.as_bytes()].concat(),
            Self::Data(data) => [&[1], *data].concat(),
            Self::Close(code, why) => [&[2], &code.to_be_bytes()[..], why.as_bytes()].concat(),
        }
    }

    pub(super) fn decode(record: &'a [u8]) -> Option<Self> {
        let text = |bytes| std::str::from_utf8(bytes).ok();
        match record.split_first()? {
            (0, bytes) => Some(Self::Text(text(bytes)?)),
            (1, bytes) => Some(Self::Data(bytes)),
            (2, bytes) => {
                let (code, why) = bytes.split_first_chunk()?;
                Some(Self::Close(u16::from_be_bytes(*code), text(why)?))
            }
            _ => None,
        }
    }

    /// Makes the call.
    pub(super) fn send(&self, down: &web_socket::Client, number: u64) -> Promise<(), capnp::Error> {
        let down: numbered_socket::Client = FromClientHook::new(down.as_client_hook().add_ref());
        match self {
            Self::Text(text) => {
                let mut send = down.text_at_request();
                send.get().set_number(number);
                send.get().set_text(text);
                Promise::from_future(send.send().promise.map_ok(drop))
            }
            Self::Data(data) => {
                let mut send = down.data_at_request();
                send.get().set_number(number);
                send.get().set_data(data);
                Promise::from_future(send.send().promise.map_ok(drop))
            }
            Self::Close(code, reason) => {
                let mut close = down.close_at_request();
                close.get().set_number(number);
                close.get().set_code(*code);
                close.get().set_reason(reason);
                Promise::from_future(close.send().promise.map_ok(drop))
            }
        }
    }
}

/// The sockets that are stored: each with its number, tags and attachment, and whether a message of
/// it was cut short.
pub(super) fn stored(records: &dyn Records) -> Result<Vec<Stored>> {
    let mut found: Vec<Option<Stored>> = Vec::new();
    let mut last = None;
    // In the order of their keys: each head comes first.
    records.each(&[], &mut |key, record| {
        let Some((id, [kind, number @ ..])) = key.split_first_chunk() else { return };
        if *kind == HEAD {
            last = Some(*id);
            let head = decode_head(record);
            found.push(head.map(|(number, tags)| Stored::new(*id, number, tags)));
        }
        let Some(Some(stored)) = found.last_mut().filter(|_| last == Some(*id)) else { return };
        match *kind {
            ATTACHMENT => stored.attachment = record.to_vec(),
            STATE => {
                let state = State::decode(record).unwrap_or_default();
                stored.is_cut_short = !state.unfinished.is_empty();
                stored.surviving.forgotten.set(state.sent);
                stored.surviving.acknowledged.set(state.sent);
            }
            FRAME => {
                let Ok(number) = number.try_into().map(u64::from_be_bytes) else { return };
                let before = stored.surviving.forgotten.get().min(number - 1);
                stored.surviving.forgotten.set(before);
                stored.surviving.acknowledged.set(before);
                stored.surviving.waits(number, record.len() + FRAME_BYTES);
            }
            _ => {}
        }
    })?;
    found.into_iter().map(|stored| stored.ok_or_else(corrupt)).collect()
}

/// A socket as it was stored.
pub(super) struct Stored {
    pub(super) surviving: Surviving,
    pub(super) number: u64,
    pub(super) tags: Vec<String>,
    pub(super) attachment: Vec<u8>,
    pub(super) is_cut_short: bool,
}

impl Stored {
    fn new(id: Id, number: u64, tags: Vec<String>) -> Self {
        let surviving = Surviving::new(id);
        surviving.goes_away();
        Self { surviving, number, tags, attachment: Vec::new(), is_cut_short: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_as_they_went_and_others_are_refused() {
        let state = State { begun: 7, sent: 1 << 40, unfinished: vec![5, 7] };
        assert_eq!(State::decode(&state.encode()).unwrap(), state);
        assert_eq!((State::decode(&[0; 15]), State::decode(&[0; 8])), (None, None));
        for tags in [vec![], vec!["a".to_owned(), String::new(), "ü".repeat(128)]] {
            let head = encode_head(9, &tags);
            assert_eq!(decode_head(&head), Some((9, tags)));
            assert_eq!(decode_head(&[&head[..], b"x"].concat()), None);
        }
        assert_eq!(decode_head(&encode_head(1, &["tag".into()])[..11]), None);
        for frame in [Frame::Text("ü"), Frame::Data(&[0, 255]), Frame::Close(4001, "why")] {
            let record = frame.encode();
            let again = Frame::decode(&record).unwrap();
            assert_eq!(again.encode(), record);
        }
        for wrong in [&[][..], &[3], &[0, 0xff], &[2, 0]] {
            assert!(Frame::decode(wrong).is_none(), "{wrong:?}");
        }
    }
}
