"""Turns the text of a reference into a live capability.

To another machine everything goes over TLS, and the server first proves that it belongs to the reference's cluster;
docs/sturdyref.md says how.
"""

import asyncio
import hashlib
import ipaddress
import ssl
from collections.abc import Coroutine
from typing import Any, NamedTuple, TypeVar

import capnp

from ._schemas import restorer_capnp
from ._text import parse

T = TypeVar("T")

# In a certificate's field `subjectPublicKeyInfo`, these bytes precede the 32 bytes of an Ed25519 public key.
_ED25519_KEY = bytes.fromhex("302a300506032b6570032100")
# Tags of DER: a sequence, and the part of a certificate that gives its version.
_SEQUENCE = 0x30
_VERSION = 0xA0
_DIAL_SECONDS = 10
_TLS_ALONE = "the listener there speaks TLS alone: take the capstead+tls reference that its server gives out"
_NO_TLS = (
    "the listener there doesn't speak TLS, by which the reference is to be restored: start its server with --tls, or "
    "take the reference that it gives out now"
)


class _Listener(NamedTuple):
    host: str
    port: int
    # The hash of the key that the server has to prove to have; None where no proof is needed.
    cluster: bytes | None


class Connection:
    """A connection to a listener. It ends with `async with`, or when neither it nor a capability from it is held."""

    def __init__(self, stream: Any) -> None:
        self._client: Any = capnp.TwoPartyClient(stream)
        self._restorer: Any = self._client.bootstrap().cast_as(restorer_capnp.Restorer)

    def restore(self, reference: str, interface: Any = restorer_capnp.Namespace) -> Any:
        """The object or namespace that the reference stands for, as `interface`: its class's, or that of namespaces.

        This waits for nothing: the refusal of a reference shows in the first call.
        """
        return self.restorer.restore(sturdyRef=reference).cap.cast_as(interface)

    @property
    def restorer(self) -> Any:
        """The capability that every listener offers, for uses that `restore` lacks, such as proofs of holders."""
        if self._restorer is None:
            raise ConnectionError("the connection is closed: connect again")
        return self._restorer

    def close(self) -> None:
        """Ends the connection. Calls on their way fail."""
        if self._client is not None:
            self._client.close()
        self._client = self._restorer = None

    async def __aenter__(self) -> "Connection":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


async def connect(reference: str) -> Connection:
    """A connection to the listener that the reference names, which proves its cluster where that is needed.

    Raises ValueError if the text is cut off, changed, or not that of a reference, ssl.SSLError if the server doesn't
    prove that it belongs to the cluster, and OSError if it can't be reached. In the clear it asks the listener for the
    reference's owner, to learn that it is one; then it also raises capnp.KjException if the reference is refused.
    """
    host, port, cluster = _listener_of(reference)
    async with asyncio.timeout(_DIAL_SECONDS):
        if cluster is not None:
            tls = await asyncio.to_thread(_only_the_cluster, host, port, cluster)
            return Connection(await capnp.AsyncIoStream.create_connection(host, port, ssl=tls))
        connection = Connection(await capnp.AsyncIoStream.create_connection(host, port))
        try:
            await connection.restorer.locate(sturdyRef=reference)
        except capnp.KjException:
            if await asyncio.to_thread(_speaks_tls, host, port):
                raise ConnectionError(_TLS_ALONE) from None
            raise
        return connection


async def restore(reference: str, interface: Any = restorer_capnp.Namespace) -> Any:
    """Restores the reference over a connection of its own: see `connect` and `Connection.restore`."""
    return (await connect(reference)).restore(reference, interface)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs `main` in an event loop that capabilities need, and ends the connections that it made."""
    return asyncio.run(capnp.run(main))


def _listener_of(reference: str) -> _Listener:
    parsed = parse(reference)
    is_plain = parsed.scheme == "capstead" and _is_this_machine(parsed.host)
    return _Listener(parsed.host, parsed.port, None if is_plain else parsed.cluster)


def _is_this_machine(host: str) -> bool:
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _speaks_tls(host: str, port: int) -> bool:
    try:
        ssl.get_server_certificate((host, port), timeout=_DIAL_SECONDS)
    except OSError:
        return False
    return True


def _only_the_cluster(host: str, port: int, cluster: bytes) -> ssl.SSLContext:
    """TLS settings that accept only a server of the cluster.

    The listener is asked for its certificate first, and sent nothing. If the key in it is the cluster's, exactly this
    certificate is trusted, and no other: a server that shows it must have the private key that belongs to it.
    """
    try:
        shown = ssl.get_server_certificate((host, port), timeout=_DIAL_SECONDS)
    except (ssl.SSLError, ConnectionResetError) as error:
        raise ssl.SSLError(_NO_TLS) from error
    field = _public_key_field(ssl.PEM_cert_to_DER_cert(shown))
    key = field.removeprefix(_ED25519_KEY)
    is_key = len(key) == 32 and len(field) == len(_ED25519_KEY) + 32
    if not is_key or hashlib.sha256(b"capstead cluster v1" + key).digest() != cluster:
        raise ssl.SSLError("the server there can't prove that it belongs to the cluster of the reference")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["capstead/1"])
    context.check_hostname = False
    context.load_verify_locations(cadata=shown)
    return context


def _public_key_field(certificate: bytes) -> bytes:
    """The field `subjectPublicKeyInfo` of a certificate (RFC 5280, 4.1); empty if this is no certificate.

    It has to be found by its place: whoever makes a certificate can write a key into its other fields, too.
    """
    try:
        _, content, _ = _element(certificate, 0)
        _, to_be_signed, _ = _element(content, 0)
        # Serial number, algorithm, issuer, validity and subject come before, and the version may.
        at = 0
        for _ in range(6 if to_be_signed[0] == _VERSION else 5):
            *_, at = _element(to_be_signed, at)
        tag, _, end = _element(to_be_signed, at)
    except IndexError:
        return b""
    return to_be_signed[at:end] if tag == _SEQUENCE else b""


def _element(der: bytes, at: int) -> tuple[int, bytes, int]:
    """The element of DER that begins there: its tag, its content, and the place after it."""
    tag, length, at = der[at], der[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        length = int.from_bytes(der[at : at + size], "big")
        at += size
    if at + length > len(der):
        raise IndexError("the element is cut off")
    return tag, der[at : at + length], at + length
