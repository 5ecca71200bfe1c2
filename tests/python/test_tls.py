"""TLS from another language: the server proves itself by the key that a reference names.

The client is the package's. What it trusts, it trusts by the reference alone.
"""

import contextlib
import json
import socket
import ssl
import subprocess
import tempfile
import threading
import unittest
from pathlib import Path
from urllib.parse import urlsplit

import capstead
from served import CAPSTEAD, DEADLINE_SECONDS, Counter, run


class TlsTest(unittest.TestCase):
    def setUp(self):
        self.reference = self.serve()

    def serve(self, flags=("--tls",)):
        """The reference of all counters of a new server, of a cluster of its own."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        addresses = [*flags, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
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
            counter = counters.byName(key="x").object.cast_as(Counter)
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
        with self.assertRaisesRegex(ssl.SSLError, "can't prove that it belongs to the cluster"):
            self.increment(moved)

    def test_a_listener_of_the_other_kind_is_told_apart(self):
        with self.assertRaisesRegex(ConnectionError, "speaks TLS alone: take the capstead.tls reference"):
            self.increment(self.reference.replace("capstead+tls", "capstead"))
        plain = self.serve(flags=())
        with self.assertRaisesRegex(ssl.SSLError, "doesn't speak TLS, by which the reference is to be restored"):
            self.increment(plain.replace("capstead", "capstead+tls", 1))
        self.assertEqual(self.increment(plain), 1)

    def test_the_key_counts_only_in_its_own_field(self):
        shown = ssl.get_server_certificate(self.listener(), timeout=DEADLINE_SECONDS)
        prefix = bytes.fromhex("302a300506032b6570032100")
        _, _, rest = ssl.PEM_cert_to_DER_cert(shown).partition(prefix)
        key = (prefix + rest[:32]).hex()
        for forgery in (
            ["-set_serial", f"0x{key}"],
            ["-set_serial", "1", "-addext", f"1.2.3.4=DER:{key}"],
        ):
            with self.subTest(forgery[0]), self.impostor(forgery) as (address, received):
                moved = urlsplit(self.reference)._replace(netloc=address).geturl()
                with self.assertRaisesRegex(ssl.SSLError, "can't prove that it belongs to the cluster"):
                    self.increment(moved)
                self.assertEqual(received(), b"")

    def listener(self):
        address = urlsplit(self.reference)
        return address.hostname, address.port

    @contextlib.contextmanager
    def impostor(self, forgery):
        """The address of a listener whose certificate has a key of its own, and what clients tell it."""
        with tempfile.TemporaryDirectory() as folder:
            key, certificate = Path(folder, "key.pem"), Path(folder, "certificate.pem")
            command = ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-subj", "/CN=capstead"]
            files = ["-keyout", key, "-out", certificate, *forgery]
            subprocess.run([*command, *files], check=True, capture_output=True)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.set_alpn_protocols(["capstead/1"])
            context.load_cert_chain(certificate, key)
            listener = socket.create_server(("127.0.0.1", 0))
            told = []

            def serve():
                while True:
                    try:
                        stream, _ = listener.accept()
                    except OSError:
                        return
                    with contextlib.suppress(OSError), stream:
                        stream.settimeout(DEADLINE_SECONDS)
                        with context.wrap_socket(stream, server_side=True) as tls:
                            told.append(tls.recv(4096))

            thread = threading.Thread(target=serve)
            thread.start()
            try:
                yield f"127.0.0.1:{listener.getsockname()[1]}", lambda: b"".join(told)
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                listener.close()
                thread.join()

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
            # A refusal by the server may show only when something is read.
            self.connect(context).recv(1)

    def test_the_certificate_is_the_same_for_all_and_no_session_is_resumed(self):
        first, second = self.connect(self.curious()), self.connect(self.curious())
        self.assertEqual(first.getpeercert(True), second.getpeercert(True))
        self.assertFalse(first.session and first.session.has_ticket)


if __name__ == "__main__":
    unittest.main()
