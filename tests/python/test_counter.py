"""The counter from another language: pipelined calls, their order, and references that are refused."""

import subprocess
import sys
import unittest
from itertools import accumulate

import capnp
import capstead
from served import DEADLINE_SECONDS, REPOSITORY, Counter, ServedTest, run


class CounterTest(ServedTest):
    def run_client(self, *args):
        command = [sys.executable, "examples/counter/client.py", *args]
        return subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, timeout=DEADLINE_SECONDS
        )

    def with_counter(self, work, name="x"):
        """Runs `work` with a counter that no answer was waited for."""

        async def connected():
            counters = await capstead.restore(self.reference)
            return await work(counters.byName(key=name).object.cast_as(Counter))

        return run(connected())

    def test_the_example_says_what_the_counter_is_now(self):
        """The line that the server prints for Python does what it says, each time it is pasted."""
        for value in (1, 2):
            done = self.run_client(self.reference, "my counter")
            self.assertEqual(done.stdout, f"my counter is now {value}\n", done.stderr)
            self.assertEqual(done.returncode, 0)
        self.assertNotEqual(self.run_client().returncode, 0)

    def test_the_example_says_in_one_line_why_it_failed(self):
        """A wrong text, a reference that is refused, and a server that isn't there."""
        wrong = self.reference[:-4] + ("AAAA" if self.reference[-4:] != "AAAA" else "BBBB")
        texts = ["nonsense", "capstead://", "capstead://127.0.0.1:x/#AA", "http://127.0.0.1:1/#AA", wrong]
        failed = [self.run_client(text, "x") for text in texts]
        self.kill()
        failed.append(self.run_client(self.reference, "x"))
        for done in failed:
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
            self.assertTrue(done.stderr.startswith("client.py: "), done.stderr)

    def test_calls_are_made_before_answers_are_there_and_happen_in_order(self):
        """The sums tell the order: calls in any other one would give other sums on the way."""
        steps = [step * step % 1009 + 1 for step in range(300)]

        async def work(counter):
            promises = [counter.increment(by=step) for step in steps]
            last = counter.read()
            return [(await promise).value for promise in promises], (await last).value

        values, last = self.with_counter(work)
        self.assertEqual(values, list(accumulate(steps)))
        self.assertEqual(last, sum(steps))

    def test_what_was_acknowledged_survives_a_kill(self):
        """The server is killed right after the answer, and started again."""

        async def increment(counter):
            return (await counter.increment(by=41)).value

        async def read(counter):
            return (await counter.read()).value

        self.assertEqual(self.with_counter(increment), 41)
        self.kill()
        self.serve()
        self.assertEqual(self.with_counter(read), 41)

    def test_a_repeated_call_counts_once(self):
        """The reply is lost with the server; the call is made again with its request id."""
        request_id = capstead.request_id()

        async def increment(counter):
            return (await capstead.once(counter, request_id).increment(by=41)).value

        async def read(counter):
            return (await counter.read()).value

        self.assertEqual(self.with_counter(increment), 41)
        self.kill()
        self.serve()
        self.assertEqual(self.with_counter(increment), 41)
        self.assertEqual(self.with_counter(read), 41)

    def test_an_overflow_is_an_error_and_changes_nothing(self):
        """The object's own sentence arrives, and the connection goes on."""

        async def work(counter):
            most = 2**63 - 1
            self.assertEqual((await counter.increment(by=most)).value, most)
            with self.assertRaisesRegex(capnp.KjException, "the counter is full"):
                await counter.increment()
            return (await counter.read()).value

        self.assertEqual(self.with_counter(work), 2**63 - 1)

    def test_a_forged_reference_is_refused(self):
        """For all that may be wrong with it, the words are the same, and nothing is counted."""
        start, fragment = self.reference.split("#")
        other = {"A": "B"}.get(fragment[40], "A")
        flipped = f"{start}#{fragment[:40]}{other}{fragment[41:]}"
        for forged in (flipped, self.reference[:-4], f"{start}#{fragment}AAAA", f"{start}#"):
            done = self.run_client(forged, "x")
            self.assertNotEqual(done.returncode, 0)
            self.assertIn("the reference was refused", done.stderr)
            self.assertEqual(done.stdout, "")

        async def read(counter):
            return (await counter.read()).value

        self.assertEqual(self.with_counter(read), 0)


if __name__ == "__main__":
    unittest.main()
