"""Promises that lead back to objects of the server: calls on them keep their order, and none is lost.

Each round makes a way to an object, by what a client in Python can make: promises that are kept later,
servers that hand calls on, and results that aren't there yet. Objects make calls by that way.

The library reflects calls unasked, as tail calls. A server in Python can't make one of its own: with
pycapnp 2.2.4 `tail_call` to an object of another process ends the one that makes it, whoever is called.

The C++ library below pycapnp 2.2.4 turns calls around itself, as a log of the messages shows: calls that wait for
a promise of a promise are overtaken by one that comes when it is known. So a call of an object passes at most
PROMISES_MAX promises in a row on this side.
"""

import asyncio
import os
import random
from typing import Any, NamedTuple

import capnp
import capstead
from served import PASSING, REPOSITORY, ServedTest, run

passing_capnp = capstead.load(REPOSITORY / "tests/passing/passing.capnp")
Passer = passing_capnp.Passer

SEED = int(os.environ.get("SEED", 1))
ROUNDS = int(os.environ.get("ROUNDS", 2000))
ROUNDS_AT_A_TIME = 8
OBJECTS = 12  # of each kind; every host has some
PROMISES_MAX = 1
WHY = "the promise is broken, as was agreed"


class Forward(Passer.Server):
    """Hands calls on, and answers when it is answered; with promises, before that."""

    def __init__(self, to):
        self.to = to

    async def note(self, stub, n, _context, **_):
        return (await self.to.note(stub=stub, n=n)).n

    async def echo(self, cap, _context, **_):
        return self.to.echo(cap=cap).cap


class Keeper(Passer.Server):
    """Its results are promises, until it is time."""

    def __init__(self, breaks):
        self.time, self.breaks = asyncio.Event(), breaks

    async def echo(self, cap, _context, **_):
        await self.time.wait()
        if self.breaks:
            raise capnp.KjException(message=WHY, type=capnp.KjException.Type.FAILED)
        return cap


class Lead(NamedTuple):
    """Something to call."""

    cap: Any
    end: int | None  # the object that it leads to
    text: str  # by what way
    promises: int = 0  # that a call passes in a row, on this side
    echoed: int = 1  # as many for calls on the results of its `echo`


class Player:
    """The player of rounds over one connection."""

    def __init__(self, objects, seed):
        self.lot, self.stub, self.due = random.Random(seed), seed << 32, []
        self.objects = objects

    @classmethod
    async def among(cls, namespaces, seed):
        # Plain ones, exclusive ones that are called, and exclusive ones that call.
        kinds = [("Plain", "called"), ("Exclusive", "called"), ("Exclusive", "caller")]
        found = [
            namespaces[kind].byName(key=f"{name} {at}") for kind, name in kinds for at in range(OBJECTS)
        ]
        return cls([(await answer).object.as_interface(Passer) for answer in found], seed)

    def any_plain(self):
        return self.objects[self.lot.randrange(OBJECTS)]

    def any_called(self):
        at = self.lot.randrange(2 * OBJECTS)
        return Lead(self.objects[at], at, str(at))

    def kept(self, cap, breaks=False):
        keeper = Keeper(breaks)
        self.due.append(keeper.time)
        return Passer._new_client(keeper).echo(cap=cap).cap

    def lead(self, depth):
        if depth == 0:
            if self.lot.random() < 0.1:
                return Lead(self.kept(self.any_plain(), breaks=True), None, "nowhere", 1, 2)
            return self.any_called()
        to = self.lead(depth - 1)
        way = self.lot.choice(["forward", "promise", "echo", "promised", "later", "early"])
        by = self.echoer(depth, to) if way in ("echo", "promised") else None
        more = (by.echoed if by else 0) + (way != "echo")
        if way == "forward" or to.promises + more > PROMISES_MAX:
            forward = Passer._new_client(Forward(to.cap))
            return Lead(forward, to.end, f"forward to {to.text}", 0, to.echoed + 1)
        text = f"{way} to {to.text}" + (f" by ({by.text})" if by else "")
        cap = self.promise(way, to.cap, by)
        return Lead(cap, to.end, text, to.promises + more, to.echoed + more)

    def promise(self, way, cap, by):
        if way == "promise":
            return self.kept(cap)
        if way == "echo":
            return by.cap.echo(cap=cap).cap
        if way == "promised":
            return self.any_called().cap.promised(by=by.cap, cap=cap).cap
        until = self.kept(self.any_plain())
        return getattr(self.any_plain(), way)(cap=cap, until=until).cap

    def echoer(self, depth, to):
        """Something whose `echo` may return what leads there."""
        way = self.lead(self.lot.randrange(depth))
        fits = way.end is not None and way.echoed + to.promises <= PROMISES_MAX
        return way if fits else self.any_called()

    async def play_one(self):
        self.stub += 1
        calls = {"stub": self.stub, "count": self.lot.randint(1, 6)}
        by = self.lot.choice([at for at in range(3 * OBJECTS) if at // OBJECTS != 1])
        how = self.lot.choice(["call", "call", "giveUp", "relay", "callPromised", "oneself"])
        to = self.lead(self.lot.randrange(4))
        through = self.echoer(4, to) if how == "callPromised" else None
        if through and through.echoed + to.promises > PROMISES_MAX:
            how, through = "call", None
        text = f"seed {SEED}: {by}: {how}, {to.text}" + (f" by ({through.text})" if through else "")
        try:
            await self.make(how, self.objects[by], to.cap, through, calls)
        except capnp.KjException as error:
            assert to.end is None and WHY in error.description, f"{text}: {error.description}"
            return
        assert to.end is not None, f"{text}: calls on a broken promise succeed"
        notes = list((await self.objects[to.end].notes(stub=calls["stub"])).notes)
        in_order = notes == sorted(set(notes)) and notes[-1:] == [calls["count"] - 1]
        whole = how == "giveUp" or len(notes) == calls["count"]
        assert in_order and whole, f"{text}: {calls['count']} calls started as {notes}"

    async def make(self, how, by, on, through, calls):
        if how == "relay":
            await by.relay(to=self.any_plain(), on=on, **calls)
        elif how == "callPromised":
            await by.callPromised(by=through.cap, on=on, **calls)
        elif how == "oneself":
            made = [on.note(stub=calls["stub"], n=n) for n in range(calls["count"])]
            for n, noted in enumerate(made):
                assert (await noted).n == n, "another call's answer"
        else:
            await getattr(by, how)(on=on, **calls)

    async def keep_promises(self):
        """Keeps one promise after the other, in any order, with any time between them."""
        while True:
            if self.due:
                self.due.pop(self.lot.randrange(len(self.due))).set()
            await asyncio.sleep(self.lot.choice([0, 0, 0.0003]))

    async def play(self, rounds):
        promises = asyncio.create_task(self.keep_promises())
        for _ in range(rounds // ROUNDS_AT_A_TIME):
            await asyncio.gather(*(self.play_one() for _ in range(ROUNDS_AT_A_TIME)))
        promises.cancel()


class PassingTest(ServedTest):
    def play(self):
        async def connected():
            connection = await capstead.connect(self.namespaces["Plain"])
            found = {kind: connection.restore(text) for kind, text in self.namespaces.items()}
            player = await Player.among(found, SEED)
            await player.play(ROUNDS)

        run(connected())
        self.end()


class OneHost(PassingTest):
    command = [PASSING, "--hosts", "1"]

    def test_calls_on_promises_keep_their_order(self):
        self.play()


class FourHosts(PassingTest):
    command = [PASSING, "--hosts", "4"]

    def test_calls_on_promises_keep_their_order(self):
        self.play()
