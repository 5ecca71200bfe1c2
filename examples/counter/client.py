"""Increments a counter: `python3 examples/counter/client.py 'capstead://...' my-counter`.

It needs `pip install ./clients/python`.
"""

import sys
from pathlib import Path

import capnp
import capstead

counter_capnp = capstead.load(Path(__file__).parent / "schema/counter.capnp")


async def main(reference, name):
    # Only the last answer is waited for: the calls follow each other on the way.
    counters = await capstead.restore(reference)
    counter = counters.byName(key=name).object.cast_as(counter_capnp.Counter)
    reply = await counter.increment()
    print(f"{name} is now {reply.value}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: client.py REFERENCE NAME")
    try:
        capstead.run(main(*sys.argv[1:]))
    except OSError as error:
        sys.exit(f"client.py: the server can't be reached: {error}")
    except (ValueError, capnp.KjException) as error:
        sys.exit(f"client.py: {capstead.described(error)}")
