"""Increments a counter: `python3 examples/counter/client.py 'capstead://...' my-counter`.

It needs `pip install pycapnp`, and reads the schemas of the repository that it lies in.
"""

import asyncio
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import capnp

REPOSITORY = Path(__file__).resolve().parents[2]


def load_schemas():
    """Loads the schemas of Capstead and of the counter, which imports `/capstead/http.capnp`."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "capstead").symlink_to(REPOSITORY / "schema")
        # Beside the package lies what a schema imports as `/capnp/...`.
        imports = [folder, str(Path(capnp.__file__).parents[1])]
        restorer = capnp.load(f"{folder}/capstead/restorer.capnp", imports=imports)
        counter = REPOSITORY / "examples/counter/schema/counter.capnp"
        return restorer, capnp.load(str(counter), imports=imports)


restorer_capnp, counter_capnp = load_schemas()


async def restore(reference):
    """The namespace that the reference stands for. No answer is waited for."""
    listener = urlsplit(reference)
    stream = await capnp.AsyncIoStream.create_connection(listener.hostname, listener.port)
    restorer = capnp.TwoPartyClient(stream).bootstrap().cast_as(restorer_capnp.Restorer)
    return restorer.restore(sturdyRef=reference).cap.cast_as(restorer_capnp.Namespace)


async def main(reference, name):
    # Only the last answer is waited for: the calls follow each other on the way.
    counters = await restore(reference)
    counter = counters.byName(key=name).object.cast_as(counter_capnp.Counter)
    reply = await counter.increment()
    print(f"{name} is now {reply.value}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: client.py REFERENCE NAME")
    asyncio.run(capnp.run(main(*sys.argv[1:])))
