"""Restores and calls Capstead's durable objects.

A reference is a text, `capstead://host:port/#...`, that stands for an object. It is a secret: anyone who
has it can call the object. `restore` turns it into a live capability, and `share` makes a new reference from a
capability.

Everything runs within `capstead.run(main())`. A capability stays good until its connection breaks; then restore
the reference again.
"""

from ._calls import attenuate, grants, once, request_id, revoke, share
from ._connection import Connection, connect, restore, run
from ._errors import Reason, described, reason_of
from ._schemas import IMPORTS, facet_capnp, load, restorer_capnp

__all__ = [
    "IMPORTS",
    "Connection",
    "Reason",
    "attenuate",
    "connect",
    "described",
    "facet_capnp",
    "grants",
    "load",
    "once",
    "reason_of",
    "request_id",
    "restore",
    "restorer_capnp",
    "revoke",
    "run",
    "share",
]
