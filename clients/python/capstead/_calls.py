"""The calls that every object answers in addition to those of its class; schema/facet.capnp explains them."""

import os
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from ._schemas import facet_capnp

_Until = float | datetime | None


async def share(
    of: Any,
    label: str = "",
    *,
    methods: Iterable[str] | None = None,
    object_methods: tuple[Any, Iterable[str]] | None = None,
    until: _Until = None,
    holders: Iterable[bytes] = (),
    independent: bool = False,
    allow_independent: bool = False,
    dependent: bool = False,
) -> str:
    """Makes a reference to the object or the namespace `of`: a text to give away, which is a secret.

    `label` names the receiver or the purpose. The other arguments are its terms. `methods` are the only methods that
    may be called: names in the schema of `of`, such as "read" or "Counter.read", or in the interfaces that every
    object answers, such as "Facet.grants". For a namespace, `object_methods` is the interface of its objects with such
    names. `until` is a time, or seconds from now. Restoring takes the proofs of all `holders`, which are Ed25519 public
    keys of 32 bytes. An `independent` grant survives the one that it is made from, which must have been made with
    `allow_independent`.
    """
    terms = {
        "label": label,
        "caveats": _caveats(of, methods, object_methods, until, holders, dependent),
        "independent": independent,
        "allowIndependent": allow_independent,
    }
    return (await of.cast_as(facet_capnp.Persistent).save(sealFor=terms)).sturdyRef


def attenuate(
    of: Any,
    *,
    methods: Iterable[str] | None = None,
    object_methods: tuple[Any, Iterable[str]] | None = None,
    until: _Until = None,
    dependent: bool = False,
) -> Any:
    """The same object with less authority: a capability that ends with the grant of `of`. This waits for nothing."""
    caveats = _caveats(of, methods, object_methods, until, (), dependent)
    return _as_before(of, of.cast_as(facet_capnp.Facet).attenuate(caveats=caveats).facet)


def request_id() -> bytes:
    """A fresh request id, for one call, which nobody can guess."""
    return os.urandom(16)


def once(of: Any, id: bytes) -> Any:
    """The same object, with the request id `id` for the next call, which is applied at most once.

    Repeated with the same id, even after the object was restored again, the call gets the reply of the first time.
    This waits for nothing.
    """
    return _as_before(of, of.cast_as(facet_capnp.Facet).once(id=id).facet)


async def grants(of: Any) -> list[Any]:
    """The grants made from the grant of `of`, directly or not: each is a `Grant` of schema/facet.capnp."""
    facet, after, found = of.cast_as(facet_capnp.Facet), b"", []
    while True:
        part = await facet.grants(after=after)
        found += part.grants
        after = part.next
        if not after:
            return found


async def revoke(of: Any, grant: bytes) -> None:
    """Revokes the grant with this id, which `grants` lists, and all grants that depend on it."""
    await of.cast_as(facet_capnp.Facet).revoke(grant=grant)


def _as_before(of: Any, made: Any) -> Any:
    return made.cast_as(_Typed(of.schema))


class _Typed:
    """The part of a loaded interface that a cast needs."""

    def __init__(self, schema: Any) -> None:
        self.schema = schema


def _caveats(
    of: Any,
    methods: Iterable[str] | None,
    object_methods: tuple[Any, Iterable[str]] | None,
    until: _Until,
    holders: Iterable[bytes],
    dependent: bool,
) -> dict[str, Any]:
    caveats: dict[str, Any] = {"dependent": dependent, "holders": list(holders)}
    if methods is not None:
        caveats["methods"] = _named(of.schema, methods)
    if object_methods is not None:
        interface, names = object_methods
        caveats["objectMethods"] = _named(interface.schema, names)
    if until is not None:
        is_time = isinstance(until, datetime)
        seconds = until.timestamp() if is_time else time.time() + until
        caveats["notAfter"] = max(0, round(seconds * 1000))
    return caveats


def _named(schema: Any, names: Iterable[str]) -> list[dict[str, Any]]:
    """The methods with these names, in the form of `Caveats`."""
    if isinstance(names, str):
        raise TypeError(f"give a list of names of methods: [{names!r}]")
    known = _methods(schema)
    for other in (facet_capnp.Facet, facet_capnp.Persistent):
        known |= _methods(other.schema)
    by_interface: dict[int, list[int]] = {}
    for name in names:
        interface, ordinal = _find(schema, known, name)
        by_interface.setdefault(interface, []).append(ordinal)
    return [{"interface": id, "ordinals": ordinals} for id, ordinals in by_interface.items()]


def _methods(schema: Any) -> dict[tuple[int, int], str]:
    """All methods of an interface, including inherited ones."""
    node = schema.node
    interface = node.displayName[node.displayNamePrefixLength :]
    found = {
        (node.id, ordinal): f"{interface}.{method.name}"
        for ordinal, method in enumerate(node.interface.methods)
    }
    for above in schema.superclasses:
        found |= _methods(above)
    return found


def _find(schema: Any, known: dict[tuple[int, int], str], name: str) -> tuple[int, int]:
    found = [at for at, whole in known.items() if name in (whole, whole.rpartition(".")[2])]
    if len(found) == 1:
        return found[0]
    of = schema.node.displayName[schema.node.displayNamePrefixLength :]
    if not found:
        raise ValueError(f"{of} has no method {name}; it has {', '.join(known.values())}")
    several = ", ".join(known[at] for at in found)
    raise ValueError(f"{of} has more than one method {name}: name one of {several}")
