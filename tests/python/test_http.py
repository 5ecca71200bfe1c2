"""HTTP over Cap'n Proto from a program in Python, by this project's schema or by the standard's own.

`CAPSTEAD_HTTP_SCHEMA` names the standard's file, `…/capnp/compat/http-over-capnp.capnp`, which this project doesn't
contain: whoever has it can show by it that both are the same on the wire.
"""

import os
import subprocess
import sys

from served import DEADLINE_SECONDS, PASSING, REPOSITORY, ServedTest

SCHEMA = os.environ.get("CAPSTEAD_HTTP_SCHEMA", REPOSITORY / "schema/http.capnp")


class HttpTest(ServedTest):
    command = [PASSING, "serve"]

    def test_a_program_asks_objects_and_answers_the_gateway(self):
        references = [self.namespaces[name] for name in ("Counter", "Forwarder")]
        program = [sys.executable, "-B", REPOSITORY / "tests/python/http_program.py", SCHEMA]
        done = subprocess.run(
            [*program, *references, self.http], capture_output=True, text=True, timeout=DEADLINE_SECONDS
        )
        self.assertEqual(done.returncode, 0, done.stderr)
