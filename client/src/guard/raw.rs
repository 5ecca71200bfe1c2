//! A peer without an RPC system, which sends raw messages to a server, for the guard's tests.

use super::*;
use crate::connection::Connection;
use crate::restorer_capnp::restorer;
use capnp::message::Builder;
use capnp::message::ReaderOptions;
use capnp::traits::HasTypeId;
use capnp_rpc::rpc_capnp::payload;
use capnp_rpc::rpc_twoparty_capnp::Side;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::Semaphore;

/// `restore` gives a new capability each time. `locate` repeats its text: never for "never", with
/// permission for "open", and else at once; it answers "big" with 1 MiB. `challenge` succeeds.
#[derive(Default)]
pub(super) struct Desk {
    pub(super) begun: RefCell<Vec<String>>,
    allowed: Cell<Option<&'static Semaphore>>,
}

impl restorer::Server for Desk {
    async fn restore(
        self: Rc<Self>,
        _: restorer::RestoreParams,
        mut results: restorer::RestoreResults,
    ) -> capnp::Result<()> {
        self.begun.borrow_mut().push("restore".into());
        let another: restorer::Client = capnp_rpc::new_client(Self::default());
        results.get().init_cap().set_as_capability(another.client.hook);
        Ok(())
    }

    async fn locate(
        self: Rc<Self>,
        params: restorer::LocateParams,
        mut results: restorer::LocateResults,
    ) -> capnp::Result<()> {
        let text = params.get()?.get_sturdy_ref()?.to_str()?;
        self.begun.borrow_mut().push(text.to_owned());
        match text {
            "never" => std::future::pending().await,
            "big" => results.get().set_address("x".repeat(1 << 20)),
            _ => results.get().set_address(text),
        }
        if text.starts_with("open")
            && let Some(allowed) = self.allowed.get()
        {
            allowed.acquire().await.unwrap().forget();
        }
        Ok(())
    }

    async fn challenge(
        self: Rc<Self>,
        _: restorer::ChallengeParams,
        _: restorer::ChallengeResults,
    ) -> capnp::Result<()> {
        self.begun.borrow_mut().push("challenge".into());
        Ok(())
    }
}

/// Longer than any test here takes.
pub(super) const DEADLINE: Duration = Duration::from_mins(2);

/// A server, and a peer that sends it raw messages.
pub(super) struct Raw {
    pub(super) near: DuplexStream,
    pub(super) server: Connection,
    pub(super) guard: Rc<RefCell<GuardState<DuplexStream>>>,
    pub(super) bites: Arc<Bites>,
    pub(super) desk: Rc<Desk>,
    pub(super) allowed: &'static Semaphore,
}

pub(super) type Write = Box<dyn Fn(message::Builder)>;

impl Raw {
    pub(super) fn new(limits: Limits) -> Self {
        Self::with_room(limits, 64 << 10)
    }

    /// A server to which the peer is a stranger.
    pub(super) fn of_stranger(limits: Limits, budget: Budget) -> Self {
        Self::of_state(256 << 10, |far, bites| {
            GuardState::new(far, limits, bites).of_stranger(budget)
        })
    }

    /// Counts the memory that the connection holds in this budget.
    pub(super) fn counts_in(&self, budget: &Budget) {
        self.guard.borrow_mut().share = BudgetPart::of(budget.clone());
    }

    /// The stream buffers at most `room` bytes that the other end hasn't read.
    pub(super) fn with_room(limits: Limits, room: usize) -> Self {
        Self::of_state(room, |far, bites| GuardState::new(far, limits, bites))
    }

    fn of_state(
        room: usize,
        state: impl FnOnce(DuplexStream, Arc<Bites>) -> GuardState<DuplexStream>,
    ) -> Self {
        let (near, far) = duplex(room);
        // The handlers outlive the test.
        let allowed: &'static Semaphore = Box::leak(Box::new(Semaphore::new(0)));
        let desk = Rc::new(Desk { allowed: Cell::new(Some(allowed)), ..Desk::default() });
        let offered: restorer::Client = capnp_rpc::new_client_from_rc(desk.clone());
        let bites = Arc::<Bites>::default();
        let guard = Rc::new(RefCell::new(state(far, bites.clone())));
        let offered = Some(offered.client);
        let server = Connection::over(guard.clone(), Side::Server, offered).unwrap();
        Self { near, server, guard, bites, desk, allowed }
    }

    pub(super) async fn send(&mut self, writes: &[Write]) {
        for write in writes {
            let mut message = Builder::new_default();
            write(message.init_root());
            let bytes = capnp::serialize::write_message_to_words(&message);
            self.near.write_all(&bytes).await.unwrap();
        }
        settle().await;
    }

    pub(super) fn begun(&self) -> usize {
        self.desk.begun.borrow().len()
    }

    /// Reads until the server ends the connection; returns its reason.
    pub(super) async fn aborted(mut self) -> String {
        let mut bytes = Vec::new();
        let read = self.near.read_to_end(&mut bytes);
        tokio::time::timeout(DEADLINE, read).await.expect("it ends").unwrap();
        let mut rest = &bytes[..];
        let mut reason = None;
        while !rest.is_empty() {
            let message =
                capnp::serialize::read_message(&mut rest, ReaderOptions::default()).unwrap();
            if let Ok(message::Abort(Ok(abort))) =
                message.get_root::<message::Reader>().unwrap().which()
            {
                assert_eq!(
                    abort.get_type(),
                    Ok(capnp_rpc::rpc_capnp::exception::Type::Disconnected)
                );
                reason = Some(abort.get_reason().unwrap().to_string().unwrap());
            }
        }
        let reason = reason.expect("the last message says why");
        let closed = self.server.closed().await;
        assert_eq!((closed.kind, closed.extra), (capnp::ErrorKind::Disconnected, reason.clone()));
        reason
    }
}

/// Lets all tasks run until they wait.
pub(super) async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

pub(super) fn bootstrap(question: u32) -> Write {
    Box::new(move |message| message.init_bootstrap().set_question_id(question))
}

#[derive(Clone, Copy)]
pub(super) enum Cap {
    Hosted(u32),
    Promise(u32),
    Ours(u32),
    ThirdParty,
    Answer { question: u32, steps: u32 },
}

impl Cap {
    pub(super) fn write(self, mut cap: capnp_rpc::rpc_capnp::cap_descriptor::Builder) {
        match self {
            Self::Hosted(id) => cap.set_sender_hosted(id),
            Self::Promise(id) => cap.set_sender_promise(id),
            Self::Ours(id) => cap.set_receiver_hosted(id),
            Self::ThirdParty => cap.init_third_party_hosted().set_vine_id(1),
            Self::Answer { question, steps } => {
                let mut answer = cap.init_receiver_answer();
                answer.set_question_id(question);
                answer.init_transform(steps);
            }
        }
    }
}

pub(super) fn write_caps(payload: payload::Builder, caps: &[Cap]) {
    let mut table = payload.init_cap_table(caps.len() as u32);
    for (at, cap) in (0..).zip(caps) {
        cap.write(table.reborrow().get(at));
    }
}

/// `locate(text)`, or the method that the text names, if it is "restore" or "challenge", on export
/// 0.
pub(super) fn call(question: u32, text: &'static str, caps: Vec<Cap>) -> Write {
    call_on(Ok(0), question, text, caps)
}

pub(super) fn call_on(
    target: Result<u32, Cap>,
    question: u32,
    text: &'static str,
    caps: Vec<Cap>,
) -> Write {
    Box::new(move |message| {
        let mut call = message.init_call();
        call.set_question_id(question);
        call.set_interface_id(restorer::Client::TYPE_ID);
        call.set_method_id(match text {
            "restore" => 0,
            "challenge" => 2,
            _ => 1,
        });
        let mut to = call.reborrow().init_target();
        match target {
            Ok(id) => to.set_imported_cap(id),
            Err(Cap::Answer { question, steps }) => {
                let mut answer = to.init_promised_answer();
                answer.set_question_id(question);
                answer.init_transform(steps);
            }
            Err(Cap::Hosted(_) | Cap::Promise(_) | Cap::Ours(_) | Cap::ThirdParty) => {
                panic!("no target")
            }
        }
        let mut params = call.init_params();
        let content = params.reborrow().init_content();
        content.init_as::<restorer::locate_params::Builder>().set_sturdy_ref(text);
        write_caps(params, &caps);
    })
}

pub(super) fn finish(question: u32, releases: bool) -> Write {
    Box::new(move |message| {
        let mut finish = message.init_finish();
        finish.set_question_id(question);
        finish.set_release_result_caps(releases);
    })
}

pub(super) fn release(id: u32, count: u32) -> Write {
    Box::new(move |message| {
        let mut release = message.init_release();
        release.set_id(id);
        release.set_reference_count(count);
    })
}

pub(super) fn resolve(from: u32, to: Cap) -> Write {
    Box::new(move |message| {
        let mut resolve = message.init_resolve();
        resolve.set_promise_id(from);
        to.write(resolve.init_cap());
    })
}

pub(super) fn write(write: impl Fn(message::Builder) + 'static) -> Write {
    Box::new(write)
}

pub(super) async fn bites(limits: Limits, messages: Vec<Write>, limit: Limit, reason: &str) {
    let mut raw = Raw::new(limits);
    // The server may end the connection before it has read everything.
    raw.near.write_all(&bytes_of(&messages)).await.unwrap();
    let bites = raw.bites.clone();
    let aborted = raw.aborted().await;
    assert!(aborted.contains(reason), "{limit:?}: {aborted}");
    for other in Limit::ALL {
        assert_eq!(bites.get(other), u64::from(other == limit), "{limit:?}: {other:?}");
    }
}

pub(super) fn bytes_of(messages: &[Write]) -> Vec<u8> {
    let bytes = messages.iter().flat_map(|write| {
        let mut message = Builder::new_default();
        write(message.init_root());
        capnp::serialize::write_message_to_words(&message)
    });
    bytes.collect()
}

/// The same messages pass.
pub(super) async fn passes(limits: Limits, messages: Vec<Write>) -> Raw {
    let mut raw = Raw::new(limits);
    raw.send(&messages).await;
    assert!(!raw.server.is_closed());
    for limit in Limit::ALL {
        assert_eq!(raw.bites.get(limit), 0, "{limit:?}");
    }
    raw
}

pub(super) fn hosted(ids: std::ops::Range<u32>) -> Vec<Cap> {
    ids.map(Cap::Hosted).collect()
}
