"""HTTP over Cap'n Proto from a program in Python, by this project's schema or by the standard's own.

The standard's file, `capnp/compat/http-over-capnp.capnp`, isn't part of this project. It is taken from where
`CAPSTEAD_HTTP_SCHEMA` says, or from an installed Cap'n Proto that has it, and shows that both are the same on the
wire.
"""

import os
import subprocess
import sys
from pathlib import Path

from served import DEADLINE_SECONDS, PASSING, REPOSITORY, ServedTest

INSTALLED = [Path(root, "include/capnp/compat/http-over-capnp.capnp") for root in ("/usr/local", "/usr")]
OURS = REPOSITORY / "schema/http.capnp"
SCHEMA = os.environ.get("CAPSTEAD_HTTP_SCHEMA") or next((path for path in INSTALLED if path.exists()), OURS)


class HttpTest(ServedTest):
    command = [PASSING, "serve"]

    def test_a_program_asks_objects_and_answers_the_gateway(self):
        references = [self.namespaces[name] for name in ("Counter", "Forwarder")]
        program = [sys.executable, "-B", REPOSITORY / "tests/python/http_program.py", SCHEMA]
        done = subprocess.run(
            [*program, *references, self.http], capture_output=True, text=True, timeout=DEADLINE_SECONDS
        )
        self.assertEqual(done.returncode, 0, done.stderr)
