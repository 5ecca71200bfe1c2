//! The order in which a host checks references: a few in each pass of the event loop.
//!
//! All who reach a port may show texts, and a check takes some of the host's time even if it ends
//! with a refusal. If checks ran as soon as they come, a pass would take longer the more strangers
//! there are, and every honest call would wait for several passes. In a queue, only those who
//! restore something wait for each other. Each caller has a row in it, and the rows have their
//! turns one after the other, so that nobody waits for all that another one has asked for.
//!
//! References whose signatures were found good lately have a queue of their own, since clients that
//! connect again show them. So they don't wait for those that nobody knows.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use tokio::sync::oneshot;

use crate::host::base::fault::Fault;

/// The checks from each queue in one pass. Each takes a tenth of a millisecond or less, unless its
/// reference has many links or holders.
const AT_ONCE: usize = 4;

type Turn = oneshot::Sender<()>;

/// The checks that wait, of each caller.
#[derive(Default)]
struct Rows {
    of: HashMap<u32, VecDeque<Turn>>,
    /// The callers that have a row, in the order of their next turns.
    order: VecDeque<u32>,
}

type Queue = RefCell<Rows>;

impl Rows {
    fn push(&mut self, caller: u32, turn: Turn) {
        let row = self.of.entry(caller).or_default();
        if row.is_empty() {
            self.order.push_back(caller);
        }
        row.push_back(turn);
    }

    fn pop(&mut self) -> Option<Turn> {
        let caller = self.order.pop_front()?;
        let row = self.of.get_mut(&caller)?;
        let turn = row.pop_front();
        if row.is_empty() {
            self.of.remove(&caller);
        } else {
            self.order.push_back(caller);
        }
        turn
    }
}

/// The knowledge that a host has of a reference before its check.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::host) enum Familiarity {
    /// Its signatures were found good lately.
    Known,
    Unknown,
}

#[derive(Default)]
pub(in crate::host) struct CheckQueue {
    known: Queue,
    unknown: Queue,
    runs: Cell<bool>,
}

impl CheckQueue {
    /// Waits for the turn of a check that this caller has asked for.
    pub(in crate::host) async fn turn(
        self: &Rc<Self>,
        caller: u32,
        shown: Familiarity,
        fault: &Rc<Fault>,
    ) {
        let (turn, comes) = oneshot::channel();
        let queue = match shown {
            Familiarity::Known => &self.known,
            Familiarity::Unknown => &self.unknown,
        };
        queue.borrow_mut().push(caller, turn);
        if !self.runs.replace(true) {
            fault.watch(self.clone().run());
        }
        // It comes, or the host ends.
        let _ = comes.await;
    }

    /// Gives turns until nobody waits.
    async fn run(self: Rc<Self>) {
        while give_turns(&self.known) | give_turns(&self.unknown) {
            // All other tasks that are ready go first, those woken by the network included.
            tokio::task::yield_now().await;
        }
        self.runs.set(false);
    }
}

/// Gives the next turns of one queue. False if nobody waited in it.
fn give_turns(queue: &Queue) -> bool {
    let mut given = 0;
    while given < AT_ONCE
        && let Some(turn) = queue.borrow_mut().pop()
    {
        // Nobody takes the turn of a call that was cut.
        given += usize::from(turn.send(()).is_ok());
    }
    given > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of the waiting checks whose turns have come, in their order.
    type Turns = Rc<RefCell<Vec<usize>>>;

    fn wait(queue: &Rc<CheckQueue>, turns: &Turns, number: usize, shown: Familiarity) {
        wait_as(1, queue, turns, number, shown);
    }

    fn wait_as(
        caller: u32,
        queue: &Rc<CheckQueue>,
        turns: &Turns,
        number: usize,
        shown: Familiarity,
    ) {
        let (queue, fault, turns) = (queue.clone(), Rc::default(), turns.clone());
        tokio::task::spawn_local(async move {
            queue.turn(caller, shown, &fault).await;
            turns.borrow_mut().push(number);
        });
    }

    #[tokio::test(flavor = "local")]
    async fn a_pass_has_few_checks_and_known_references_pass_unknown_ones() {
        let (queue, turns) = (Rc::new(CheckQueue::default()), Turns::default());
        for number in 0..100 {
            wait(&queue, &turns, number, Familiarity::Unknown);
        }
        tokio::task::yield_now().await;
        wait(&queue, &turns, 100, Familiarity::Known);
        let (mut before, mut passes) = (0, 0);
        while turns.borrow().len() < 101 {
            tokio::task::yield_now().await;
            let now = turns.borrow().len();
            assert!(now - before <= 2 * AT_ONCE, "{} in one pass", now - before);
            (before, passes) = (now, passes + 1);
        }
        assert!(passes >= 100 / AT_ONCE, "{passes} passes");
        let at = |number| turns.borrow().iter().position(|turn| *turn == number).unwrap();
        assert!(at(100) < 5 * AT_ONCE, "it was number {}", at(100));
        let unknown: Vec<_> = turns.borrow().iter().copied().filter(|turn| *turn < 100).collect();
        assert!(unknown.is_sorted());
        // The queue works again after it was empty.
        tokio::task::yield_now().await;
        wait(&queue, &turns, 101, Familiarity::Unknown);
        while turns.borrow().len() < 102 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(flavor = "local")]
    async fn nobody_waits_for_all_that_another_caller_has_asked_for() {
        let (queue, turns) = (Rc::new(CheckQueue::default()), Turns::default());
        for shown in [Familiarity::Known, Familiarity::Unknown] {
            turns.take();
            for number in 0..10_000 {
                wait_as(number as u32 % 3, &queue, &turns, number, shown);
            }
            tokio::task::yield_now().await;
            wait_as(7, &queue, &turns, 10_000, shown);
            wait_as(7, &queue, &turns, 10_001, shown);
            while !turns.borrow().contains(&10_001) {
                tokio::task::yield_now().await;
            }
            assert!(turns.borrow().len() < 40, "{} came first", turns.borrow().len());
            while turns.borrow().len() < 10_002 {
                tokio::task::yield_now().await;
            }
            for caller in 0..3 {
                let turns = turns.borrow();
                let own = |turn: &&usize| **turn < 10_000 && **turn % 3 == caller;
                assert!(turns.iter().filter(own).is_sorted());
            }
        }
    }
}
