@0xd4e89148ba349e3b;

using Http = import "/capstead/http.capnp";

interface Editor extends(Http.HttpService) {
  # A text that several people write at once. By HTTP it has a page at `/`, and there too the
  # WebSocket of `y-websocket`; `/text` is the text.

  text @0 () -> (text :Text);
  # Returns the text: the root type `text` of the Yjs document. It is durable.
}
