@0xd5b80f7c3a96e142;
# WebSockets that survive the end of their object's host.
#
# These interfaces stand beside the standard's in http.capnp, and only gateways and hosts of
# Capstead speak them: an object asks whether the other side does, and accepts an ordinary WebSocket
# otherwise. Messages have numbers each way, 1, 2, 3 and so on, so that after a break each side
# learns what the other one has: the rest is sent again, and what comes twice is dropped.

using Http = import "/capstead/http.capnp";

interface SurvivingContext @0x9d63e1b2f85c407a extends(Http.WholeContext) {
  # The way back to the sender of one request, who can keep a WebSocket when its object's host is
  # gone.

  canSurvive @0 ();
  # Succeeds if the request is the handshake of a WebSocket. Others than gateways of Capstead answer
  # it with `unimplemented`.

  startSurviving @1 (headers :List(Http.HttpHeader), id :Data, up :NumberedSocket)
      -> (down :NumberedSocket);
  # As `startWebSocket`. `id` are 16 unguessable bytes: who knows them, and may send requests to the
  # object, may resume the socket.
}

interface NumberedSocket @0xe4f1a07d5c2b9836 extends(Http.WebSocket) {
  # One direction of a WebSocket that survives. An answer means that the message counts as taken for
  # good: it need not be kept to be sent again. A message whose number was taken before is answered
  # and dropped; one before which others are missing is refused as `disconnected`.
  #
  # Dropping it means that the path broke: who made it waits for a while to be asked to resume. Of
  # the standard's methods only `close` is taken: it has no number, ends the socket at once, and is
  # what a host says of itself.

  textAt @0 (number :UInt64, text :Text);
  # One whole text message.

  dataAt @1 (number :UInt64, data :Data);
  # One whole binary message.

  closeAt @2 (number :UInt64, code :UInt16, reason :Text);
  # The last message. The code 1006 says that the client was lost.
}

interface SocketResumption @0xb7205c9e84d1f36b {
  # The interface that every object answers beside that of its class, to those who may send it
  # requests.

  resume @0 (id :Data, received :UInt64, down :NumberedSocket)
      -> (up :NumberedSocket, received :UInt64);
  # Takes up a socket of the object whose path broke. Each side says by `received` the number of the
  # last message that it has, and is then sent what follows; all earlier paths of the socket are of
  # no use any more. Refused as `failed` if the socket is no more: then it is never resumed.
}
