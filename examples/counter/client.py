"""Increments a counter: `python3 examples/counter/client.py 'capstead://...' my-counter`.

It needs `pip install pycapnp`, and reads the schemas of the repository that it lies in.
"""

import asyncio
import base64
import hashlib
import ipaddress
import ssl
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


# What an Ed25519 public key in a certificate begins with; its own 32 bytes follow.
ED25519_KEY = bytes.fromhex("302a300506032b6570032100")


def is_this_machine(host):
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def cluster_of(reference):
    """The hash of the key that every server of the reference's cluster has."""
    fragment = reference.split("#")[1]
    return base64.urlsafe_b64decode(fragment + "=" * (-len(fragment) % 4))[1:33]


def only_the_cluster(listener, cluster):
    """Settings of TLS with which nobody but a server of the cluster is spoken to.

    The listener is asked for its certificate first, and sent nothing. If the key in it is the cluster's,
    this very certificate is trusted, and no other: who shows it must have the key that belongs to it.
    """
    shown = ssl.get_server_certificate((listener.hostname, listener.port))
    der = ssl.PEM_cert_to_DER_cert(shown)
    at = der.index(ED25519_KEY) + len(ED25519_KEY)
    if hashlib.sha256(b"capstead cluster v1" + der[at : at + 32]).digest() != cluster:
        raise ssl.SSLError("the server does not belong to the cluster of the reference")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["capstead/1"])
    context.check_hostname = False
    context.load_verify_locations(cadata=shown)
    return context


def listener_of(reference):
    """The host and port in a reference. Whatever else it is, is for the server to say."""
    listener = urlsplit(reference)
    is_known = listener.scheme in ("capstead", "capstead+tls") and "#" in reference
    if not (is_known and listener.hostname and listener.port):
        raise ValueError("this is no reference: one looks like capstead://127.0.0.1:4000/#...")
    return listener


async def restore(reference):
    """The namespace that the reference stands for. No answer is waited for."""
    listener = listener_of(reference)
    tls = None
    if listener.scheme != "capstead" or not is_this_machine(listener.hostname):
        tls = only_the_cluster(listener, cluster_of(reference))
    stream = await capnp.AsyncIoStream.create_connection(
        listener.hostname, listener.port, ssl=tls
    )
    restorer = capnp.TwoPartyClient(stream).bootstrap().cast_as(restorer_capnp.Restorer)
    return restorer.restore(sturdyRef=reference).cap.cast_as(restorer_capnp.Namespace)


async def main(reference, name):
    # Only the last answer is waited for: the calls follow each other on the way.
    counters = await restore(reference)
    counter = counters.byName(key=name).object.cast_as(counter_capnp.Counter)
    reply = await counter.increment()
    print(f"{name} is now {reply.value}")


def plain(error):
    """One line for people. Errors of Cap'n Proto have more, about their way through C++."""
    if isinstance(error, OSError):
        return f"the server can't be reached: {error}"
    if isinstance(error, ValueError) and "base64" in str(error):
        return "the reference is cut off or changed"
    text = getattr(error, "description", None) or str(error)
    return text.splitlines()[0].removeprefix("remote exception: ")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: client.py REFERENCE NAME")
    try:
        asyncio.run(capnp.run(main(*sys.argv[1:])))
    except (OSError, ValueError, capnp.KjException) as error:
        sys.exit(f"client.py: {plain(error)}")
