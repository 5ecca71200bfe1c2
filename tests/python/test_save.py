"""References that a client saves: it disconnects, restores them, and can do what they allow; then they
are revoked.

What is in them is read and verified by `sturdyref.py`, which knows docs/sturdyref.md and no server.
"""

import time
import unittest
from contextlib import contextmanager
from datetime import datetime
from urllib.parse import urlsplit

import capnp
import capstead
import sturdyref
from nacl.signing import SigningKey
from served import Counter, ServedTest, run

COUNTER = Counter.schema.node.id
READ = 2
HOUR_MS = 3_600_000

READ_ONLY = {"methods": ["read"]}
UNIMPLEMENTED = "Method not implemented"


def now_ms():
    return time.time_ns() // 1_000_000


class SaveTest(ServedTest):
    def connected(self, work):
        """Runs `work`, and ends the connections that it made."""

        async def disconnecting():
            self.clients = []
            try:
                return await work
            finally:
                self.clients.clear()

        return run(disconnecting())

    async def restorer(self):
        """A new connection, to where the server listens now."""
        # The connection ends with it, whatever came by it.
        self.clients.append(await capstead.connect(self.reference))
        return self.clients[-1].restorer

    async def restore(self, reference):
        restored = await (await self.restorer()).restore(sturdyRef=reference)
        return restored.cap.as_interface(Counter)

    async def owned(self):
        """The counter, as one who holds the reference of all counters has it."""
        counters = await capstead.restore(self.reference)
        return counters.byName(key="x").object.cast_as(Counter)

    def refuses(self, why):
        return self.assertRaisesRegex(capnp.KjException, why)

    @contextmanager
    def fails(self, word):
        with self.assertRaises(capnp.KjException) as raised:
            yield
        self.assertEqual(capstead.reason_of(raised.exception), word, raised.exception.description)

    def public_key(self, name):
        """Of the server's secret keys, which no client has."""
        # The second line of a signing key says when it was made.
        text = (self.data / "keys" / name).read_text("utf-8")
        seed = bytes.fromhex(text.splitlines()[0])
        return SigningKey(seed).verify_key.encode()

    def verify(self, reference, now):
        """The reference, and what it allows as far as it says so itself."""
        parsed = sturdyref.parse_text(reference)[1]
        cluster = sturdyref.cluster_id(self.public_key("cluster"))
        return parsed, sturdyref.verify(parsed, cluster, [self.public_key("signing-1")], now)

    def increment_and_save(self, **terms):
        """As the owner; the connection ends with it."""

        async def work():
            counter = await self.owned()
            self.assertEqual((await counter.increment(by=41)).value, 41)
            return await capstead.share(counter, **terms)

        return self.connected(work())

    def test_a_saved_reference_allows_what_it_was_saved_for(self):
        last = now_ms() + HOUR_MS
        until = datetime.fromtimestamp(last / 1000)
        reference = self.increment_and_save(label="for Ada", until=until, **READ_ONLY)

        async def work():
            counter = await self.restore(reference)
            self.assertEqual((await counter.read()).value, 41)
            with self.refuses(UNIMPLEMENTED):
                await counter.increment()
            with self.refuses(UNIMPLEMENTED):
                await capstead.grants(counter)
            (grant,) = await capstead.grants(await self.owned())
            self.assertEqual((await counter.read()).value, 41)
            return grant

        grant = self.connected(work())
        self.assertEqual(grant.label, "for Ada")
        self.assertEqual(grant.caveats.notAfter, last)
        (methods,) = grant.caveats.methods
        self.assertEqual(methods.to_dict(), {"interface": COUNTER, "ordinals": [READ]})
        parsed, allowed = self.verify(reference, last)
        self.assertEqual(allowed, sturdyref.Caveats(last, frozenset({(COUNTER, READ)})))
        self.assertEqual((parsed.target[0], parsed.grant), (1, grant.id))
        with self.assertRaisesRegex(sturdyref.Refused, "expired"):
            self.verify(reference, last + 1)

    def test_what_is_saved_by_a_holder_allows_no_more_than_he_has(self):
        reference = self.increment_and_save(**READ_ONLY)

        async def save_more():
            return await capstead.share(await self.restore(reference))

        async def work(reference):
            counter = await self.restore(reference)
            with self.refuses(UNIMPLEMENTED):
                await counter.increment()
            return (await counter.read()).value

        saved_again = self.connected(save_more())
        self.assertEqual(self.connected(work(saved_again)), 41)

    def test_without_terms_everything_is_allowed_and_an_empty_set_allows_nothing(self):
        everything = self.increment_and_save()
        _, allowed = self.verify(everything, now_ms())
        self.assertEqual(allowed, sturdyref.Caveats())

        async def work():
            counter = await self.restore(everything)
            self.assertEqual((await counter.increment()).value, 42)
            nothing = await self.restore(await capstead.share(counter, methods=[]))
            with self.refuses(UNIMPLEMENTED):
                await nothing.read()

        self.connected(work())

    def test_a_reference_that_is_over_is_refused(self):
        over = self.increment_and_save(until=-1)
        with self.refuses("the reference was refused"):
            self.connected(self.restore(over))

    def test_a_live_capability_is_attenuated(self):
        async def work():
            counter = await self.owned()
            narrow = capstead.attenuate(counter, **READ_ONLY)
            self.assertEqual((await narrow.read()).value, 0)
            with self.refuses(UNIMPLEMENTED):
                await narrow.increment()
            self.assertEqual((await counter.increment()).value, 1)

        self.connected(work())

    def test_a_namespace_is_shared_with_less_of_its_objects(self):
        async def work():
            counters = await capstead.restore(self.reference)
            reads = (Counter, ["Counter.read"])
            text = await capstead.share(counters, "Ada", methods=["byName"], object_methods=reads)
            narrow = await capstead.restore(text)
            counter = narrow.byName(key="x").object.cast_as(Counter)
            self.assertEqual((await counter.read()).value, 0)
            with self.refuses(UNIMPLEMENTED):
                await counter.increment()
            with self.refuses(UNIMPLEMENTED):
                await narrow.create()

        self.connected(work())

    def test_a_method_that_is_not_there_is_refused_with_those_that_are(self):
        async def work():
            counter = await self.owned()
            for wrong in ("reed", "Poll.read", "READ"):
                has = f"Counter has no method {wrong}; it has Counter.increment, .*Persistent.save"
                with self.assertRaisesRegex(ValueError, has):
                    await capstead.share(counter, methods=[wrong])
            with self.assertRaisesRegex(TypeError, "a list"):
                capstead.attenuate(counter, methods="read")
            self.assertEqual(await capstead.grants(counter), [], "nothing was made")

        self.connected(work())

    def test_a_saved_reference_outlives_the_process(self):
        """The server is killed right after the answer, and started again, on another port."""
        reference = self.increment_and_save(**READ_ONLY)
        self.kill()
        self.serve()

        async def work():
            counter = await self.restore(reference)
            with self.refuses(UNIMPLEMENTED):
                await counter.increment()
            return (await counter.read()).value

        self.assertEqual(self.connected(work()), 41)

    def test_what_was_revoked_fails_at_once_and_for_ever(self):
        guests = self.increment_and_save(label="guest")

        async def work():
            owner = await self.owned()
            others = await capstead.share(owner, label="other")
            guest, other = await self.restore(guests), await self.restore(others)
            granted = await capstead.share(guest, label="of the guest's")
            held = await self.restore(granted)
            for counter in (guest, other, held):
                self.assertEqual((await counter.read()).value, 41)
            by_label = {grant.label: grant for grant in await capstead.grants(owner)}
            self.assertEqual(set(by_label), {"guest", "other", "of the guest's"})
            self.assertEqual(by_label["of the guest's"].parent, by_label["guest"].id)
            with self.fails("no-such-grant"):
                await capstead.revoke(other, by_label["guest"].id)
            await capstead.revoke(owner, by_label["guest"].id)
            for counter in (guest, held):
                with self.fails("revoked"):
                    await counter.read()
            for reference in (guests, granted):
                with self.fails("revoked"):
                    await self.restore(reference)
            self.assertEqual((await other.read()).value, 41)
            self.assertEqual([grant.label for grant in await capstead.grants(owner)], ["other"])
            return others

        others = self.connected(work())
        self.kill()
        self.serve()
        with self.fails("revoked"):
            self.connected(self.restore(guests))
        self.connected(self.restore(others))

    def test_a_bound_reference_is_restored_by_its_holder_alone(self):
        holder, thief = SigningKey.generate(), SigningKey.generate()
        reference = self.increment_and_save(holders=[holder.verify_key.encode()])
        parsed, allowed = self.verify(reference, now_ms())
        self.assertEqual(allowed.holders, (holder.verify_key.encode(),))

        async def proved_by(*keys):
            restorer = await self.restorer()
            begun = await restorer.challenge(sturdyRef=reference)
            message = sturdyref.holder_message(parsed, begun.challenge)
            signatures = [key.sign(message).signature for key in keys]
            finished = await begun.restoration.finish(signatures=signatures)
            with self.refuses("this challenge was used"):
                await begun.restoration.finish(signatures=signatures)
            return (await finished.cap.as_interface(Counter).read()).value

        self.assertEqual(self.connected(proved_by(holder)), 41)
        for keys in ((), (thief,), (holder, thief)):
            with self.refuses("the reference was refused"):
                self.connected(proved_by(*keys))
        with self.refuses("the reference was refused"):
            self.connected(self.restore(reference))


class HostsTest(ServedTest):
    """A server of four hosts, each of which has some of the objects."""

    command = [*ServedTest.command, "--hosts", "4"]

    def test_a_reference_of_any_host_is_good_as_it_is_after_a_restart(self):
        names = [f"hint {n}" for n in range(16)]

        async def save_all():
            counters = await capstead.restore(self.reference)
            found = [counters.byName(key=name).object.cast_as(Counter) for name in names]
            return [await capstead.share(counter) for counter in found]

        references = run(save_all())
        self.listen = urlsplit(self.reference).netloc
        self.assertEqual({urlsplit(text).netloc for text in references}, {self.listen})
        self.kill()
        self.serve()

        async def read_all():
            for reference in references:
                restored = await capstead.restore(reference)
                self.assertEqual((await restored.cast_as(Counter).read()).value, 0)

        run(read_all())


if __name__ == "__main__":
    unittest.main()
