"""The public schemas, which are next to this file, and schemas that import them."""

import os
from pathlib import Path
from types import ModuleType

import capnp

HERE = Path(__file__).parent

IMPORTS: list[str] = list(
    # pycapnp aborts the process when it doesn't find `/capnp/stream.capnp`, which is in its own package.
    dict.fromkeys(str(folder) for folder in (HERE.parent, Path(capnp.__file__).parents[1]))
)
"""The folders in which a schema finds `/capstead/http.capnp` and `/capnp/stream.capnp`."""


def load(path: str | os.PathLike[str]) -> ModuleType:
    """Loads a schema, which may `import "/capstead/http.capnp"` or another public one."""
    return capnp.load(os.fspath(path), imports=IMPORTS)


facet_capnp: ModuleType = load(HERE / "facet.capnp")
"""The interfaces that every object answers in addition to its class's: `Facet`, `Persistent`."""

restorer_capnp: ModuleType = load(HERE / "restorer.capnp")
"""The interfaces that lead from references to capabilities: `Restorer`, `Namespace`."""
