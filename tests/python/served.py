"""A server for each test: a child process on free ports, killed at the test's end."""

import asyncio
import json
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

import capstead

REPOSITORY = Path(__file__).resolve().parents[2]
BUILT = REPOSITORY / os.environ.get("CARGO_TARGET_DIR", "target") / "debug"
CAPSTEAD = os.environ.get("CAPSTEAD_BIN", BUILT / "capstead")
PASSING = os.environ.get("PASSING_BIN", BUILT / "examples/passing")
DEADLINE_SECONDS = 60

Counter = capstead.load(REPOSITORY / "examples/counter/schema/counter.capnp").Counter


def run(work):
    """Runs a coroutine, and ends the connections that it made."""
    return capstead.run(asyncio.wait_for(work, DEADLINE_SECONDS))


class ServedTest(unittest.TestCase):
    """Every test begins with an empty data directory and a server on it."""

    command = [CAPSTEAD, "serve"]
    listen = "127.0.0.1:0"

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.data = Path(folder.name, "capstead.data")
        self.addCleanup(self.kill)
        self.serve()

    def serve(self):
        addresses = ["--listen", self.listen, "--http", "127.0.0.1:0"]
        command = [*self.command, "--json", "--data", self.data, *addresses]
        pipe = subprocess.PIPE
        self.server = subprocess.Popen(command, stdout=pipe, stderr=subprocess.DEVNULL)
        announced = json.loads(self.server.stdout.readline())
        self.namespaces = announced["namespaces"]
        self.http = announced["http"].removeprefix("http://")
        self.reference = self.namespaces.get("Counter")

    def end(self):
        """Ends the server in order, within the deadline."""
        self.server.terminate()
        self.assertEqual(self.server.wait(DEADLINE_SECONDS), 0)

    def kill(self):
        self.server.kill()
        self.server.wait()
        self.server.stdout.close()
