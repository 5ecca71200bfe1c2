"""TLS from another language: the server proves itself by the key that a reference names.

The client is the package's. What it trusts, it trusts by the reference alone.
"""

import json
import socket
import ssl
import subprocess
import tempfile
import unittest
from pathlib import Path
from urllib.parse import urlsplit

import capstead
from served import CAPSTEAD, DEADLINE_SECONDS, Counter, run


class TlsTest(unittest.TestCase):
    def setUp(self):
        self.reference = self.serve()

    def serve(self):
        """The reference of all counters of a new server, of a cluster of its own."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        addresses = ["--tls", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        data = Path(folder.name, "capstead.data")
        server = subprocess.Popen(
            [CAPSTEAD, "serve", "--json", "--data", data, *addresses],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.addCleanup(server.stdout.close)
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        return json.loads(server.stdout.readline())["namespaces"]["Counter"]

    def increment(self, reference):
        async def connected():
            counters = await capstead.restore(reference)
            counter = counters.byName(name="x").object.cast_as(Counter)
            return (await counter.increment()).value

        return run(connected())

    def connect(self, context):
        listener = urlsplit(self.reference)
        stream = socket.create_connection(
            (listener.hostname, listener.port), timeout=DEADLINE_SECONDS
        )
        self.addCleanup(stream.close)
        tls = context.wrap_socket(stream)
        self.addCleanup(tls.close)
        return tls

    def curious(self):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context

    def test_a_reference_is_restored_and_called(self):
        self.assertTrue(self.reference.startswith("capstead+tls://127.0.0.1:"))
        self.assertEqual(self.increment(self.reference), 1)
        self.assertEqual(self.increment(self.reference), 2)

    def test_a_server_of_another_cluster_is_not_spoken_to(self):
        address = urlsplit(self.serve()).netloc
        moved = urlsplit(self.reference)._replace(netloc=address).geturl()
        with self.assertRaisesRegex(ssl.SSLError, "does not belong to the cluster"):
            self.increment(moved)

    def test_only_the_newest_version_is_spoken(self):
        context = self.curious()
        context.set_alpn_protocols(["capstead/1"])
        tls = self.connect(context)
        self.assertEqual(tls.version(), "TLSv1.3")
        self.assertEqual(tls.selected_alpn_protocol(), "capstead/1")
        old = self.curious()
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with self.assertRaises(ssl.SSLError):
            self.connect(old)

    def test_another_protocol_is_refused(self):
        context = self.curious()
        context.set_alpn_protocols(["h2"])
        with self.assertRaises(ssl.SSLError):
            # What the server refuses may show only when something is read.
            self.connect(context).recv(1)

    def test_the_certificate_is_the_same_for_all_and_no_session_is_resumed(self):
        first, second = self.connect(self.curious()), self.connect(self.curious())
        self.assertEqual(first.getpeercert(True), second.getpeercert(True))
        self.assertFalse(first.session and first.session.has_ticket)


if __name__ == "__main__":
    unittest.main()
