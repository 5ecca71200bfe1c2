@0xd3e5c1a0b7429f68;

using Http = import "/capstead/http.capnp";

interface ChatRoom extends(Http.HttpService) {
  # A room in which people talk, each over a WebSocket.

  make @0 ();
  # Makes a private room: until then it is not there for anybody.
}

interface ChatLimiter {
  # Says how fast one address may talk, in all rooms together. It remembers nothing when it sleeps.

  spend @0 () -> (waitMs :UInt64);
  # Counts one message, if the address may send it now: then `waitMs` is 0. Otherwise nothing is
  # counted, and one may be sent after that time.
}
