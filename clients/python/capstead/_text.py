"""Reads the text of a reference, and finds mistakes in it before any server learns of them.

docs/sturdyref.md has the layout. A text that lost its end, that is none, or that was changed, is told apart in the
words of the client in Rust. Only what is signed by the holders' own keys can be checked here: the rest is for the
server, which gives no reason.

The arithmetic takes another time for each secret. Only the program that holds the reference can measure it, and asks
for it once or twice.
"""

import base64
import binascii
import hashlib
import ipaddress
import re
from typing import NamedTuple, NoReturn

_TEXT_BYTES_MAX = 8192
_CAVEATS_MAX = _LINKS_MAX = 16
_OPEN, _SEALED = 1, 2
_KEY, _SIGNATURE = 32, 64

_TEXT = re.compile(
    r"(capstead(?:\+tls)?)://(\[([0-9A-Fa-f:.]+)\]|[A-Za-z0-9._-]+):([1-9][0-9]*)/#(.*)", re.ASCII | re.DOTALL
)
_CUT = "it is cut off: its end is missing"
_NO_TEXT = "the text is not that of a reference"
_LAYOUT = "the bytes are not laid out as a reference"
_VERSION = "the version of the layout is unknown"
_CHANGED = "its text was changed"


class Parsed(NamedTuple):
    scheme: str
    host: str
    port: int
    # The hash of the key that a server of the cluster can prove to have.
    cluster: bytes


def parse(text: str) -> Parsed:
    """The parts of a text that say where to restore it. Raises ValueError with a sentence that says what is wrong."""
    match = _TEXT.fullmatch(text) if len(text.encode()) <= _TEXT_BYTES_MAX else None
    if match is None:
        _refuse(_NO_TEXT)
    scheme, host, version_6, port, fragment = match.groups()
    if int(port) >= 1 << 16 or (version_6 is not None and not _is_version_6(version_6)):
        _refuse(_NO_TEXT)
    whole = _decoded(fragment)
    cluster = _check(whole)
    return Parsed(scheme, version_6 or host, int(port), cluster)


def _refuse(why: str) -> NoReturn:
    raise ValueError(f"the reference was refused: {why}; copy the whole text once more")


def _is_version_6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _decoded(fragment: str) -> bytes:
    if not re.fullmatch(r"[A-Za-z0-9_-]*", fragment):
        _refuse(_NO_TEXT)
    try:
        whole = base64.urlsafe_b64decode(fragment + "=" * (-len(fragment) % 4))
    except binascii.Error:
        _refuse(_CUT)
    # All letters are good. Bits that are left over belong to the next byte.
    if base64.urlsafe_b64encode(whole).rstrip(b"=").decode() != fragment:
        _refuse(_CUT)
    return whole


class _Reader:
    """Takes bytes from the front."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, length: int) -> bytes:
        if length > len(self.data) - self.at:
            _refuse(_CUT)
        self.at += length
        return self.data[self.at - length : self.at]

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length), "big")


def _require(condition: bool) -> None:
    if not condition:
        _refuse(_LAYOUT)


def _check(whole: bytes) -> bytes:
    """Checks the layout, the links and the proof; returns the cluster."""
    reader = _Reader(whole)
    if reader.number(1) != 1:
        _refuse(_VERSION)
    cluster = reader.take(32)
    reader.take(8)
    kind = reader.number(1)
    reader.take(16)
    _require(kind in (1, 2))
    reader.take(16)
    _skip_caveats(reader)
    key = reader.take(_KEY)
    reader.take(_SIGNATURE)
    links_at = reader.at
    count = reader.number(1)
    _require(count <= _LINKS_MAX)
    signed = []
    for _ in range(count):
        start = reader.at
        _skip_caveats(reader)
        following = reader.take(_KEY)
        link = whole[start : reader.at]
        before = hashlib.sha256(whole[:links_at] + whole[links_at + 1 : start]).digest()
        signed.append((key, b"capstead sturdyref link v1" + before + link, reader.take(_SIGNATURE)))
        key = following
    before = hashlib.sha256(whole[: reader.at]).digest()
    proof = reader.number(1)
    _require(proof in (_OPEN, _SEALED))
    shown = reader.take(_KEY if proof == _OPEN else _SIGNATURE)
    _require(reader.at == len(whole))
    if proof == _SEALED:
        signed.append((key, b"capstead sturdyref seal v1" + before, shown))
    is_good = proof == _SEALED or _public_key(shown) == key
    if not is_good or not all(_is_signature(*each) for each in signed):
        _refuse(_CHANGED)
    return cluster


def _skip_caveats(reader: _Reader) -> None:
    count, last = reader.number(1), -1
    _require(count <= _CAVEATS_MAX)
    for _ in range(count):
        kind = reader.number(1)
        _require(kind > last)
        last = kind
        reader.take(reader.number(2))


# Ed25519 (RFC 8032), because Python has none. Points are in extended coordinates.

_PRIME = 2**255 - 19
_ORDER = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, _PRIME) % _PRIME
_ROOT = pow(2, (_PRIME - 1) // 4, _PRIME)

_Point = tuple[int, int, int, int]


def _plus(one: _Point, two: _Point) -> _Point:
    a = (one[1] - one[0]) * (two[1] - two[0]) % _PRIME
    b = (one[1] + one[0]) * (two[1] + two[0]) % _PRIME
    c = 2 * one[3] * two[3] * _D % _PRIME
    d = 2 * one[2] * two[2] % _PRIME
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _PRIME, g * h % _PRIME, f * g % _PRIME, e * h % _PRIME


def _times(factor: int, point: _Point) -> _Point:
    total: _Point = (0, 1, 1, 0)
    while factor > 0:
        if factor & 1:
            total = _plus(total, point)
        point = _plus(point, point)
        factor >>= 1
    return total


def _point(encoded: bytes) -> _Point | None:
    number = int.from_bytes(encoded, "little")
    sign, y = number >> 255, number & ((1 << 255) - 1)
    if y >= _PRIME:
        return None
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _PRIME) % _PRIME
    x = pow(square, (_PRIME + 3) // 8, _PRIME)
    if (x * x - square) % _PRIME != 0:
        x = x * _ROOT % _PRIME
    if (x * x - square) % _PRIME != 0 or (x == 0 and sign == 1):
        return None
    if x & 1 != sign:
        x = _PRIME - x
    return x, y, 1, x * y % _PRIME


_BASE_Y = 4 * pow(5, -1, _PRIME) % _PRIME


def _base() -> _Point:
    point = _point(_BASE_Y.to_bytes(32, "little"))
    assert point is not None
    return point


def _encoded(point: _Point) -> bytes:
    inverse = pow(point[2], -1, _PRIME)
    x, y = point[0] * inverse % _PRIME, point[1] * inverse % _PRIME
    return (y | (x & 1) << 255).to_bytes(32, "little")


def _public_key(seed: bytes) -> bytes:
    scalar = int.from_bytes(hashlib.sha512(seed).digest()[:32], "little")
    scalar = scalar & ((1 << 254) - 8) | 1 << 254
    return _encoded(_times(scalar, _base()))


def _is_signature(key: bytes, message: bytes, signature: bytes) -> bool:
    point, factor = _point(key), int.from_bytes(signature[32:], "little")
    commitment = _point(signature[:32])
    if point is None or commitment is None or factor >= _ORDER:
        return False
    challenge = int.from_bytes(hashlib.sha512(signature[:32] + key + message).digest(), "little") % _ORDER
    expected = _plus(commitment, _times(challenge, point))
    return _encoded(_times(factor, _base())) == _encoded(expected)
