"""The test vectors of docs/sturdyref.md, read from there, under an independent implementation.

The document says what is signed and in which bytes; whoever implements it from there alone agrees
with the server, or one of these tests fails. No server is needed.
"""

import base64
import re
import unittest
from pathlib import Path

import sturdyref
from nacl.signing import SigningKey
from sturdyref import Caveats, Refused

DOCUMENT = Path(__file__).resolve().parents[2].joinpath("docs/sturdyref.md").read_text("utf-8")
VECTORS = DOCUMENT.split("## Test vectors")[1]
NOW = 1_800_000_000_000
INTERFACE = 0x0102030405060708


def public_key(seed):
    return SigningKey(bytes([seed]) * 32).verify_key.encode()


CLUSTER = sturdyref.cluster_id(public_key(0x09))
SIGNING = public_key(0x07)


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def in_backticks(cell):
    return bytes.fromhex("".join(re.findall(r"`([0-9a-f]*)`", cell)))


def references():
    """One for each table with offsets. A table that begins later goes on with what stands before it."""
    found, whole = [], b""
    for table in re.findall(r"\| at \| part \| bytes \|\n\|[-|]+\|\n((?:\|.*\n)+)", VECTORS):
        for row in table.splitlines():
            at, _, data = cells(row)
            # Only the first row of a table may go back.
            whole = whole[: int(at)] if row == table.splitlines()[0] else whole
            assert int(at) == len(whole), row
            whole += in_backticks(data)
        found.append(whole)
    return found


def proof():
    """The challenge, the message, and each holder with its signature."""
    (table,) = re.findall(r"\| part \| bytes \|\n\|[-|]+\|\n((?:\|.*\n)+)", VECTORS.split("A proof")[1])
    rows = [(name, in_backticks(data)) for name, data in map(cells, table.splitlines())]
    of = lambda wanted: [data for name, data in rows if name == wanted]  # noqa: E731
    return of("challenge")[0], of("message")[0], of("holder"), of("its holder's signature")


def verify(whole, now_ms=NOW - 1):
    return sturdyref.verify(sturdyref.parse(whole), CLUSTER, [SIGNING], now_ms)


def is_accepted(whole):
    try:
        verify(whole)
    except Refused:
        return False
    return True


def flipped(whole):
    """The same with each of its bits flipped in turn."""
    for bit in range(len(whole) * 8):
        other = bytearray(whole)
        other[bit // 8] ^= 1 << bit % 8
        yield bit, bytes(other)


class SturdyrefTest(unittest.TestCase):
    def setUp(self):
        self.open, self.sealed, self.bound = references()

    def refuses(self, *args, why=""):
        return self.assertRaisesRegex(Refused, why, *args)

    def test_the_vectors_are_good_and_say_what_the_document_says(self):
        self.assertEqual(verify(self.open), Caveats(not_after_ms=NOW))
        self.assertEqual(verify(self.sealed), Caveats(not_after_ms=NOW - 1))
        holders = tuple(sorted([public_key(0x3D), public_key(0x3E)]))
        methods = frozenset({(INTERFACE, 1), (2**64 - 1, 258)})
        self.assertEqual(verify(self.bound), Caveats(NOW, methods, holders))
        self.assertEqual(sturdyref.parse(self.open).target, (1, bytes([4] * 16)))
        self.assertEqual(sturdyref.parse(self.bound).target, (2, bytes([5] * 16)))

    def test_each_is_good_to_its_last_millisecond(self):
        for whole, last in ((self.open, NOW), (self.sealed, NOW - 1), (self.bound, NOW)):
            verify(whole, last)
            with self.refuses(why="expired"):
                verify(whole, last + 1)

    def test_the_texts_are_those_of_the_bytes(self):
        texts = re.findall(r"^capstead://.*$", VECTORS, re.MULTILINE)
        parsed = [sturdyref.parse_text(text) for text in texts]
        self.assertEqual([address for address, _ in parsed], ["127.0.0.1:4000"] * 2)
        self.assertEqual([found.whole for _, found in parsed], [self.open, self.bound])
        text = texts[0]
        by_tls = sturdyref.parse_text(text.replace("capstead:", "capstead+tls:"))
        self.assertEqual(by_tls, sturdyref.parse_text(text))
        for wrong in (text + "=", text + "A", text + "\n", text.replace("/#", "#"), text[:-1],
                      text.replace("4000", "04000"), text.replace("4000", "65536"),
                      text.replace("127.0.0.1", "[1]"), text.replace("capstead", "http"),
                      text.replace("capstead", "capstead+tcp")):  # fmt: skip
            with self.refuses():
                sturdyref.parse_text(wrong)

    def test_a_text_has_no_bits_left_over(self):
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        self.assertEqual(len(self.sealed) % 3, 2, "the last letter has two bits too many")
        text = "capstead://[::1]:0/#" + base64.urlsafe_b64encode(self.sealed).decode().rstrip("=")
        self.assertEqual(sturdyref.parse_text(text)[1].whole, self.sealed)
        for more in (1, 2, 3):
            with self.refuses(why="left over"):
                sturdyref.parse_text(text[:-1] + letters[letters.index(text[-1]) + more])

    def test_no_bit_can_be_flipped(self):
        for whole in (self.open, self.sealed, self.bound):
            self.assertTrue(is_accepted(whole))
            for bit, forged in flipped(whole):
                self.assertFalse(is_accepted(forged), f"bit {bit}")

    def test_nothing_can_be_cut_off_or_added(self):
        for whole in (self.open, self.sealed, self.bound):
            for length in range(len(whole)):
                self.assertFalse(is_accepted(whole[:length]))
            self.assertFalse(is_accepted(whole + b"\0"))

    def test_another_cluster_or_signing_key_refuses_them(self):
        for whole in (self.open, self.sealed, self.bound):
            reference = sturdyref.parse(whole)
            with self.refuses(why="another cluster"):
                sturdyref.verify(reference, sturdyref.cluster_id(SIGNING), [SIGNING], 0)
            with self.refuses(why="unknown signing key"):
                sturdyref.verify(reference, CLUSTER, [public_key(1)], 0)

    def test_the_holders_proof_is_good_for_its_challenge_and_reference(self):
        challenge, message, holders, signatures = proof()
        reference, caveats = sturdyref.parse(self.bound), verify(self.bound)
        self.assertEqual(tuple(holders), caveats.holders)
        self.assertEqual(sturdyref.holder_message(reference, challenge), message)
        check = lambda *args: sturdyref.check_holders(reference, caveats, *args)  # noqa: E731
        check(challenge, signatures)
        wrong = ([], signatures[:1], signatures[::-1], signatures * 2, [signatures[0]] * 2)
        for other in wrong:
            with self.refuses():
                check(challenge, other)
        for _, forged in flipped(signatures[0]):
            with self.refuses():
                check(challenge, [forged, signatures[1]])
        with self.refuses():
            check(bytes(32), signatures)
        with self.refuses():
            sturdyref.check_holders(sturdyref.parse(self.sealed), caveats, challenge, signatures)

    def test_lists_of_caveats_have_one_encoding(self):
        key, other = sorted([public_key(1), public_key(2)])
        taken = ("00", "01820000", f"01830020{key.hex()}", f"01830040{key.hex()}{other.hex()}", "01050000")
        small = "01" + "00" * 31
        not_reduced = "f0" + "ff" * 30 + "7f"
        refused = ("01810007" + "00" * 7, "01820009" + "00" * 9, "01820014" + "00" * 20, "01830000",
                   f"01830040{other.hex()}{key.hex()}", f"01830040{key.hex() * 2}",
                   f"01830020{small}", f"01830020{not_reduced}", "01840000", "0282000081000000",
                   "11", f"01820a0a{''.join(f'{n:020x}' for n in range(257))}")  # fmt: skip
        for encoded in taken:
            sturdyref.parse_caveats(sturdyref.Reader(bytes.fromhex(encoded)))
        for encoded in refused:
            with self.refuses():
                sturdyref.parse_caveats(sturdyref.Reader(bytes.fromhex(encoded)))


if __name__ == "__main__":
    unittest.main()
