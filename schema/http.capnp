@0x8c1f5ae07d3b9264;
# HTTP as objects speak it.
#
# On the wire this is the standard http-over-capnp, so that its other implementations can be peers:
# the ids of the interfaces, the ordinals and the types are theirs. The description is ours, and
# says how Capstead uses them. The gateway is the client of an object here: it turns what a browser
# sends into these calls.

annotation spelling @0xdb6c20e8f4915a37 (enumerant) :Text;
# The spelling of a name or a value in HTTP.

interface HttpService @0x92963bfdad2beb6a {
  # An object that answers HTTP requests. A class whose interface extends this one gets the requests
  # to its objects.

  startRequest @0 (request :HttpRequest, context :ClientRequestContext)
      -> (requestBody :ByteStream, context :ServerRequestContext);
  # Obsolete in the standard, which keeps its number. Capstead never calls it, and answers it with
  # `unimplemented`.

  request @1 (request :HttpRequest, context :ClientRequestContext, takesWhole :Bool)
      -> (requestBody :ByteStream);
  # Handles one request.
  #
  # The answer goes out by one call on `context`. The caller writes the body of the request to
  # `requestBody`, which it pipelines on, because this call returns only when all is done: the
  # response has begun, and both bodies have ended. `requestBody` is null when the request's body
  # has the fixed size 0. An error before the response began becomes a status by its kind, 500 for
  # `failed` for instance (docs/errors.md has all of them); later it cuts the response off, so that
  # nobody takes it for complete. An object of Capstead handles the request to its end even if the
  # caller cancels the call.
  #
  # `takesWhole` is Capstead's own, and false from all others: `context` is a `WholeContext`, too,
  # and a short response may be given by one call. Never pass it on beside another context.

  connect @2 (host :Text, headers :List(HttpHeader), down :ByteStream,
              context :ConnectClientRequestContext, settings :ConnectSettings)
      -> (up :ByteStream);
  # A tunnel to `host`, as the CONNECT method asks for. Capstead never calls it, and answers it with
  # `unimplemented`: objects are not proxies.

  interface ClientRequestContext @0xea3256705c0b63ba {
    # The way back for the answer to one request. Exactly one of the methods is called, and once.
    # Dropping the context without a call is an error: the client then gets a status of 500.

    startResponse @0 (response :HttpResponse) -> (body :ByteStream);
    # Begins an ordinary response. The bytes then written to `body` are the response's body. `body`
    # is null when `response.bodySize` is the fixed size 0, as it must be in the answer to a HEAD
    # and with the status 204, 205 or 304.

    startWebSocket @1 (headers :List(HttpHeader), upSocket :WebSocket) -> (downSocket :WebSocket);
    # Accepts the request as the handshake of a WebSocket. Messages of the client arrive as calls on
    # `upSocket`, which the object made; those of the object are its calls on `downSocket`.
    # `headers` are added to the answer of the handshake. The client gets an error if the request
    # was no handshake.
  }

  interface ConnectClientRequestContext @0xda572939a4c3d728 {
    # The way back for the answer to `connect`.

    startConnect @0 (response :HttpResponse);
    # The tunnel is open.

    startError @1 (response :HttpResponse) -> (body :ByteStream);
    # There will be no tunnel; `body` takes the explanation.
  }

  interface ServerRequestContext @0x99ae26bfd34f3f3b {
    # Belongs to `startRequest`, and is as obsolete.
  }
}

struct ConnectSettings {
  # The settings of a tunnel.

  useTls @0 :Bool;
  # The far end of the tunnel speaks TLS.
}

interface WebSocket @0xb09c33a9f4caa823 {
  # One direction of a WebSocket: who holds it sends, who made it receives. Frames arrive in the
  # order in which they were sent. Dropping it without `close` means that the connection was lost.

  sendText @0 (text :Text) -> stream;
  # One whole text message.

  sendData @1 (data :Data) -> stream;
  # One whole binary message.

  close @2 (code :UInt16, reason :Text);
  # The last message: `code` and `reason` are those of a WebSocket's close frame; the code 1005
  # means that the frame had none. No send may follow.
}

interface ByteStream @0xd2e7d8a0dc0a9766 {
  # Takes a stream of bytes. Dropping it before `end` means that the stream was cut off: what
  # arrived must not be taken for the whole.

  write @0 (bytes :Data) -> stream;
  # The next bytes. The borders between calls mean nothing.

  end @1 ();
  # There are no more bytes: the stream is whole. No `write` may follow.

  getSubstream @2 (callback :SubstreamCallback, limit :UInt64 = 0xffffffffffffffff)
      -> (substream :ByteStream);
  # A stream to the same receiver for the next `limit` bytes, by which a proxy can leave the path.
  # While it is in use, nobody may write to this one. Capstead never calls it, and answers it with
  # `unimplemented`; callers then write to the stream itself.

  interface SubstreamCallback @0xb23c0a13cf65c36e {
    # The way in which the maker of a substream learns of its end. One of the methods is called, and
    # once.

    ended @0 (byteCount :UInt64);
    # The substream was ended after that many bytes. The outer stream is still open.

    reachedLimit @1 () -> (next :ByteStream);
    # The substream took all the bytes that it may; what comes now goes to `next`.
  }
}

struct HttpRequest {
  # The head of a request: all that comes before its body.

  method @0 :HttpMethod;
  # The action that the client asks for.

  url @1 :Text;
  # The path and the query, beginning with a slash; from a proxy the whole URL.

  headers @2 :List(HttpHeader);
  # In the order received; a name may come more than once.

  bodySize :union {
    # The length of the body, as far as that is known at the start.

    unknown @3 :Void;
    # It ends with the stream's `end`.

    fixed @4 :UInt64;
    # In bytes. 0 means that there is no stream for the body.
  }
}

struct HttpResponse {
  # The head of a response: all that comes before its body.

  statusCode @0 :UInt16;
  # 200 to 599. 204, 205 and 304 have no body. Anything else is refused, and the client gets a
  # status of 500: 1xx are the server's own, and 101 is said by `startWebSocket`.

  statusText @1 :Text;
  # The words behind the code. Null means the usual ones. HTTP/2 has none.

  headers @2 :List(HttpHeader);
  # In the order to be sent; a name may come more than once.

  bodySize :union {
    # As in `HttpRequest`.

    unknown @3 :Void;
    # It ends with the stream's `end`.

    fixed @4 :UInt64;
    # In bytes. 0 means that there is no stream for the body.
  }
}

enum HttpMethod {
  # The methods that have a number. Others can't be expressed: the gateway answers them with 501.

  get @0;
  head @1;
  post @2;
  put @3;
  delete @4;
  patch @5;
  purge @6;
  options @7;
  trace @8;
  copy @9;
  lock @10;
  mkcol @11;
  move @12;
  propfind @13;
  proppatch @14;
  search @15;
  unlock @16;
  acl @17;
  report @18;
  mkactivity @19;
  checkout @20;
  merge @21;
  msearch @22;
  notify @23;
  subscribe @24;
  unsubscribe @25;
}

enum CommonHeaderName {
  # Header names that are sent as a number.

  invalid @0;
  # The value of a field that was never set. Nobody sends it, and receivers refuse it.

  acceptCharset @1 $spelling("Accept-Charset");
  acceptEncoding @2 $spelling("Accept-Encoding");
  acceptLanguage @3 $spelling("Accept-Language");
  acceptRanges @4 $spelling("Accept-Ranges");
  accept @5 $spelling("Accept");
  accessControlAllowOrigin @6 $spelling("Access-Control-Allow-Origin");
  age @7 $spelling("Age");
  allow @8 $spelling("Allow");
  authorization @9 $spelling("Authorization");
  cacheControl @10 $spelling("Cache-Control");
  contentDisposition @11 $spelling("Content-Disposition");
  contentEncoding @12 $spelling("Content-Encoding");
  contentLanguage @13 $spelling("Content-Language");
  contentLength @14 $spelling("Content-Length");
  contentLocation @15 $spelling("Content-Location");
  contentRange @16 $spelling("Content-Range");
  contentType @17 $spelling("Content-Type");
  cookie @18 $spelling("Cookie");
  date @19 $spelling("Date");
  etag @20 $spelling("ETag");
  expect @21 $spelling("Expect");
  expires @22 $spelling("Expires");
  from @23 $spelling("From");
  host @24 $spelling("Host");
  ifMatch @25 $spelling("If-Match");
  ifModifiedSince @26 $spelling("If-Modified-Since");
  ifNoneMatch @27 $spelling("If-None-Match");
  ifRange @28 $spelling("If-Range");
  ifUnmodifiedSince @29 $spelling("If-Unmodified-Since");
  lastModified @30 $spelling("Last-Modified");
  link @31 $spelling("Link");
  location @32 $spelling("Location");
  maxForwards @33 $spelling("Max-Forwards");
  proxyAuthenticate @34 $spelling("Proxy-Authenticate");
  proxyAuthorization @35 $spelling("Proxy-Authorization");
  range @36 $spelling("Range");
  referer @37 $spelling("Referer");
  refresh @38 $spelling("Refresh");
  retryAfter @39 $spelling("Retry-After");
  server @40 $spelling("Server");
  setCookie @41 $spelling("Set-Cookie");
  strictTransportSecurity @42 $spelling("Strict-Transport-Security");
  transferEncoding @43 $spelling("Transfer-Encoding");
  userAgent @44 $spelling("User-Agent");
  vary @45 $spelling("Vary");
  via @46 $spelling("Via");
  wwwAuthenticate @47 $spelling("WWW-Authenticate");
}

enum CommonHeaderValue {
  # Header values that are sent as a number.

  invalid @0;
  # As for names.

  gzipDeflate @1 $spelling("gzip, deflate");
}

struct HttpHeader {
  # One header line.

  union {
    common :group {
      # The name has a number.

      name @0 :CommonHeaderName;
      # Senders use the number where there is one.

      union {
        commonValue @1 :CommonHeaderValue;
        # The value has a number too.

        value @2 :Text;
        # The value as it stands behind the colon, without the spaces around it.
      }
    }

    uncommon @3 :NameValue;
    # The name has no number. Receivers also take names here that have one.
  }

  struct NameValue {
    # A header line in words.

    name @0 :Text;
    # Without the colon. Upper and lower case are equal.

    value @1 :Text;
    # As it stands behind the colon, without the spaces around it.
  }
}

interface WholeContext @0xe6f7f560ade48821 extends(HttpService.ClientRequestContext) {
  # The context of a gateway of Capstead, which says `takesWhole`. It stands beside the standard's.

  respond @0 (response :HttpResponse, body :Data);
  # The whole response, in place of `startResponse` and of what is then written. `body` has at most
  # 64 KiB, and as many bytes as `response` announces.
}

interface WatchedStream @0xd1f0c5b27a4e9638 extends(ByteStream) {
  # The body of a response, as gateways and objects of Capstead take it: the standard's stream,
  # whose writer may ask to hear of its reader's end before it has more to write.

  unread @0 ();
  # Returns when nobody reads the stream any more, since its reader has gone or it has ended. Others
  # than Capstead answer it with `unimplemented`.
}
