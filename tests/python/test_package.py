"""The package of clients: what it is made of, whichever way it was installed."""

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
    def test_a_text_that_is_no_reference_is_refused_before_anybody_is_asked(self):
        for text in ("", "nonsense", "capstead://", "http://127.0.0.1:1/#AA", "capstead://127.0.0.1/#AA"):
            with self.assertRaisesRegex(ValueError, "one looks like capstead://"):
                capstead.run(capstead.restore(text))
        for text in ("capstead+tls://127.0.0.1:1/#A", "capstead://far.example:1/#AQ"):
            with self.assertRaisesRegex(ValueError, "copy the whole text once more"):
                capstead.run(capstead.restore(text))


if __name__ == "__main__":
    unittest.main()
