//! Calls that a peer reflects, against the same calls made by the peer itself.
//!
//! The C++ implementation reflects a call when the promise that we called turned out to be an
//! object of ours: it calls that object with `sendResultsTo.yourself`, and answers with
//! `takeFromOtherQuestion`. capnp-rpc never does that, so the peer here exchanges raw messages over
//! a socket pair, on this thread.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use capnp::message::{Builder, HeapAllocator, ReaderOptions};
use capnp::traits::{HasTypeId, ImbueMut};
use capnp_rpc::rpc_capnp::{cap_descriptor, message, return_};
use capnp_rpc::rpc_twoparty_capnp::Side;
use capstead_client::{Connection, Limits};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, oneshot};

use super::bare::echo;
use super::measure::drive;
use super::row::{Row, Target};
use super::rpc::{IN_FLIGHT, read};
use super::{Bench, note};
use capstead::counter_capnp::counter;
use capstead::{Result, failed};

/// The name of the row that this module measures.
pub(crate) const NAME: &str = "rpc-reflected";

/// The ordinal of `Counter.read`.
const READ: u16 = 2;
/// The peer's number for its promise.
const PROMISE: u32 = 5;
/// Enough for the messages here, which have about 100 bytes.
const FIRST_WORDS: u32 = 64;
const WORDS_MAX: usize = 1 << 10;

/// Measures the row.
///
/// # Errors
/// When a call fails.
pub(crate) async fn measure(bench: &mut Bench) -> Result<()> {
    let (peer, promise, _connection) = Peer::of(echo()).await?;
    let baseline = async |until| drive(IN_FLIGHT, until, async |_| peer.read().await).await;
    let measured = async |until| drive(IN_FLIGHT, until, async |_| read(&promise).await).await;
    let rounds = bench.plan.alternate(NAME, baseline, measured).await?;
    // Six messages instead of three.
    bench.add(Row::rates(NAME, &rounds).target(Target::AtLeast(0.4)));
    Ok(())
}

/// A peer that holds an object of ours, and gave us a promise that turned out to be that object.
struct Peer {
    /// Our number for the object.
    object: Cell<u32>,
    next_question: Cell<u32>,
    /// The peer's unanswered questions; none once the connection has ended.
    waiting: RefCell<Option<HashMap<u32, oneshot::Sender<Option<u32>>>>>,
    /// The number of our calls that it passed back to us.
    reflected: Cell<u64>,
    unsent: RefCell<Vec<u8>>,
    to_send: Notify,
}

impl Peer {
    /// Connects a vat that offers `object` to a peer; also returns the vat's view of the promise.
    async fn of(object: counter::Client) -> Result<(Rc<Self>, counter::Client, Connection)> {
        let (near, far) = UnixStream::pair()?;
        let offered = Some(object.client);
        let connection = Connection::new(near, Side::Client, offered, Limits::default())?;
        let peer = Rc::new(Self {
            object: Cell::new(0),
            next_question: Cell::new(0),
            waiting: RefCell::new(Some(HashMap::new())),
            reflected: Cell::new(0),
            unsent: RefCell::default(),
            to_send: Notify::new(),
        });
        let (reads, writes) = far.into_split();
        let driven = peer.clone();
        // The task ends with the connection.
        tokio::task::spawn_local(async move {
            let ended = tokio::select! {
                ended = driven.hear(reads) => ended,
                ended = driven.speak(writes) => ended,
            };
            // Ends the waits for answers that can't come any more.
            driven.waiting.take();
            if let Err(error) = ended {
                note(&format!("the peer that reflects calls ended: {error}"));
            }
        });
        let answer = peer.ask(|question, message| {
            message.init_bootstrap().set_question_id(question);
        });
        let object = answer.await?.ok_or_else(|| failed("the vat offers nothing"))?;
        peer.object.set(object);
        let promise = connection.bootstrap();
        read(&promise).await?;
        Ok((peer, promise, connection))
    }

    /// Makes a call of the peer's own.
    async fn read(&self) -> Result<()> {
        let object = self.object.get();
        self.ask(|question, message| call(message, question, object)).await.map(drop)
    }

    /// Asks a question; the answer may hold a capability.
    async fn ask(&self, write: impl FnOnce(u32, message::Builder)) -> Result<Option<u32>> {
        let question = self.next_question();
        let (answered, answer) = oneshot::channel();
        match &mut *self.waiting.borrow_mut() {
            Some(waiting) => drop(waiting.insert(question, answered)),
            None => return Err(failed("the peer ended")),
        }
        self.say(|message| write(question, message))?;
        answer.await.map_err(|_| failed("the peer ended"))
    }

    fn next_question(&self) -> u32 {
        self.next_question.replace(self.next_question.get() + 1)
    }

    fn say(&self, write: impl FnOnce(message::Builder)) -> Result<()> {
        let mut message = Builder::new(HeapAllocator::new().first_segment_words(FIRST_WORDS));
        write(message.init_root());
        capnp::serialize::write_message(&mut *self.unsent.borrow_mut(), &message)?;
        self.to_send.notify_one();
        Ok(())
    }

    /// Writes the queued messages, as many together as there are.
    async fn speak(&self, mut stream: OwnedWriteHalf) -> Result<()> {
        loop {
            self.to_send.notified().await;
            let unsent = self.unsent.take();
            stream.write_all(&unsent).await?;
        }
    }

    /// Answers incoming messages until the vat ends the connection.
    async fn hear(&self, stream: OwnedReadHalf) -> Result<()> {
        let (mut stream, mut bytes) = (BufReader::new(stream), Vec::new());
        while read_message(&mut stream, &mut bytes).await? {
            let message = capnp::serialize::read_message(&bytes[..], ReaderOptions::new())?;
            let message: message::Reader = message.get_root()?;
            if let message::Abort(_) = message.which()? {
                break;
            }
            self.answer(message)?;
        }
        Ok(())
    }

    fn answer(&self, message: message::Reader) -> Result<()> {
        match message.which()? {
            message::Bootstrap(asked) => {
                let question = asked?.get_question_id();
                self.say(|message| promise(message, question))
            }
            message::Call(asked) => {
                let (asked, question) = (asked?.get_question_id(), self.next_question());
                self.reflected.set(self.reflected.get() + 1);
                self.say(|message| reflect(message, question, self.object.get()))?;
                self.say(|message| {
                    let mut answer = message.init_return();
                    answer.set_answer_id(asked);
                    answer.set_take_from_other_question(question);
                })
            }
            message::Return(answer) => {
                let answer = answer?;
                let question = answer.get_answer_id();
                let offered = match answer.which()? {
                    return_::Results(payload) => match payload?.get_cap_table()?.iter().next() {
                        Some(cap) => match cap.which()? {
                            cap_descriptor::SenderHosted(id) => Some(id),
                            _ => return Err(failed("an answer has a capability of no use")),
                        },
                        None => None,
                    },
                    return_::ResultsSentElsewhere(()) => None,
                    _ => return Err(failed("a call failed")),
                };
                self.say(|message| {
                    let mut finish = message.init_finish();
                    finish.set_question_id(question);
                    finish.set_release_result_caps(false);
                })?;
                let mut waiting = self.waiting.borrow_mut();
                if let Some(waiting) = waiting.as_mut().and_then(|all| all.remove(&question)) {
                    // The caller may be gone.
                    let _ = waiting.send(offered);
                }
                Ok(())
            }
            // The peer keeps nothing that these end.
            message::Finish(_) | message::Release(_) => Ok(()),
            _ => Err(failed("a message came that nothing here leads to")),
        }
    }
}

/// Reads the bytes of one message, and none at the end of the stream.
async fn read_message(stream: &mut BufReader<OwnedReadHalf>, bytes: &mut Vec<u8>) -> Result<bool> {
    bytes.clear();
    if stream.fill_buf().await?.is_empty() {
        return Ok(false);
    }
    // The number of segments less one, their lengths in words, and the segments.
    let last = stream.read_u32_le().await?;
    bytes.extend_from_slice(&last.to_le_bytes());
    let mut words = 0;
    for _ in 0..=last {
        let length = stream.read_u32_le().await?;
        bytes.extend_from_slice(&length.to_le_bytes());
        words += length as usize;
        if words > WORDS_MAX || bytes.len() > WORDS_MAX {
            return Err(failed("a message is larger than any here"));
        }
    }
    let read = bytes.len();
    bytes.resize(read.next_multiple_of(8) + words * 8, 0);
    stream.read_exact(&mut bytes[read..]).await?;
    Ok(true)
}

fn promise(message: message::Builder, question: u32) {
    let mut answer = message.init_return();
    answer.set_answer_id(question);
    let mut results = answer.init_results();
    // Only its number gets into the message.
    let (mut table, nothing) = (Vec::new(), capnp_rpc::new_broken_cap(failed("a number")));
    let mut content = results.reborrow().get_content();
    content.imbue_mut(&mut table);
    content.set_as_capability(nothing.hook);
    results.init_cap_table(1).get(0).set_sender_promise(PROMISE);
}

fn call(message: message::Builder, question: u32, object: u32) {
    let mut call = message.init_call();
    call.set_question_id(question);
    call.set_interface_id(counter::Client::TYPE_ID);
    call.set_method_id(READ);
    call.reborrow().init_target().set_imported_cap(object);
    call.init_params().init_content().init_as::<counter::read_params::Builder>();
}

fn reflect(mut message: message::Builder, question: u32, object: u32) {
    call(message.reborrow(), question, object);
    if let Ok(message::Call(Ok(call))) = message.which() {
        call.init_send_results_to().set_yourself(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Until;
    use capstead_client::http_capnp::http_service;

    /// Counts its reads.
    struct Read(Rc<Cell<i64>>);

    impl counter::Server for Read {
        async fn read(
            self: Rc<Self>,
            _: counter::ReadParams,
            mut results: counter::ReadResults,
        ) -> Result<()> {
            self.0.set(self.0.get() + 1);
            results.get().set_value(self.0.get());
            Ok(())
        }
    }

    impl http_service::Server for Read {}

    #[tokio::test(flavor = "local")]
    async fn the_peer_reflects_our_calls_to_our_object_and_makes_its_own() {
        let reads = Rc::new(Cell::new(0));
        let object = capnp_rpc::new_client(Read(reads.clone()));
        let (peer, promise, _connection) = Peer::of(object).await.unwrap();
        drive(8, Until::Calls(100), async |_| read(&promise).await).await.unwrap();
        assert_eq!((reads.get(), peer.reflected.get()), (101, 101));
        drive(8, Until::Calls(100), async |_| peer.read().await).await.unwrap();
        assert_eq!((reads.get(), peer.reflected.get()), (201, 101));
        let reply = promise.read_request().send().promise.await.unwrap();
        assert_eq!(reply.get().unwrap().get_value(), 202);
    }

    #[tokio::test(flavor = "local")]
    async fn calls_fail_when_the_connection_is_over() {
        let (peer, promise, connection) = Peer::of(echo()).await.unwrap();
        connection.disconnect().await;
        assert!(read(&promise).await.is_err());
        assert!(peer.read().await.is_err());
    }
}
