//! How instances begin: an object is woken from storage by its first call.
//!
//! Invariants:
//! - `wake` ends before the first call starts; calls that arrive meanwhile wait in their order.
//! - An object that could not wake leaves no place behind that nobody holds.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::context::Context;
use super::instance::Instance;
use super::run::{Cause, Ended, Turns};
use super::slot::{Slot, Start, State};
use super::vat::Vat;
use crate::error::{Result, of_class};
use crate::membrane::Dispatch;

/// The number of the task that wakes an instance; calls count from 0 on.
const WAKING: u64 = u64::MAX;

/// What became of a `wake`.
type Woken = std::result::Result<Result<Rc<dyn Dispatch>>, Ended>;

impl Vat {
    /// Wakes the object, for which calls wait in its slot already.
    pub(super) fn wake(self: &Rc<Self>, slot: &Rc<Slot>) {
        let instance = match self.make_room().and_then(|()| Instance::new(self, slot.birth.clone()))
        {
            Ok(instance) => instance,
            Err(error) => {
                for start in slot.end() {
                    start.call.reply.send(Err(error.clone()));
                }
                return;
            }
        };
        slot.waking.replace(Some(instance.clone()));
        self.metrics.wakes_total.add(1);
        let mut waking = slot.birth.class.wake(Context::new(instance.clone()));
        let mut cx = std::task::Context::from_waker(Waker::noop());
        let turns = Turns { instance: &instance, cause: Cause::default(), future: &mut waking };
        match Pin::new(&mut { turns }).poll(&mut cx) {
            Poll::Ready(woken) => self.woken(slot, instance, woken),
            Poll::Pending => {
                let (vat, slot) = (self.clone(), slot.clone());
                // Ends with `wake`, whose callers wait for it.
                let owner = instance.clone();
                let task = tokio::task::spawn_local(async move {
                    let woken =
                        Turns { instance: &instance, cause: Cause::default(), future: waking }
                            .await;
                    vat.busy(|| vat.woken(&slot, instance, woken));
                    vat.release(&slot);
                });
                owner.tasks.borrow_mut().insert(WAKING, task.abort_handle());
            }
        }
    }

    fn woken(self: &Rc<Self>, slot: &Rc<Slot>, instance: Rc<Instance>, woken: Woken) {
        if !slot.ends_waking(&instance) {
            return; // its callers were told when it was ended
        }
        let server = match woken {
            Ok(Ok(server)) => server,
            Ok(Err(error)) => return sleep_again(slot, &instance, &of_class(error)),
            Err(Ended) => return sleep_again(slot, &instance, &instance.ended()),
        };
        self.metrics.objects_awake.add(1);
        self.keep_warm(&instance);
        let State::Waking(waiting) = slot.state.replace(State::Awake(instance, server)) else {
            unreachable!("only the end of waking ends waking");
        };
        self.queue_first(waiting);
    }
}

/// The object could not wake: those who wait are told, after what `wake` wrote is durable.
fn sleep_again(slot: &Slot, instance: &Instance, error: &capnp::Error) {
    for Start { call, under_way, .. } in slot.end() {
        let error = error.clone();
        instance.gate.reply(move |on_its_way| {
            call.reply.keep((under_way, on_its_way));
            call.reply.send(Err(error));
        });
    }
    instance.end("could not wake");
}
