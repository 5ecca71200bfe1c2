"""Promises that lead back to objects of the server: calls on them keep their order, and none is lost.

Each round makes a way to an object, by what a client in Python can make: promises that are kept later,
servers that hand calls on, and results that aren't there yet. Objects make calls by that way.

The library reflects calls unasked, as tail calls. A server in Python can't make one of its own: with
pycapnp 2.2.4 `tail_call` to an object of another process ends the one that makes it, whoever is called.
"""

import asyncio
import os
import random

import capnp
import capstead
from served import PASSING, REPOSITORY, ServedTest, run

passing_capnp = capstead.load(REPOSITORY / "tests/passing/passing.capnp")
Passer = passing_capnp.Passer

SEED = int(os.environ.get("SEED", 1))
ROUNDS = int(os.environ.get("ROUNDS", 2000))
ROUNDS_AT_A_TIME = 8
OBJECTS = 12  # of each kind; every host has some
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


class Player:
    """The player of rounds over one connection."""

    def __init__(self, namespaces, seed):
        self.lot, self.stub, self.due = random.Random(seed), seed << 32, []
        # Plain ones, exclusive ones that are called, and exclusive ones that call.
        kinds = [("Plain", "called"), ("Exclusive", "called"), ("Exclusive", "caller")]
        self.objects = [
            namespaces[kind].byName(key=f"{name} {at}").object.cast_as(Passer)
            for kind, name in kinds
            for at in range(OBJECTS)
        ]

    def any_plain(self):
        return self.objects[self.lot.randrange(OBJECTS)]

    def any_called(self):
        at = self.lot.randrange(2 * OBJECTS)
        return self.objects[at], at, str(at)

    def kept(self, cap, breaks=False):
        keeper = Keeper(breaks)
        self.due.append(keeper.time)
        return Passer._new_client(keeper).echo(cap=cap).cap

    def lead(self, depth):
        """Something to call, the number of the object that it leads to, and by what way."""
        if depth == 0:
            if self.lot.random() < 0.1:
                return self.kept(self.any_plain(), breaks=True), None, "nowhere"
            return self.any_called()
        to, end, text = self.lead(depth - 1)
        way = self.lot.choice(["forward", "promise", "echo", "promised", "later", "early"])
        text = f"{way} to {text}"
        if way == "forward":
            return Passer._new_client(Forward(to)), end, text
        if way == "promise":
            return self.kept(to), end, text
        if way == "echo":
            by, _, through = self.echoer(depth)
            return by.echo(cap=to).cap, end, f"{text} by ({through})"
        if way == "promised":
            by, _, through = self.echoer(depth)
            of = self.any_called()[0]
            return of.promised(by=by, cap=to).cap, end, f"{text} by ({through})"
        until = self.kept(self.any_plain())
        return getattr(self.any_plain(), way)(cap=to, until=until).cap, end, text

    def echoer(self, depth):
        way = self.lead(self.lot.randrange(depth))
        return self.any_called() if way[1] is None else way

    async def play_one(self):
        self.stub += 1
        calls = {"stub": self.stub, "count": self.lot.randint(1, 6)}
        by = self.lot.choice([at for at in range(3 * OBJECTS) if at // OBJECTS != 1])
        how = self.lot.choice(["call", "call", "giveUp", "relay", "callPromised", "oneself"])
        on, end, text = self.lead(self.lot.randrange(4))
        text = f"seed {SEED}: {by}: {how}, {text}"
        try:
            await self.make(how, self.objects[by], on, calls)
        except capnp.KjException as error:
            assert end is None and WHY in error.description, f"{text}: {error.description}"
            return
        assert end is not None, f"{text}: calls on a broken promise succeed"
        notes = list((await self.objects[end].notes(stub=calls["stub"])).notes)
        in_order = notes == sorted(set(notes)) and notes[-1:] == [calls["count"] - 1]
        whole = how == "giveUp" or len(notes) == calls["count"]
        assert in_order and whole, f"{text}: {calls['count']} calls started as {notes}"

    async def make(self, how, by, on, calls):
        if how == "relay":
            await by.relay(to=self.any_plain(), on=on, **calls)
        elif how == "callPromised":
            through, _, _ = self.echoer(4)
            await by.callPromised(by=through, on=on, **calls)
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
            await Player(found, SEED).play(ROUNDS)

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
