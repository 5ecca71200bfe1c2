"""A program that speaks HTTP over Cap'n Proto: it calls an object as a gateway does, and answers a gateway's requests.

Usage: http_program.py SCHEMA COUNTERS FORWARDERS GATEWAY

SCHEMA is the file of the schema. The standard's, whose `ByteStream` has a file of its own beside it, does as well as
this project's: both are the same on the wire, though one process can't load both.
"""

import asyncio
import http.client
import sys
from pathlib import Path

import capnp
import capstead

HERE = Path(__file__).resolve().parent
SCHEMA = Path(sys.argv[1])
IMPORTS = [*capstead.IMPORTS, str(SCHEMA.parents[2])]
http_capnp = capnp.load(str(SCHEMA), imports=IMPORTS)
BESIDE = SCHEMA.with_name("byte-stream.capnp")
ByteStream = (capnp.load(str(BESIDE), imports=IMPORTS) if BESIDE.exists() else http_capnp).ByteStream
HttpService = http_capnp.HttpService
Slot = capnp.load(str(HERE.parent / "passing/slot.capnp"), imports=IMPORTS).Slot


class Body(ByteStream.Server):
    """Takes a body, whole."""

    def __init__(self):
        self.bytes, self.whole = b"", asyncio.get_running_loop().create_future()

    async def write(self, bytes, _context, **_):
        self.bytes += bytes

    async def end(self, _context, **_):
        self.whole.set_result(self.bytes)


class Answer(HttpService.ClientRequestContext.Server):
    """Takes what an object answers."""

    def __init__(self):
        self.status, self.body = None, Body()

    async def startResponse(self, response, _context, **_):
        self.status = response.statusCode
        if response.bodySize.which() == "fixed" and response.bodySize.fixed == 0:
            self.body.whole.set_result(b"")
        return ByteStream._new_client(self.body)


async def ask(service, method, url, body=b""):
    """The status and the body that an object answers."""
    answer = Answer()
    request = {"method": method, "url": url, "headers": [], "bodySize": {"fixed": len(body)}}
    context = HttpService.ClientRequestContext._new_client(answer)
    asked = service.request(request=request, context=context)
    if body:
        # On the stream that the call will return, which it does when all is done.
        await asked.requestBody.write(bytes=body)
        await asked.requestBody.end()
    await asked
    return answer.status, await answer.body.whole


class Service(HttpService.Server):
    """Says back what it was asked."""

    async def request(self, request, context, _context, **_):
        headers = {pair.uncommon.name: pair.uncommon.value for pair in request.headers if pair.which() == "uncommon"}
        said = f"{request.method} {request.url} {headers['x-said']}".encode()
        kind = {"common": {"name": "contentType", "value": "text/x-said"}}
        response = {"statusCode": 203, "headers": [kind], "bodySize": {"unknown": None}}
        stream = context.startResponse(response=response).body
        for part in (said[:5], said[5:]):
            await stream.write(bytes=part)
        await stream.end()


def browse(gateway, path):
    """The response that a client of the gateway gets."""
    connection = http.client.HTTPConnection(gateway, timeout=60)
    connection.request("GET", path, headers={"X-Said": "hello"})
    answer = connection.getresponse()
    return answer.status, answer.getheader("content-type"), answer.read()


async def main():
    _, _, counters, forwarders, gateway = sys.argv
    counters = await capstead.restore(counters)
    counter = counters.byName(key="x").object.cast_as(HttpService)
    assert await ask(counter, "post", "/increment") == (200, b"1")
    assert await ask(counter, "post", "/increment", b"a body") == (200, b"2")
    assert await ask(counter, "get", "/") == (200, b"2")
    assert await ask(counter, "head", "/") == (200, b"")
    assert (await ask(counter, "get", "/nothing"))[0] == 404

    forwarders = await capstead.restore(forwarders)
    slot = forwarders.byName(key="x").object.cast_as(Slot)
    await slot.fill(HttpService._new_client(Service()))
    answer = await asyncio.to_thread(browse, gateway, "/forwarder/x/path?query=1")
    assert answer == (203, "text/x-said", b"get /path?query=1 hello"), answer


capstead.run(main())
