//! The callers behind a connection between parts of one system, and the bytes that each has to
//! read.
//!
//! A host passes on the calls of many clients to another host. They all arrive there by one
//! connection, and one client that asks for gigabytes would fill it for all. So each call names its
//! caller, by a number that the sender chose, and each caller has an [`Outlet`] of its own. A large
//! answer counts in that outlet until the sender has passed it on: the answer carries the number of
//! a receipt, which the sender gives back.
//!
//! Cap'n Proto has no headers for this. The numbers are in bytes of `Call` and `Return` that the
//! protocol doesn't use, and the receipt is a message of a kind that is otherwise unused. Another
//! such message says that a caller is gone.
//!
//! **Invariant:** as with the [hop count](super::hops), no other peer is told any of this, or
//! believed.
//! **Invariant:** each receipt is given back once, no matter what happens to the answer, unless the
//! connection ends.

use super::GuardState;
use super::made;
use super::outlet::{Outlet, Unread};
use super::scatter::ByNumber;
use capnp::message::{Builder, HeapAllocator};
use capnp::raw::get_struct_data_section;
use capnp_rpc::rpc_capnp::{accept, message, return_};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::task::Waker;
use tokio::io::{AsyncRead, AsyncWrite};

/// The bytes that a caller may leave unread before its next call has to wait.
const CALLER_BYTES_MAX: usize = 4 << 20;

/// Smaller answers have no receipt, which would cost more than they do.
const RECEIPT_BYTES: usize = 16 << 10;

/// The position of the receipt's number in the data of `Return`, after the last field.
const PLACE: usize = 12;

/// The least number of callers that are remembered.
const CALLERS_KEPT: usize = 64;

/// The callers and receipts of a connection; the head of the file explains them.
#[derive(Default)]
pub(super) struct Callers {
    by_number: ByNumber<Rc<Outlet>>,
    /// Above this number of callers, those without a call or an unread answer are forgotten.
    most: usize,
    /// The outlets of the peer's calls that have no answer yet.
    calls: ByNumber<Rc<Outlet>>,
    /// Answers that the peer has not passed on, by receipt.
    unread: ByNumber<Unread>,
    last: u32,
    /// Receipts that are to be given back to the peer.
    receipts: Rc<Receipts>,
}

/// The receipts of answers that were passed on, to be given back.
#[derive(Default)]
struct Receipts {
    numbers: RefCell<Vec<u32>>,
    driver: Cell<Option<Waker>>,
}

/// Tells an answer's sender, when dropped, that the answer was passed on.
pub struct Receipt {
    number: u32,
    to: Rc<Receipts>,
}

impl Drop for Receipt {
    fn drop(&mut self) {
        self.to.numbers.borrow_mut().push(self.number);
        if let Some(driver) = self.to.driver.take() {
            driver.wake();
        }
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Receipt").finish_non_exhaustive()
    }
}

impl Callers {
    /// Notes that a call of this caller begins.
    pub(super) fn begin(&mut self, call: u32, caller: u32, connection: &Rc<Outlet>) -> Rc<Outlet> {
        if self.by_number.len() > self.most {
            self.by_number.retain(|_, outlet| Rc::strong_count(outlet) > 1);
            self.most = CALLERS_KEPT.max(2 * self.by_number.len());
        }
        let new = || Outlet::of_caller(connection, CALLER_BYTES_MAX);
        let outlet = self.by_number.entry(caller).or_insert_with(new).clone();
        self.calls.insert(call, outlet.clone());
        outlet
    }

    /// Notes that a call is answered. Returns the number of the receipt to send with the answer.
    fn answered(&mut self, call: u32, bytes: usize) -> Option<u32> {
        let outlet = self.calls.remove(&call).filter(|_| bytes >= RECEIPT_BYTES)?;
        loop {
            self.last = self.last.wrapping_add(1);
            if self.last != 0 && !self.unread.contains_key(&self.last) {
                break;
            }
        }
        self.unread.insert(self.last, outlet.sends(bytes));
        Some(self.last)
    }

    /// The call's answer goes elsewhere.
    pub(super) fn forget(&mut self, call: u32) {
        self.calls.remove(&call);
    }

    /// The peer gave a receipt back.
    pub(super) fn was_passed_on(&mut self, receipt: u32) {
        self.unread.remove(&receipt);
    }

    /// The caller's connection has ended: none of its calls begins any more.
    pub(super) fn is_gone(&mut self, caller: u32) {
        if let Some(outlet) = self.by_number.remove(&caller) {
            outlet.close();
        }
    }

    /// The receipt for an answer that arrived, if the answer asks for one.
    pub(super) fn receipt(&self, answer: return_::Reader) -> Option<Receipt> {
        let bytes = get_struct_data_section(answer).get(PLACE..PLACE + 4)?.try_into().ok()?;
        let number = u32::from_le_bytes(bytes);
        (number != 0).then(|| Receipt { number, to: self.receipts.clone() })
    }

    /// The connection has ended.
    pub(super) fn close(&mut self) {
        let Self { by_number, unread, calls, .. } = std::mem::take(self);
        for outlet in by_number.values() {
            outlet.close();
        }
        drop((unread, calls));
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> GuardState<S> {
    /// Writes the number of a receipt, if there is one, into the answer that was put on the wire
    /// last.
    pub(super) fn ask_for_receipt(
        &mut self,
        message: &Builder<HeapAllocator>,
        bytes: usize,
    ) -> capnp::Result<()> {
        if self.callers.calls.is_empty() {
            return Ok(());
        }
        if let Ok(message::Return(answer)) =
            message.get_root_as_reader::<message::Reader>()?.which()
        {
            let answer = answer?;
            if let Some(receipt) = self.callers.answered(answer.get_answer_id(), bytes)
                && let Some(place) = get_struct_data_section(answer).get(PLACE..PLACE + 4)
            {
                self.wire.patch_last(message, place.as_ptr(), &receipt.to_le_bytes());
            }
        }
        Ok(())
    }

    /// Hands the receipt of an arriving answer, if it has one, to the code that passes the answer
    /// on.
    pub(super) fn take_receipt(&self, answer: return_::Reader) {
        if self.limits.tells_hops {
            let receipt = self.callers.receipt(answer);
            self.tables.owes_receipt(answer.get_answer_id(), receipt);
        }
    }

    /// Takes back a receipt, or the news that a caller is gone.
    pub(super) fn hear_of_callers(&mut self, accept: accept::Reader) {
        let number = accept.get_question_id();
        if accept.get_embargo() {
            self.callers.is_gone(number);
        } else {
            self.callers.was_passed_on(number);
        }
    }

    /// Gives back the receipts of answers that were passed on, and tells which callers are gone.
    pub(super) fn give_receipts(&mut self, driver: &Waker) {
        let receipts = self.callers.receipts.numbers.take();
        for receipt in receipts {
            if self.is_open() {
                self.wire.push(&made::passed_on(receipt));
            }
        }
        for caller in self.outlet.take_gone(driver) {
            if self.is_open() {
                self.wire.push(&made::gone(caller));
            }
        }
        self.callers.receipts.driver.set(Some(driver.clone()));
    }
}
