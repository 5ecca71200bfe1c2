//! Tests of [`KeptPaths`] by the messages that go out and come in, without a connection.

use super::kept::{KeptPaths, Released, Which};
use super::patch::Patches;
use super::raw::{Cap, Write, bootstrap, finish, write, write_caps};
use crate::limits::{Limit, Rejection};
use crate::wire::ReceivedMessage;
use capnp::any_pointer;
use capnp::message::{Builder, HeapAllocator, ReaderOptions};
use capnp::traits::ImbueMut;
use capnp_rpc::rpc_capnp::{
    call, cap_descriptor, message, message_target, payload, promised_answer, return_,
};

/// The first numbers that `KeptPaths` gives out, in order.
const FIRST: u32 = 1 << 29;
const SECOND: u32 = FIRST + 1;
const THIRD: u32 = FIRST + 2;

/// The paths to the two capabilities in an answer. Its struct is any type with room for two.
const SHALLOW: &[u16] = &[2];
const DEEP: &[u16] = &[1, 0];

#[derive(Clone, Copy)]
enum Target {
    Import(u32),
    Answer(u32, &'static [u16]),
}

impl Target {
    fn write(self, mut target: message_target::Builder) {
        match self {
            Self::Import(id) => target.set_imported_cap(id),
            Self::Answer(call, path) => {
                let mut answer = target.init_promised_answer();
                answer.set_question_id(call);
                let mut steps = answer.init_transform(path.len() as u32);
                for (at, field) in (0..).zip(path) {
                    steps.reborrow().get(at).set_get_pointer_field(*field);
                }
            }
        }
    }
}

fn calls(question: u32, on: Target, caps: &'static [Cap]) -> Write {
    write(move |message| {
        let mut call = message.init_call();
        call.set_question_id(question);
        on.write(call.reborrow().init_target());
        write_caps(call.init_params(), caps);
    })
}

fn returns(question: u32, caps: &'static [Cap]) -> Write {
    write(move |message| {
        let mut answer = message.init_return();
        answer.set_answer_id(question);
        write_caps(answer.init_results(), caps);
    })
}

fn disembargoes(on: Target) -> Write {
    write(move |message| {
        let mut disembargo = message.init_disembargo();
        on.write(disembargo.reborrow().init_target());
        disembargo.init_context().set_sender_loopback(1);
    })
}

/// An answer of the peer. Its shallow field and its deep field point to these places in the table.
fn answer(question: u32, caps: &[Cap], [shallow, deep]: [usize; 2]) -> Builder<HeapAllocator> {
    let mut message = Builder::new_default();
    let mut answer = message.init_root::<message::Builder>().init_return();
    answer.set_answer_id(question);
    let mut payload = answer.init_results();
    write_caps(payload.reborrow(), caps);
    payload.reborrow().get_content().init_as::<call::Builder>();
    point(payload.reborrow(), shallow, |fields| fields.init_send_results_to().init_third_party());
    point(payload.reborrow(), deep, |fields| fields.init_params().init_content());
    message
}

/// Writes a pointer to this place in the table.
fn point(
    mut payload: payload::Builder,
    place: usize,
    field: impl FnOnce(call::Builder) -> any_pointer::Builder,
) {
    // A capability pointer holds the index at which it is added, so this many entries come before
    // it.
    let mut before = (0..place).map(|_| None).collect();
    let mut content = payload.reborrow().get_content();
    content.imbue_mut(&mut before);
    let nobody = capnp_rpc::new_broken_cap(capnp::Error::failed("nobody".into()));
    field(content.get_as().unwrap()).set_as_capability(nobody.hook);
}

/// Sends a message of the RPC system, and describes the message that goes out for it.
fn send(kept: &mut KeptPaths, write: Write) -> String {
    let mut message = Builder::new_default();
    write(message.init_root());
    match message.get_root_as_reader::<message::Reader>().unwrap().which() {
        Ok(message::Return(answer)) => kept.note_answer(answer.unwrap()).unwrap(),
        Ok(message::Call(call)) => kept.note_call(call.unwrap()).unwrap(),
        Ok(message::Bootstrap(call)) => kept.note_number(call.unwrap().get_question_id()),
        _ => {}
    }
    if kept.change(&mut message).unwrap() {
        word(message.get_root_as_reader().unwrap())
    } else {
        "nothing".into()
    }
}

/// Describes the capabilities of an answer as the RPC system sees them.
fn receive(
    kept: &mut KeptPaths,
    call: u32,
    answer: &Builder<HeapAllocator>,
    which: Which,
) -> Vec<String> {
    let incoming = crate::wire::tests::incoming(answer);
    let mut patches = Patches::default();
    assert!(kept.receive(call, &incoming, which, &mut patches).is_ok());
    let incoming: ReceivedMessage = patches.apply(incoming, ReaderOptions::new());
    let message::Return(Ok(answer)) =
        incoming.get_root::<message::Reader>().unwrap().which().unwrap()
    else {
        panic!("it is one")
    };
    match answer.which().unwrap() {
        return_::Results(Ok(payload)) => words_of(payload),
        _ => vec![],
    }
}

fn word(message: message::Reader) -> String {
    match message.which().unwrap() {
        message::Bootstrap(Ok(ask)) => format!("bootstrap {}", ask.get_question_id()),
        message::Call(Ok(call)) => {
            let on = word_of_target(call.get_target().unwrap());
            let with = words_of(call.get_params().unwrap());
            format!("call {} on {on} {with:?}", call.get_question_id()).replace('"', "")
        }
        message::Return(Ok(answer)) => {
            let return_::Results(Ok(payload)) = answer.which().unwrap() else {
                panic!("it has results")
            };
            let with = words_of(payload);
            format!("return {} {with:?}", answer.get_answer_id()).replace('"', "")
        }
        message::Finish(Ok(finish)) => format!("finish {}", finish.get_question_id()),
        message::Disembargo(Ok(disembargo)) => {
            format!("disembargo {}", word_of_target(disembargo.get_target().unwrap()))
        }
        _ => panic!("of another kind"),
    }
}

fn word_of_target(target: message_target::Reader) -> String {
    match target.which().unwrap() {
        message_target::ImportedCap(id) => id.to_string(),
        message_target::PromisedAnswer(answer) => word_of_answer(answer.unwrap()),
    }
}

fn words_of(payload: payload::Reader) -> Vec<String> {
    let caps = payload.get_cap_table().unwrap().iter();
    let words = caps.map(|cap| match cap.which().unwrap() {
        cap_descriptor::SenderHosted(id) => format!("sender {id}"),
        cap_descriptor::SenderPromise(id) => format!("promise {id}"),
        cap_descriptor::ReceiverHosted(id) => format!("receiver {id}"),
        cap_descriptor::ReceiverAnswer(answer) => word_of_answer(answer.unwrap()),
        _ => "none".into(),
    });
    words.collect()
}

/// The call, and the fields of the path.
fn word_of_answer(answer: promised_answer::Reader) -> String {
    let mut parts = vec![answer.get_question_id().to_string()];
    for step in answer.get_transform().unwrap() {
        if let promised_answer::op::GetPointerField(field) = step.which().unwrap() {
            parts.push(field.to_string());
        }
    }
    format!("answer {}", parts.join("."))
}

/// The state after a call and further calls on these paths into its answer.
fn asked(call: u32, paths: &[&'static [u16]]) -> KeptPaths {
    let mut kept = KeptPaths::default();
    send(&mut kept, calls(call, Target::Import(0), &[]));
    for (number, path) in (100..).zip(paths) {
        send(&mut kept, calls(number, Target::Answer(call, path), &[]));
    }
    kept
}

/// The state after an answer to call 1 with a capability of ours, which is kept under the first
/// number. The RPC system has finished the call, and the `Finish` is held.
fn held() -> KeptPaths {
    let mut kept = asked(1, &[SHALLOW]);
    let table = [Cap::Ours(7)];
    let told = receive(&mut kept, 1, &answer(1, &table, [0, 0]), Which::NotTheirs);
    assert_eq!(told, [format!("sender {FIRST}")]);
    assert_eq!(send(&mut kept, finish(1, false)), "nothing");
    kept
}

fn is_kept(released: Option<&Released>) -> bool {
    matches!(released, Some(Released::Kept))
}

fn is_last(released: Option<&Released>, call: u32) -> bool {
    matches!(released, Some(Released::Last(last)) if *last == call)
}

#[test]
fn a_call_gets_another_number_while_the_finish_of_its_own_is_held() {
    let mut kept = held();
    let again = send(&mut kept, calls(1, Target::Import(0), &[]));
    assert_eq!(again, format!("call {SECOND} on 0 []"));
    // 1. Messages about its answer mean the new call.
    let on = Target::Answer(1, DEEP);
    let behind = calls(2, on, &[Cap::Answer { question: 1, steps: 0 }, Cap::Ours(3)]);
    let said = format!("call 2 on answer {SECOND}.1.0 [answer {SECOND}, receiver 3]");
    assert_eq!(send(&mut kept, behind), said);
    assert_eq!(send(&mut kept, disembargoes(on)), format!("disembargo answer {SECOND}.1.0"));
    let passed_on = returns(9, &[Cap::Answer { question: 1, steps: 0 }]);
    assert_eq!(send(&mut kept, passed_on), format!("return 9 [answer {SECOND}]"));
    // 2. The kept capability is still the path into the first answer.
    let on = Target::Import(FIRST);
    let said = "call 3 on answer 1.2 [answer 1.2]";
    assert_eq!(send(&mut kept, calls(3, on, &[Cap::Ours(FIRST)])), said);
    assert_eq!(send(&mut kept, disembargoes(on)), "disembargo answer 1.2");
    assert_eq!(send(&mut kept, returns(9, &[Cap::Ours(FIRST)])), "return 9 [answer 1.2]");
    // 3. The new call's own Finish goes out, and the next one gets another number again.
    assert_eq!(send(&mut kept, finish(1, false)), format!("finish {SECOND}"));
    assert_eq!(send(&mut kept, bootstrap(1)), format!("bootstrap {THIRD}"));
}

#[test]
fn a_name_is_for_one_answer() {
    let mut kept = held();
    send(&mut kept, calls(1, Target::Import(0), &[]));
    assert!(matches!(kept.name(7), Ok(None)));
    assert!(matches!(kept.name(SECOND), Ok(Some(1))));
    assert!(matches!(kept.name(SECOND), Ok(None)), "it is answered");
    assert_eq!(send(&mut kept, finish(1, true)), format!("finish {SECOND}"));
    // The number is free again once nothing holds back the first call's `Finish`.
    assert!(is_last(kept.release(FIRST).as_ref(), 1));
    assert_eq!(send(&mut kept, calls(1, Target::Import(0), &[])), "call 1 on 0 []");
    assert!(matches!(kept.name(1), Ok(None)), "it has its own number");
}

/// The peer has answered the first call 1, and knows the next one only by its other number.
#[test]
fn an_answer_under_a_number_that_is_held_is_refused() {
    let mut kept = held();
    send(&mut kept, calls(1, Target::Import(0), &[]));
    let refused = kept.name(1);
    assert!(matches!(&refused, Err(Rejection::Over(Limit::UnknownCapability, reason))
            if reason == "a call was answered that is not open"));
    assert!(matches!(kept.name(SECOND), Ok(Some(1))), "it is still open");
}

#[test]
fn the_last_release_of_what_is_kept_finishes_the_call() {
    for finishes_first in [true, false] {
        let mut kept = asked(1, &[SHALLOW, DEEP]);
        let table = [Cap::Ours(7), Cap::Answer { question: 4, steps: 0 }];
        let told = receive(&mut kept, 1, &answer(1, &table, [0, 1]), Which::NotTheirs);
        assert_eq!(told, [format!("sender {FIRST}"), format!("sender {SECOND}")]);
        let deep = calls(2, Target::Import(SECOND), &[]);
        assert_eq!(send(&mut kept, deep), "call 2 on answer 1.1.0 []");
        if finishes_first {
            assert_eq!(send(&mut kept, finish(1, false)), "nothing");
        }
        assert!(is_kept(kept.release(FIRST).as_ref()));
        assert!(kept.release(FIRST).is_none(), "it was released");
        let last = kept.release(SECOND);
        if finishes_first {
            assert!(is_last(last.as_ref(), 1));
        } else {
            assert!(is_kept(last.as_ref()));
            assert_eq!(send(&mut kept, finish(1, false)), "finish 1");
        }
        assert!(kept.release(5).is_none(), "it is the peer's own");
    }
}

#[test]
fn two_paths_to_one_capability_keep_the_call_once() {
    for which in [Which::NotTheirs, Which::All] {
        let mut kept = asked(1, &[DEEP, SHALLOW, DEEP]);
        let table = [Cap::Ours(6), Cap::Ours(7)];
        let told = receive(&mut kept, 1, &answer(1, &table, [1, 1]), which);
        assert_eq!(told, ["receiver 6".into(), format!("sender {FIRST}")]);
        assert_eq!(send(&mut kept, finish(1, false)), "nothing");
        // It is reached by the path that was used first.
        let on = calls(2, Target::Import(FIRST), &[]);
        assert_eq!(send(&mut kept, on), "call 2 on answer 1.1.0 []");
        assert!(is_last(kept.release(FIRST).as_ref(), 1));
    }
}

#[test]
fn what_nobody_takes_is_given_back() {
    let mut kept = held();
    assert_eq!(kept.give_up(5), None, "nothing is kept of it");
    assert_eq!(kept.give_up(1), Some(1), "its Finish was held");
    let plain = send(&mut kept, calls(9, Target::Import(FIRST), &[]));
    assert_eq!(plain, format!("call 9 on {FIRST} []"), "it is forgotten");
    assert!(kept.release(FIRST).is_none());
    assert_eq!(kept.give_up(1), None);
    assert_eq!(send(&mut kept, calls(1, Target::Import(0), &[])), "call 1 on 0 []");
    // Works under another number too, and beside another capability that stays.
    let mut kept = held();
    send(&mut kept, calls(1, Target::Import(0), &[]));
    send(&mut kept, calls(2, Target::Answer(1, SHALLOW), &[]));
    assert!(matches!(kept.name(SECOND), Ok(Some(1))));
    receive(&mut kept, 1, &answer(1, &[Cap::Ours(7)], [0, 0]), Which::NotTheirs);
    assert_eq!(send(&mut kept, finish(1, false)), "nothing");
    assert_eq!(kept.give_up(1), Some(SECOND));
    assert!(is_last(kept.release(FIRST).as_ref(), 1), "the first one is still kept");
}

/// The `Finish` of a renamed call is held under the new number.
#[test]
fn renamed_calls_are_kept_as_others_are() {
    let mut kept = held();
    send(&mut kept, calls(1, Target::Import(0), &[]));
    send(&mut kept, calls(2, Target::Answer(1, SHALLOW), &[]));
    assert!(matches!(kept.name(SECOND), Ok(Some(1))));
    let told = receive(&mut kept, 1, &answer(1, &[Cap::Ours(7)], [0, 0]), Which::NotTheirs);
    assert_eq!(told, [format!("sender {THIRD}")]);
    assert_eq!(send(&mut kept, finish(1, false)), "nothing");
    let on = calls(3, Target::Import(THIRD), &[]);
    assert_eq!(send(&mut kept, on), format!("call 3 on answer {SECOND}.2 []"));
    assert!(is_last(kept.release(FIRST).as_ref(), 1));
    // Its number is free; the renamed call's `Finish` is held all the same.
    assert_eq!(send(&mut kept, calls(1, Target::Import(0), &[])), "call 1 on 0 []");
    assert!(is_last(kept.release(THIRD).as_ref(), SECOND));
    assert_eq!(send(&mut kept, finish(1, false)), "finish 1");
}

/// A call that was given up leaves its number to the next one, and nothing else.
#[test]
fn paths_into_one_answer_are_none_into_the_next() {
    for again in [calls(1, Target::Import(0), &[]), bootstrap(1)] {
        let mut kept = asked(1, &[SHALLOW]);
        send(&mut kept, finish(1, true));
        send(&mut kept, again);
        let told = receive(&mut kept, 1, &answer(1, &[Cap::Ours(7)], [0, 0]), Which::NotTheirs);
        assert_eq!(told, ["receiver 7"]);
    }
}

/// These all pass unchanged, and the call is finished at once.
#[test]
fn only_what_would_be_reached_by_a_shorter_way_is_kept() {
    let table = [Cap::Ours(7), Cap::Hosted(5)];
    let mut no_finish = answer(1, &table, [0, 0]);
    let root = no_finish.get_root::<message::Builder>().unwrap();
    let Ok(message::Return(Ok(mut changed))) = root.which() else { panic!("it is one") };
    changed.set_no_finish_needed(true);
    for (paths, answer) in [
        (&[SHALLOW][..], answer(1, &table, [1, 0])),
        (&[], answer(1, &table, [0, 0])),
        (&[&[0], &[], &[2, 0]], answer(1, &table, [0, 0])),
        (&[SHALLOW], answer(1, &table, [2, 0])),
        (&[SHALLOW], no_finish),
    ] {
        let mut kept = asked(1, paths);
        let told = receive(&mut kept, 1, &answer, Which::NotTheirs);
        assert_eq!(told, ["receiver 7", "sender 5"]);
        assert_eq!(send(&mut kept, finish(1, false)), "finish 1");
        assert_eq!(send(&mut kept, calls(1, Target::Import(0), &[])), "call 1 on 0 []");
    }
}

/// A capability that came by way of us has calls on their way; one of the peer's own has none.
#[test]
fn of_an_answer_that_came_round_all_that_was_used_is_kept() {
    for (cap, came_as) in [(Cap::Hosted(5), "sender 5"), (Cap::Promise(5), "promise 5")] {
        let plain = answer(1, &[cap], [0, 0]);
        let mut kept = asked(1, &[SHALLOW]);
        assert_eq!(receive(&mut kept, 1, &plain, Which::NotTheirs), [came_as]);
        let mut kept = asked(1, &[SHALLOW]);
        let told = receive(&mut kept, 1, &plain, Which::All);
        assert_eq!(told, [format!("sender {FIRST}")]);
        // 1. An answer is delivered once only.
        assert_eq!(receive(&mut kept, 1, &plain, Which::All), [came_as]);
    }
}
