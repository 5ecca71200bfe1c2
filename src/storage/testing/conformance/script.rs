//! Random scripts of a host's actions on its store, and of the events that happen to the store.
//!
//! The state here only decides which step makes sense after which; the oracle decides the outcome
//! of each.

use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::strategy::Union;
use proptest_state_machine::ReferenceStateMachine;

use super::keys::{Pick, Short, pick, value, wrong_key};
use super::listing::{Wish, size, wish};
use crate::storage::store::page::PageSize;
use crate::storage::testing::model::Fault;
use crate::storage::testing::model::gate::Stage;

/// The number of objects.
pub(super) const OBJECTS: usize = 3;
const NESTED_MAX: usize = 3;

/// One of the objects, by its index.
pub(super) type Object = usize;

#[derive(Clone, Debug)]
pub(super) enum Step {
    Begin(Object),
    Put(Object, Pick, Short, Knows),
    Delete(Object, Pick, Knows),
    Clear(Object),
    Savepoint,
    Keep,
    Undo,
    Submit,
    Discard,
    /// Makes the commit thread begin with the submitted turns.
    Commit,
    Settle,
    /// Waits until all submitted turns are durable.
    Sync,
    Hold(Stage),
    Release,
    Get(Object, Pick),
    List(Object, Wish, PageSize),
    /// The next page of one of the lists in progress.
    More(Index, PageSize),
    /// The next group that is sent to the log arrives twice.
    Duplicate,
    Reopen,
    Crash(u64),
    /// The next commit fails and ends the store.
    Fail(Failure, u64),
}

/// The writer's knowledge of the previous value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Knows {
    Before,
    Nothing,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Failure {
    Fault(Fault),
    Rival,
}

/// The state of a script.
#[derive(Clone, Debug, Default)]
pub(super) struct Script {
    turn: Option<Object>,
    nested: usize,
    held: bool,
}

impl ReferenceStateMachine for Script {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        Just(Self::default()).boxed()
    }

    fn transitions(state: &Self) -> BoxedStrategy<Step> {
        let (in_turn, idle) = (u32::from(state.turn.is_some()), u32::from(state.turn.is_none()));
        let (nested, held) = (u32::from(state.nested > 0), u32::from(state.held));
        let steps = writes(state.turn).into_iter().chain([
            (30 * idle, any_object().prop_map(Step::Begin).boxed()),
            (6 * in_turn, Just(Step::Savepoint).boxed()),
            (6 * nested, Just(Step::Keep).boxed()),
            (6 * nested, Just(Step::Undo).boxed()),
            (10 * in_turn, Just(Step::Submit).boxed()),
            (in_turn, Just(Step::Discard).boxed()),
            (6, Just(Step::Commit).boxed()),
            (6, Just(Step::Settle).boxed()),
            (3 * (1 - held), Just(Step::Sync).boxed()),
            (3 * (1 - held), stage().prop_map(Step::Hold).boxed()),
            (2 * held, Just(Step::Release).boxed()),
            (1, Just(Step::Duplicate).boxed()),
            (1 - held, Just(Step::Reopen).boxed()),
            (2, any::<u64>().prop_map(Step::Crash).boxed()),
            (
                idle * (1 - held),
                (failure(), any::<u64>()).prop_map(|(f, k)| Step::Fail(f, k)).boxed(),
            ),
        ]);
        let steps = steps.chain(reads(state.turn)).filter(|(weight, _)| *weight > 0);
        Union::new_weighted(steps.collect()).boxed()
    }

    fn apply(mut state: Self, step: &Step) -> Self {
        match step {
            Step::Begin(object) => state.turn = Some(*object),
            Step::Savepoint => state.nested += 1,
            Step::Keep | Step::Undo => state.nested -= 1,
            Step::Submit | Step::Discard => (state.turn, state.nested) = (None, 0),
            Step::Hold(_) => state.held = true,
            Step::Release => state.held = false,
            Step::Reopen | Step::Crash(_) | Step::Fail(..) => state = Self::default(),
            _ => {}
        }
        state
    }

    fn preconditions(state: &Self, step: &Step) -> bool {
        match step {
            Step::Begin(_) => state.turn.is_none(),
            Step::Savepoint => state.turn.is_some() && state.nested < NESTED_MAX,
            Step::Keep | Step::Undo => state.nested > 0,
            Step::Submit | Step::Discard => state.turn.is_some() && state.nested == 0,
            Step::Hold(_) | Step::Sync | Step::Reopen => !state.held,
            Step::Release => state.held,
            Step::Fail(..) => state.turn.is_none() && !state.held,
            _ => true,
        }
    }
}

type Weighted = (u32, BoxedStrategy<Step>);

fn writes(turn: Option<Object>) -> [Weighted; 3] {
    let put = (object(turn), key(), value(), knows());
    let delete = (object(turn), key(), knows());
    let often = if turn.is_some() { 8 } else { 0 };
    [
        (1 + 4 * often, put.prop_map(|(o, key, value, by)| Step::Put(o, key, value, by)).boxed()),
        (1 + 2 * often, delete.prop_map(|(o, key, by)| Step::Delete(o, key, by)).boxed()),
        (1 + often / 2, object(turn).prop_map(Step::Clear).boxed()),
    ]
}

fn reads(turn: Option<Object>) -> [Weighted; 3] {
    let list = (object(turn), wish(), size());
    [
        (6, (any_object(), key()).prop_map(|(object, key)| Step::Get(object, key)).boxed()),
        (12, list.prop_map(|(object, wish, size)| Step::List(object, wish, size)).boxed()),
        (8, (any::<Index>(), size()).prop_map(|(list, size)| Step::More(list, size)).boxed()),
    ]
}

fn any_object() -> impl Strategy<Value = Object> {
    0..OBJECTS
}

/// Usually the object with the open turn.
fn object(turn: Option<Object>) -> impl Strategy<Value = Object> {
    prop_oneof![15 => Just(turn.unwrap_or_default()), 1 => any_object()]
}

fn stage() -> impl Strategy<Value = Stage> {
    select(vec![Stage::Before, Stage::After])
}

fn key() -> impl Strategy<Value = Pick> {
    prop_oneof![30 => pick(), 1 => wrong_key()]
}

fn knows() -> impl Strategy<Value = Knows> {
    select(vec![Knows::Before, Knows::Nothing])
}

fn failure() -> impl Strategy<Value = Failure> {
    let faults = [Fault::Failed, Fault::FailedApplied, Fault::Fenced, Fault::Panic];
    let mut failures = faults.map(Failure::Fault).to_vec();
    failures.push(Failure::Rival);
    select(failures)
}
