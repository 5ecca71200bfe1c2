"""References, checked by code of its own: written from docs/sturdyref.md alone.

It reads the text, checks the layout byte by byte, verifies every signature, and says what the
reference allows. It makes nothing, and asks nobody: cluster, signing keys and time are arguments.
"""

import base64
import hashlib
import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

TEXT_BYTES_MAX = 8192
LINKS_MAX = CAVEATS_MAX = 16
METHODS_MAX = 256
CRITICAL, NOT_AFTER, METHODS, HOLDER = 0x80, 0x81, 0x82, 0x83
OPEN, SEALED = 1, 2

PRIME = 2**255 - 19
CURVE_D = -121665 * pow(121666, -1, PRIME)
# A point has small order if eight times it is the neutral one. Two of those coordinates are of points
# of order 8, and each stands for two points.
OF_ORDER_8 = int.from_bytes(
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"
)
SMALL_ORDER = {0, 1, PRIME - 1, OF_ORDER_8, PRIME - OF_ORDER_8}


class Refused(Exception):
    """The reference, or a proof, is not good."""


def require(condition, reason):
    if not condition:
        raise Refused(reason)


@dataclass(frozen=True)
class Caveats:
    """The methods that several lists leave together; `methods` is None if they leave all."""

    not_after_ms: int | None = None
    methods: frozenset | None = None
    holders: tuple = ()

    def also(self, other):
        times = [time for time in (self.not_after_ms, other.not_after_ms) if time is not None]
        sets = [methods for methods in (self.methods, other.methods) if methods is not None]
        return Caveats(
            min(times, default=None),
            frozenset.intersection(*sets) if sets else None,
            tuple(sorted({*self.holders, *other.holders})),
        )

    def allows(self, interface, ordinal):
        return self.methods is None or (interface, ordinal) in self.methods


@dataclass(frozen=True)
class Link:
    caveats: Caveats
    next_key: bytes
    signed: bytes
    signature: bytes


@dataclass(frozen=True)
class Reference:
    """A reference whose layout is sound. `payload`, `before_proof` and `whole` are bytes of it."""

    cluster: bytes
    signing_key: bytes
    target: tuple
    grant: bytes
    caveats: Caveats
    next_key: bytes
    signature: bytes
    links: tuple
    proof: tuple
    payload: bytes
    before_proof: bytes
    whole: bytes


class Reader:
    """Takes bytes from the front."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, length):
        require(length <= len(self.data) - self.at, "too short")
        self.at += length
        return self.data[self.at - length : self.at]

    def number(self, length):
        return int.from_bytes(self.take(length), "big")

    def key(self):
        key = self.take(32)
        require(is_sound_key(key), "no sound public key")
        return key


@lru_cache(maxsize=4096)
def is_sound_key(key):
    y = int.from_bytes(key, "little") % 2**255
    if y >= PRIME or y in SMALL_ORDER:
        return False
    # The other coordinate exists if its square is one.
    x_squared = (y * y - 1) * pow(CURVE_D * y * y + 1, -1, PRIME)
    return pow(x_squared, (PRIME - 1) // 2, PRIME) == 1


def parse_text(text):
    """The address and the reference of a text."""
    require(len(text.encode()) <= TEXT_BYTES_MAX, "too long")
    match = re.fullmatch(
        r"capstead(?:\+tls)?://(\[([0-9A-Fa-f:.]+)\]|[A-Za-z0-9._-]+):(0|[1-9][0-9]*)/#([A-Za-z0-9_-]*)", text
    )
    require(match, "no text of a reference")
    host, version_6, port, fragment = match.groups()
    require(int(port) < 2**16, "no port")
    if version_6 is not None:
        try:
            ipaddress.IPv6Address(version_6)
        except ValueError:
            raise Refused("no address") from None
    require(len(fragment) % 4 != 1, "no base64url")
    whole = base64.urlsafe_b64decode(fragment + "=" * (-len(fragment) % 4))
    again = base64.urlsafe_b64encode(whole).rstrip(b"=").decode()
    require(again == fragment, "bits are left over")
    return f"{host}:{port}", parse(whole)


def parse(whole):
    reader = Reader(whole)
    require(reader.number(1) == 1, "unknown version")
    cluster, signing_key = reader.take(32), reader.take(8)
    kind = reader.number(1)
    require(kind in (1, 2), "unknown kind of target")
    target, grant = (kind, reader.take(16)), reader.take(16)
    caveats, next_key = parse_caveats(reader), reader.key()
    payload = whole[: reader.at]
    signature = reader.take(64)
    count = reader.number(1)
    require(count <= LINKS_MAX, "too many links")
    links = tuple(parse_link(reader) for _ in range(count))
    before_proof = whole[: reader.at]
    tag = reader.number(1)
    require(tag in (OPEN, SEALED), "unknown proof")
    proof = (tag, reader.take(32 if tag == OPEN else 64))
    require(reader.at == len(whole), "something follows")
    return Reference(
        cluster, signing_key, target, grant, caveats, next_key, signature, links, proof, payload,
        before_proof, whole,
    )  # fmt: skip


def parse_link(reader):
    start = reader.at
    caveats, next_key = parse_caveats(reader), reader.key()
    return Link(caveats, next_key, reader.data[start : reader.at], reader.take(64))


def parse_caveats(reader):
    count = reader.number(1)
    require(count <= CAVEATS_MAX, "too many caveats")
    values, last = {}, -1
    for _ in range(count):
        kind = reader.number(1)
        require(kind > last, "kinds don't ascend")
        last = kind
        value = reader.take(reader.number(2))
        known = kind in (NOT_AFTER, METHODS, HOLDER)
        require(known or not kind & CRITICAL, "unknown critical caveat")
        values[kind] = value
    not_after = methods = None
    holders = ()
    if NOT_AFTER in values:
        require(len(values[NOT_AFTER]) == 8, "no time")
        not_after = int.from_bytes(values[NOT_AFTER], "big")
    if METHODS in values:
        pieces = ascending(values[METHODS], 10)
        require(len(pieces) <= METHODS_MAX, "too many methods")
        number = int.from_bytes
        methods = frozenset((number(piece[:8], "big"), number(piece[8:], "big")) for piece in pieces)
    if HOLDER in values:
        holders = tuple(ascending(values[HOLDER], 32))
        require(holders, "no holder")
        require(all(map(is_sound_key, holders)), "no sound public key")
    return Caveats(not_after, methods, holders)


def ascending(value, length):
    require(len(value) % length == 0, "pieces of another length")
    pieces = [value[at : at + length] for at in range(0, len(value), length)]
    require(all(one < two for one, two in zip(pieces, pieces[1:])), "not strictly ascending")
    return pieces


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def cluster_id(public_key):
    return sha256(b"capstead cluster v1", public_key)


def signing_key_id(public_key):
    return sha256(b"capstead signing key v1", public_key)[:8]


def check_signature(public_key, message, signature):
    # The library refuses points of small order, and numbers that are not reduced.
    try:
        VerifyKey(public_key).verify(message, signature)
    except BadSignatureError:
        raise Refused("a signature is wrong") from None


def verify(reference, cluster, signing_keys, now_ms):
    """The rights of a reference to this cluster, of which these are the public signing keys."""
    require(reference.cluster == cluster, "another cluster")
    known = {signing_key_id(key): key for key in signing_keys}
    require(reference.signing_key in known, "unknown signing key")
    check_signature(
        known[reference.signing_key], b"capstead sturdyref v1" + reference.payload, reference.signature
    )
    before, key, caveats = reference.payload + reference.signature, reference.next_key, reference.caveats
    for link in reference.links:
        check_signature(key, b"capstead sturdyref link v1" + sha256(before) + link.signed, link.signature)
        before, key = before + link.signed + link.signature, link.next_key
        caveats = caveats.also(link.caveats)
    check_proof(reference, key)
    require(caveats.not_after_ms is None or now_ms <= caveats.not_after_ms, "expired")
    return caveats


def check_proof(reference, last_key):
    tag, proof = reference.proof
    if tag == OPEN:
        require(SigningKey(proof).verify_key.encode() == last_key, "the secret is wrong")
    else:
        check_signature(last_key, b"capstead sturdyref seal v1" + sha256(reference.before_proof), proof)


def holder_message(reference, challenge):
    return b"capstead holder proof v1" + reference.cluster + sha256(reference.whole) + challenge


def check_holders(reference, caveats, challenge, signatures):
    """Tells whether all holders that `verify` gave in `caveats` have signed `challenge`."""
    require(len(signatures) == len(caveats.holders), "another number of signatures")
    for key, signature in zip(caveats.holders, signatures):
        require(len(signature) == 64, "no signature")
        check_signature(key, holder_message(reference, challenge), signature)
