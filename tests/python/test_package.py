"""The package of clients: what it is made of, whichever way it was installed."""

import base64
import inspect
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import typing
import unittest
import zipfile
from pathlib import Path

import capnp
import capstead
from served import REPOSITORY

SCHEMAS = ["facet.capnp", "http.capnp", "restorer.capnp", "sturdyref.capnp"]


def build(what, source, folder):
    """Builds a package as pip does, without fetching anything; its path."""
    call = f"from setuptools import build_meta as b; print(b.build_{what}({str(folder)!r}))"
    done = subprocess.run(
        [sys.executable, "-B", "-c", call], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.splitlines()[-1]


class PackageTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        # A copy in which building leaves what it leaves; the links lead to the schemas as they do in the repository.
        self.source = self.folder / "repository/clients/python"
        leftovers = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
        shutil.copytree(REPOSITORY / "clients/python", self.source, symlinks=True, ignore=leftovers)
        (self.folder / "repository/schema").symlink_to(REPOSITORY / "schema")

    def assert_whole(self, wheel):
        with zipfile.ZipFile(wheel) as files:
            for name in SCHEMAS:
                expected = (REPOSITORY / "schema" / name).read_bytes()
                self.assertEqual(files.read(f"capstead/{name}"), expected, name)
            self.assertIn("capstead/py.typed", files.namelist())
            (metadata,) = [name for name in files.namelist() if name.endswith("/METADATA")]
            needs = re.findall(r"^Requires-Dist: (.*)$", files.read(metadata).decode(), re.MULTILINE)
            self.assertEqual(needs, ["pycapnp>=2.2.4"])
        # It works where it is unpacked, with nothing of the repository beside it.
        place = self.folder / "installed"
        shutil.rmtree(place, ignore_errors=True)
        with zipfile.ZipFile(wheel) as files:
            files.extractall(place)
        (place / "shop.capnp").write_text(
            "@0xd5a3c4f19e2b7086;\n"
            'using Http = import "/capstead/http.capnp";\n'
            "interface Shop extends(Http.HttpService) {}\n"
        )
        code = "import capstead; print(capstead.__file__, capstead.load('shop.capnp').Shop)"
        done = subprocess.run(
            [sys.executable, "-B", "-c", code], cwd=place, capture_output=True, text=True
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue(done.stdout.startswith(str(place)), done.stdout)

    def test_a_wheel_of_the_folder_has_the_schemas(self):
        self.assert_whole(build("wheel", self.source, self.folder))

    def test_a_wheel_of_the_source_package_has_the_schemas(self):
        sdist = build("sdist", self.source, self.folder)
        with tarfile.open(sdist) as files:
            self.assertFalse([file.name for file in files if file.issym() or file.islnk()])
            files.extractall(self.folder / "unpacked", filter="data")
        (source,) = (self.folder / "unpacked").iterdir()
        self.assert_whole(build("wheel", source, self.folder))

    def test_the_repository_has_each_schema_once(self):
        for name in SCHEMAS:
            link = REPOSITORY / "clients/python/capstead" / name
            self.assertTrue(link.is_symlink() and link.samefile(REPOSITORY / "schema" / name), name)

    def test_everything_that_is_public_has_types(self):
        for name in capstead.__all__:
            public = getattr(capstead, name)
            members = vars(public).values() if isinstance(public, type) else [public]
            for function in filter(inspect.isfunction, members):
                if not function.__module__.startswith("capstead"):
                    continue
                self.assertIn("return", typing.get_type_hints(function), f"{name}: {function}")


class ReasonTest(unittest.TestCase):
    def test_the_words_are_those_of_the_client_in_rust(self):
        source = (REPOSITORY / "client/src/reason.rs").read_text("utf-8")
        table = source.split("reasons! {")[1].split("\n}\n")[0]
        words = re.findall(r'^    (\w+) = "([a-z-]+)", \w+;$', table, re.MULTILINE)
        self.assertEqual([reason.value for reason in capstead.Reason], [word for _, word in words])
        for name, word in words:
            in_python = re.sub(r"(?<!^)([A-Z])", r"_\1", name).upper()
            self.assertEqual(capstead.Reason[in_python], word)

    def test_a_reason_is_known_however_far_it_came_and_nothing_else_is(self):
        failed = lambda text: capnp.KjException(message=text, type=capnp.KjException.Type.FAILED)  # noqa: E731
        for hops in range(3):
            error = failed("remote exception: " * hops + "over-quota: too much")
            self.assertIs(capstead.reason_of(error), capstead.Reason.OVER_QUOTA)
            self.assertEqual(capstead.described(error), "over-quota: too much")
        for text in ("", "revoked", "Revoked: x", "it says revoked: x", "too-many-options: x", "a: b"):
            self.assertIsNone(capstead.reason_of(failed(text)), text)
        self.assertIsNone(capstead.reason_of(OSError("nobody is there")))


class TextTest(unittest.TestCase):
    """Texts are checked before anybody is asked: nobody listens at the address of these."""

    def setUp(self):
        vectors = (REPOSITORY / "docs/sturdyref.md").read_text("utf-8").split("## Test vectors")[1]
        texts = re.findall(r"^capstead://.*$", vectors, re.MULTILINE)
        self.texts = [text.replace("127.0.0.1:4000", "127.0.0.1:1") for text in texts]
        self.assertEqual(len(self.texts), 2)

    def refuses(self, text, why):
        with self.assertRaises(ValueError) as refused:
            capstead.run(capstead.restore(text))
        self.assertEqual(
            str(refused.exception), f"the reference was refused: {why}; copy the whole text once more", text
        )

    def test_a_good_text_is_shown_to_the_listener(self):
        for text in self.texts:
            with self.assertRaises(OSError):
                capstead.run(capstead.restore(text))

    def test_a_text_that_is_none(self):
        good = self.texts[0]
        for text in ("", "nonsense", "capstead://", "http://127.0.0.1:1/#AA", "capstead://127.0.0.1/#AA",
                     good + "=", good + "\n", good.replace(":1/", ":01/"), good.replace(":1/", ":0/"),
                     good.replace(":1/", ":65536/"), good + "A" * 8192):  # fmt: skip
            self.refuses(text, "the text is not that of a reference")

    def test_a_text_that_is_cut_off(self):
        for text in self.texts:
            for length in range(text.index("#") + 1, len(text)):
                self.refuses(text[:length], "it is cut off: its end is missing")

    def test_a_text_that_goes_on(self):
        for text in self.texts:
            whole = _bytes_of(text)
            self.refuses(_with_bytes(text, whole + b"\0"), "the bytes are not laid out as a reference")
        self.refuses(_with_bytes(text, b"\2" + whole[1:]), "the version of the layout is unknown")

    def test_a_text_that_was_changed(self):
        """The last holder's part is checked, and all of a sealed reference."""
        for text in self.texts:
            whole = _bytes_of(text)
            # Tag and length of the proof are part of the layout.
            for at in (-1, -20, -32):
                self.refuses(_with_bytes(text, _flipped(whole, at)), "its text was changed")


def _bytes_of(text):
    fragment = text.split("#")[1]
    return base64.urlsafe_b64decode(fragment + "=" * (-len(fragment) % 4))


def _with_bytes(text, whole):
    return text.split("#")[0] + "#" + base64.urlsafe_b64encode(whole).decode().rstrip("=")


def _flipped(whole, at):
    other = bytearray(whole)
    other[at] ^= 1
    return bytes(other)


if __name__ == "__main__":
    unittest.main()
