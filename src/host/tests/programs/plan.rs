//! Random programs: what a seed makes. The same seed makes the same program.
//!
//! A program names capabilities by slots, which its operations fill in their order; an operation on
//! a slot that stayed empty does nothing. It says what is done and never what comes of it.

use super::actor::{Answer, Ending, Step};

/// The most operations of a program.
const OPS_MAX: u64 = 60;

#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// The kind of peer that speaks for each client.
    pub(super) clients: Vec<Kind>,
    /// The number of connections between a client and a vat, by client and vat.
    pub(super) hops: Vec<Vec<usize>>,
    /// The vat of each object.
    pub(super) objects: Vec<usize>,
    /// True for each object that runs one call at a time.
    pub(super) exclusive: Vec<bool>,
    pub(super) ops: Vec<Op>,
}

#[derive(Clone, Debug)]
pub(super) enum Op {
    /// Leaves slots empty.
    Skip {
        slots: usize,
    },
    /// Fills a slot with a new facet.
    Open {
        client: usize,
        object: usize,
        /// The vat that is asked for it.
        through: usize,
    },
    /// Fills a slot with the promised result, and one with what that turns out to be.
    Call {
        slot: usize,
        step: Step,
        on: Option<usize>,
        gift: Option<usize>,
        how: How,
        fate: Fate,
    },
    /// Fills a slot with a promise of the client's own.
    Promise,
    /// The promise in a slot turns out to be what is in another one, or to fail.
    Resolve {
        slot: usize,
        to: Option<usize>,
    },
    /// Drops what a slot holds.
    LetGo {
        slot: usize,
    },
    /// Lets tasks run.
    Yield {
        times: u8,
    },
    /// Begins to await the promises that were kept for later, the last ones first.
    Await,
    /// The disk takes no more writes until it is released.
    Hold {
        vat: usize,
    },
    Release {
        vat: usize,
    },
    /// The next commit fails, though it may be durable.
    Fail {
        vat: usize,
        applied: Applied,
    },
    /// The vat ends and another one begins from what is durable, and of what was on its way from
    /// what the bits say.
    Kill {
        vat: usize,
        keep: u64,
    },
    /// An object falls asleep, if nobody needs it.
    Rest {
        object: usize,
    },
    /// One connection between a client and a vat ends; there is another way from then on.
    Cut {
        client: usize,
        vat: usize,
        at: usize,
    },
    /// The connection from one vat to another one ends, and another one begins.
    Part {
        from: usize,
        to: usize,
    },
}

impl Op {
    /// The number of slots that it fills, or leaves empty.
    pub(super) fn slots(&self) -> usize {
        match self {
            Self::Skip { slots } => *slots,
            Self::Open { .. } | Self::Promise => 1,
            Self::Call { how: How::Act, step, .. } if step.answer != Answer::Nothing => 2,
            _ => 0,
        }
    }
}

/// The kind of peer that speaks for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Our own library.
    Rust,
    /// A peer that speaks as one in C++ does.
    Kj,
}

/// The method that asks for a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Act,
    Stream,
}

/// The fate of a call's promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Awaited,
    AwaitedLater,
    DroppedAfterAPoll,
    Dropped,
}

/// The truth about a failed commit: durable or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Applied {
    No,
    Yes,
}

/// The things that may break in a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Theme {
    /// Nothing: then nothing is lost either.
    Peace,
    Objects,
    Hosts,
}

/// The generator's knowledge of a slot.
#[derive(Clone, Copy, Debug)]
struct Slot {
    owner: usize,
    /// It waits for no handler, so that nothing can come to wait for itself.
    settled: bool,
    /// It was passed on.
    passed: bool,
    /// A promise of the client's that was not resolved.
    is_promise: bool,
}

impl Slot {
    fn new(owner: usize, settled: bool) -> Self {
        Self { owner, settled, passed: false, is_promise: false }
    }
}

/// Numbers from a seed: `splitmix64`.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len())]
    }
}

/// Makes the program of a seed.
pub(super) fn plan(seed: u64) -> Plan {
    let mut dice = Dice::new(seed);
    let theme = dice.pick(&[Theme::Peace, Theme::Peace, Theme::Objects, Theme::Hosts]);
    let (clients, vats) = (1 + dice.index(3), dice.pick(&[1, 1, 2, 2, 4]));
    let objects: Vec<_> = (0..vats + dice.index(3)).map(|number| number % vats).collect();
    let exclusives = dice.pick(&[0, 0, 50]);
    let exclusive = objects.iter().map(|_| dice.percent(exclusives)).collect();
    // An actor in the process of a host ends with it.
    let nearest = usize::from(theme == Theme::Hosts);
    let mut distance = || nearest + dice.index(4 - nearest);
    let distances: Vec<Vec<_>> =
        (0..clients).map(|_| (0..vats).map(|_| distance()).collect()).collect();
    let clients: Vec<_> = (0..clients).map(|_| dice.pick(&[Kind::Rust, Kind::Kj])).collect();
    let nearest = |client| usize::from(client == Kind::Kj);
    let hops = clients.iter().zip(distances).map(|(client, hops)| {
        hops.into_iter().map(|hops: usize| hops.max(nearest(*client))).collect()
    });
    let hops = hops.collect();
    let slots = (0..clients.len()).map(|owner| Slot::new(owner, true)).collect();
    let plan = Plan { clients, hops, objects, exclusive, ops: Vec::new() };
    let mut maker = Maker { dice, theme, vats, slots, large: 2, plan };
    for client in 0..maker.plan.clients.len() {
        maker.open(client);
    }
    let length = 10 + maker.dice.below(OPS_MAX - 10);
    while (maker.plan.ops.len() as u64) < length {
        maker.add();
    }
    maker.plan
}

struct Maker {
    dice: Dice,
    theme: Theme,
    vats: usize,
    slots: Vec<Slot>,
    /// Steps that may still have large results.
    large: u32,
    plan: Plan,
}

impl Maker {
    fn add(&mut self) {
        match self.dice.below(100) {
            0..52 => self.calls(),
            52..56 => {
                let client = self.dice.index(self.plan.clients.len());
                self.plan.ops.push(Op::Promise);
                self.slots.push(Slot { is_promise: true, ..Slot::new(client, false) });
            }
            56..60 => self.resolve(),
            60..75 => {
                let times = self.dice.pick(&[1, 2, 5, 20]);
                self.plan.ops.push(Op::Yield { times });
            }
            75..80 => {
                let client = self.dice.index(self.plan.hops.len());
                self.open(client);
            }
            80..83 => self.plan.ops.push(Op::Await),
            83..84 => {
                let slot = self.slot();
                self.plan.ops.push(Op::LetGo { slot });
            }
            84..87 => {
                let object = self.dice.index(self.plan.objects.len());
                self.plan.ops.push(Op::Rest { object });
            }
            87..90 => {
                let vat = self.dice.index(self.vats);
                self.plan.ops.push(Op::Hold { vat });
            }
            90..95 => {
                let vat = self.dice.index(self.vats);
                self.plan.ops.push(Op::Release { vat });
            }
            _ if self.theme == Theme::Hosts => self.accident(),
            _ => self.calls(),
        }
    }

    fn accident(&mut self) {
        let vat = self.dice.index(self.vats);
        let op = match self.dice.below(5) {
            0 => Op::Fail { vat, applied: self.dice.pick(&[Applied::No, Applied::Yes]) },
            1 => Op::Kill { vat, keep: self.dice.next() },
            2 if self.vats > 1 => {
                let to = (vat + 1 + self.dice.index(self.vats - 1)) % self.vats;
                Op::Part { from: vat, to }
            }
            _ => {
                let client = self.dice.index(self.plan.hops.len());
                Op::Cut { client, vat, at: self.dice.index(self.plan.hops[client][vat]) }
            }
        };
        self.plan.ops.push(op);
    }

    fn open(&mut self, client: usize) {
        let object = self.dice.index(self.plan.objects.len());
        let home = self.plan.objects[object];
        let through = if self.dice.percent(60) { home } else { self.dice.index(self.vats) };
        self.plan.ops.push(Op::Open { client, object, through });
        self.slots.push(Slot::new(client, true));
    }

    /// A slot; most often one of the last, so that stubs get many calls.
    fn slot(&mut self) -> usize {
        let far = if self.dice.percent(70) { self.slots.len().min(4) } else { self.slots.len() };
        self.slots.len() - 1 - self.dice.index(far)
    }

    /// A capability of the same client, to be passed on in a call on `target`.
    fn companion(&mut self, target: usize) -> usize {
        let owner = self.slots[target].owner;
        let may = |at: usize, slot: &Slot| {
            slot.owner == owner && (slot.settled || !slot.passed && at != target)
        };
        let slots = self.slots.iter().enumerate();
        let theirs: Vec<_> = slots.filter(|(at, slot)| may(*at, slot)).map(|(at, _)| at).collect();
        let picked = self.dice.pick(&theirs);
        self.slots[picked].passed = true;
        picked
    }

    /// A promise becomes something that was there before it, so that none leads to itself.
    fn resolve(&mut self) {
        let promises = self.slots.iter().enumerate().filter(|(_, slot)| slot.is_promise);
        let promises: Vec<_> = promises.map(|(at, _)| at).collect();
        if promises.is_empty() {
            return self.calls();
        }
        let slot = self.dice.pick(&promises);
        let owner = self.slots[slot].owner;
        let older: Vec<_> = (0..slot).filter(|at| self.slots[*at].owner == owner).collect();
        let to = self.dice.percent(90).then(|| self.dice.pick(&older));
        self.slots[slot].is_promise = false;
        self.plan.ops.push(Op::Resolve { slot, to });
    }

    /// A few calls in a row on one stub.
    fn calls(&mut self) {
        let slot = self.slot();
        for _ in 0..self.dice.pick(&[1, 1, 2, 4]) {
            self.one_call(slot);
        }
    }

    fn one_call(&mut self, slot: usize) {
        let owner = self.slots[slot].owner;
        let on = self.dice.percent(50).then(|| self.companion(slot));
        let gift = self.dice.percent(50).then(|| self.companion(slot));
        let settled = gift.is_none_or(|gift| self.slots[gift].settled);
        let given = Given { on: on.is_some(), gift: gift.is_some(), settled };
        let mut step = self.step(given, 0);
        let how = if self.dice.percent(12) { How::Stream } else { How::Act };
        step.awaits &= how == How::Act;
        let fate = match self.dice.below(10) {
            0..6 => Fate::Awaited,
            6..8 => Fate::AwaitedLater,
            8 => Fate::DroppedAfterAPoll,
            _ => Fate::Dropped,
        };
        if how == How::Act && step.answer != Answer::Nothing {
            self.slots.push(Slot::new(owner, false));
            self.slots.push(Slot::new(owner, false));
        }
        self.plan.ops.push(Op::Call { slot, step, on, gift, how, fate });
    }

    fn step(&mut self, given: Given, depth: usize) -> Step {
        let dice = &mut self.dice;
        let most = if given.settled { 3 } else { 1 };
        let calls = if given.on { 1 + dice.below(most) as u8 } else { 0 };
        let streams = dice.percent(10);
        let next = (calls > 0 && depth < 2).then(|| {
            // Without a gift a child is passed on.
            let gift = given.settled;
            let mut next = self.step(Given { on: given.gift || gift, gift, ..given }, depth + 1);
            // A stream lets later calls wait for it, which may be those that it would wait for.
            next.awaits &= !streams;
            Box::new(next)
        });
        let kibibytes = self.kibibytes(depth);
        let dice = &mut self.dice;
        let mut answers = vec![Answer::Nothing, Answer::Child, Answer::Itself, Answer::Kept];
        if given.gift {
            answers.extend([Answer::Gift; 3]);
        }
        if next.as_ref().is_some_and(|next| next.answer != Answer::Nothing) && !streams {
            answers.extend([Answer::Promised; 2]);
        }
        Step {
            writes: dice.pick(&[0, 0, 1, 2]),
            calls,
            polls: dice.pick(&[0, 0, 0, 1, 3, 9]),
            awaits: dice.percent(30),
            early: dice.percent(20),
            keep: given.settled && dice.percent(15),
            use_kept: dice.percent(30),
            streams,
            passes_gift: given.settled,
            tails: dice.percent(20),
            kibibytes,
            caps: if dice.percent(2) { dice.pick(&[1, 60, 63, 64, 65, 100]) } else { 0 },
            answer: dice.pick(&answers),
            ending: self.ending(),
            next,
        }
    }

    /// The size of results and errors. Several of the largest at once would be more than may wait
    /// for a peer to read it.
    fn kibibytes(&mut self, depth: usize) -> u32 {
        if !self.dice.percent(2) {
            return 0;
        }
        let size = self.dice.pick(&[1, 60, 70, 3000, 8100, 8192, 9216]);
        if size > 100 && (depth > 1 || self.large == 0) {
            return 0;
        }
        self.large -= u32::from(size > 100);
        size
    }

    fn ending(&mut self) -> Ending {
        match self.dice.below(100) {
            0..5 => Ending::Fail,
            5 => Ending::Blank,
            6..8 if self.theme == Theme::Objects => Ending::Panic,
            8..10 if self.theme == Theme::Objects => Ending::Abort,
            _ => Ending::Return,
        }
    }
}

/// The capabilities that go with a step.
#[derive(Clone, Copy)]
struct Given {
    on: bool,
    gift: bool,
    /// The gift, if there is one, waits for no handler.
    settled: bool,
}
