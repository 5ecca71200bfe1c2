//! Serves HTTP and turns each request into one call of `HttpService`, and those that ask for a
//! WebSocket into a task for its frames.

use std::rc::Rc;

use ::capnp::capability::Promise;
use hyper::body::{Bytes, Incoming};
use hyper::upgrade::OnUpgrade;
use hyper::{HeaderMap, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ask::{Accepted, AskError, ObjectAnswer, ObjectRequest};
use super::bearer;
use super::capnp::{self, Visitor};
use super::clients::Proxies;
use super::connection::{self, OpenRequests};
use super::cors;
use super::door::{Door, Reach, Wanted};
use super::download::{Download, StreamedBody};
use super::encrypted;
use super::head::{self, Peer};
use super::holdings::Gateway;
use super::limits::{HttpLimits, Taken};
use super::link;
use super::paced::Paced;
use super::refusals::{check_name, late, nothing, own, refusal};
use super::route::{Route, is_ambiguous};
use super::routes::{RowMatch, To};
use super::socket::{self, Pump};
use super::upload::Upload;
use super::way::RequestWay;
use crate::http::{Held, OrRefusal, Reader, Refusal, refuse};
use crate::net::Place;

/// The answer to a client without a place.
const FULL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\n\
    content-length: 47\r\nconnection: close\r\n\r\nThere are too many connections: try again later";

impl Gateway {
    /// Serves connections until `stop` resolves; then requests under way are answered, and it ends.
    pub(crate) async fn serve(
        self: Rc<Self>,
        listener: TcpListener,
        entrance: Entrance,
        limits: HttpLimits,
        stop: impl Future<Output = ()>,
    ) {
        let taken = Taken::new(limits, self.metrics.clone());
        let (open, ending) = (TaskTracker::new(), CancellationToken::new());
        let all = (open.clone(), ending.clone());
        let served = Rc::new(Served { gateway: self, entrance, taken, open: all.0, ending: all.1 });
        let mut stop = std::pin::pin!(stop);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut stop => break,
            };
            match accepted {
                Ok((stream, peer)) => match served.taken.connect(peer.ip()) {
                    Some(place) => {
                        let (served, place) = (served.clone(), Rc::new(place));
                        let (peer, reach) = (Peer::new(peer), Reach::of(&stream));
                        let client = Client { served, peer, reach, place };
                        open.spawn_local(client.connection(stream));
                    }
                    // Nothing waits for a client that has no place.
                    None => drop(stream.try_write(FULL)),
                },
                Err(error) => crate::net::rest_after(&error).await,
            }
        }
        drop(listener);
        ending.cancel();
        open.close();
        open.wait().await;
    }
}

/// The ways in, and the clients that may take them.
pub(crate) struct Entrance {
    pub(crate) door: Door,
    pub(crate) proxies: Proxies,
    /// None in the clear.
    pub(crate) tls: Option<TlsAcceptor>,
}

/// The things with which connections are served.
struct Served {
    gateway: Rc<Gateway>,
    entrance: Entrance,
    taken: Rc<Taken>,
    /// The end of the server waits for these.
    open: TaskTracker,
    /// Cancelled when the server ends.
    ending: CancellationToken,
}

/// The other end of one connection.
struct Client {
    served: Rc<Served>,
    peer: Peer,
    /// True if it came to an address that only this machine reaches.
    reach: Reach,
    /// Kept while the connection or its WebSocket is open.
    place: Rc<Place>,
}

/// A response, and what it leads to.
type GatewayAnswer = OrRefusal<Response<Download>>;

impl Client {
    /// The client as the door for Cap'n Proto sees it.
    fn visitor(&self) -> Visitor<'_> {
        let Served { gateway, taken, .. } = &*self.served;
        Visitor {
            guests: gateway.capnp.get().map(|door| &door.guests),
            peer: self.peer.address.ip(),
            place: self.place.clone(),
            head_time: taken.limits.head,
        }
    }

    async fn connection(self, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let Served { taken, entrance, ending, .. } = &*self.served;
        let stream = Paced::new(stream, taken.pace.clone());
        let Some(tls) = entrance.tls.clone() else { return self.speak(stream).await };
        let shaken = tokio::select! {
            shaken = encrypted::handshake(&tls, stream, taken.limits.head) => shaken,
            () = ending.cancelled() => return,
        };
        match shaken {
            Ok(stream) => self.speak(stream).await,
            Err(error) => {
                tracing::debug!(peer = %self.peer.address.ip(), %error, "no TLS with a client");
            }
        }
    }

    async fn speak(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let Served { taken, ending, .. } = &*self.served;
        let requests = OpenRequests::new(taken.clone(), self.peer.address.ip());
        let (ending, client) = (ending.clone(), Rc::new(self));
        let answer = move |request| {
            let client = client.clone();
            async move { client.answer(request).await }
        };
        connection::serve(stream, requests, ending, answer, full).await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Download> {
        let Served { gateway, entrance: Entrance { door, proxies, .. }, taken, .. } = &*self.served;
        gateway.metrics.http_requests_total.add(1);
        let (mut parts, body) = request.into_parts();
        head::as_http1(&mut parts);
        let address = proxies.client(self.peer.address.ip(), &mut parts.headers);
        self.peer.say(&mut parts.headers, address);
        let uri = parts.uri.clone();
        let way = RequestWay::of(gateway, &uri, &parts.headers);
        let (origins, manner) = (way.origins(), way.manner());
        let page = door.known_origin(&parts.headers, origins).cloned();
        let wanted = socket::wanted(&parts);
        let mut response = if let Err(wait) = taken.rate.admit(address) {
            let reason = "You have sent too many requests: try again later.\n";
            let refusal = refuse(StatusCode::TOO_MANY_REQUESTS, reason).after(wait);
            own(refusal.response(&parts.headers)).map(Download::from)
        } else if is_ambiguous(uri.path()) {
            let reason = "The path has a part . or .., or a byte 0: write it without.\n";
            let refusal = refuse(StatusCode::BAD_REQUEST, reason);
            manner.refuse(refusal, &parts.headers).map(Download::from)
        } else if let Err(refusal) = door.admit(self.reach, &parts, wanted, origins) {
            own(refusal.response(&parts.headers)).map(Download::from)
        } else if page.is_some() && cors::is_preflight(&parts) {
            own(cors::preflight(&parts.headers)).map(Download::from)
        } else if let Some(refusal) = way.refuse_method(&parts) {
            own(refusal).map(Download::from)
        } else {
            let answer = if wanted == Wanted::Socket {
                self.open_socket(way, &mut parts, body).await
            } else {
                self.respond(way, &mut parts, body).await
            };
            answer.unwrap_or_else(|refusal| {
                manner.refuse(refusal, &parts.headers).map(Download::from)
            })
        };
        socket::say_version(&mut response);
        if door.knows_origins(origins) {
            cors::let_read(response.headers_mut(), page);
        }
        response
    }

    async fn respond(
        &self,
        way: RequestWay<'_>,
        parts: &mut http::request::Parts,
        body: Incoming,
    ) -> GatewayAnswer {
        let Served { gateway, taken, .. } = &*self.served;
        let most = way.body_bytes_max();
        let terms = way.terms();
        let shown =
            bearer::find(&gateway.objects, way, &mut parts.headers, Wanted::Response).await?;
        terms.map_or(Ok(()), |terms| taken.shares.admit(terms, shown.reference))?;
        let route = match shown.way {
            RequestWay::Json(calls, path) => {
                let answer = gateway.answer_json(calls, path, parts, body, taken).await;
                return Ok(answer.map(Download::from));
            }
            RequestWay::Row(RowMatch { to: To::Object { is_json: true, route }, .. }) => {
                let place = terms.and_then(|terms| terms.json.as_ref());
                let answer = gateway.answer_route(&route, place, parts, (body, most), taken);
                let answer = answer.await?;
                return Ok(answer.map(Download::from));
            }
            RequestWay::Row(RowMatch { to: To::Link(to), .. }) => {
                return Ok(link::page(to).map(Download::from));
            }
            RequestWay::Row(RowMatch { to: To::Object { route, .. }, .. })
            | RequestWay::Class(route) => route,
            RequestWay::Row(RowMatch { to: To::Capnp, .. }) | RequestWay::Capnp => {
                return Err(capnp::no_upgrade());
            }
            RequestWay::Nowhere => return Err(nothing()),
        };
        self.let_see(&route, parts)?;
        let upload = Upload::begin((body, most), &parts.headers, taken).await?;
        let asked = ObjectRequest { url: &route.url, head: parts, is_upgrade: false };
        match self.ask(&route, asked, upload).await? {
            ObjectAnswer::Response(response) => Ok(response.map(whole)),
            ObjectAnswer::Begun(response, call) => Ok(going(response, call)),
            ObjectAnswer::Socket(_) => Err(unsendable(&route, "it accepts what was not asked for")),
        }
    }

    /// An object that accepts no socket gives an ordinary response.
    async fn open_socket(
        &self,
        way: RequestWay<'_>,
        parts: &mut http::request::Parts,
        body: Incoming,
    ) -> GatewayAnswer {
        let Served { gateway, taken, open, ending, .. } = &*self.served;
        let terms = way.terms();
        let shown = bearer::find(&gateway.objects, way, &mut parts.headers, Wanted::Socket).await?;
        let share = match terms {
            Some(terms) => {
                taken.shares.admit(terms, shown.reference)?;
                taken.shares.open(terms, shown.reference)?
            }
            None => None,
        };
        let offered = parts.headers.clone();
        let route = match shown.way {
            RequestWay::Row(RowMatch { to: To::Capnp, .. }) | RequestWay::Capnp => {
                return capnp::open(self.visitor(), parts, &body, share);
            }
            RequestWay::Row(RowMatch { to: To::Object { is_json: false, route }, .. })
            | RequestWay::Class(route) => route,
            _ => return Err(nothing()),
        };
        self.let_see(&route, parts)?;
        let accepts = socket::asked(&offered)?;
        let upgrade = parts.extensions.remove::<OnUpgrade>();
        let (Some(upgrade), true) = (upgrade, hyper::body::Body::is_end_stream(&body)) else {
            let reason = "The handshake of a WebSocket has no body.\n";
            return Err(refuse(StatusCode::BAD_REQUEST, reason));
        };
        socket::hide(&mut parts.headers);
        let asked = ObjectRequest { url: &route.url, head: parts, is_upgrade: true };
        let no_body = Upload::Whole(taken.body());
        let socket = match self.ask(&route, asked, no_body).await? {
            ObjectAnswer::Response(response) => return Ok(response.map(whole)),
            ObjectAnswer::Begun(response, call) => return Ok(going(response, call)),
            ObjectAnswer::Socket(socket) => socket,
        };
        let Accepted { mut headers, up, outbox, call } = socket;
        if shown.is_protocol {
            socket::choose(&offered, &mut headers);
        }
        if let socket::Up::Surviving(surviving) = &up {
            surviving.set_again(self.served.gateway.again(&route));
        }
        let head = socket::response(&offered, accepts, headers);
        let head = head.map_err(|reason| unsendable(&route, &reason))?;
        let pump = Pump { up, outbox, call, taken: taken.clone(), stop: ending.clone() };
        let places = (self.place.clone(), share);
        open.spawn_local(pump.run(upgrade, places));
        Ok(head.map(|()| Download::Whole(Bytes::new())))
    }

    /// Makes the head of a request as its object may see it, if there can be one.
    fn let_see(&self, route: &Route<'_>, parts: &mut http::request::Parts) -> OrRefusal<()> {
        check_name(route)?;
        crate::http::strip(&mut parts.headers);
        if let Some(name) = head::not_text(&parts.headers) {
            let reason = format!("The value of the header {name} is not UTF-8.\n");
            return Err(refuse(StatusCode::BAD_REQUEST, reason));
        }
        match self.served.gateway.objects.get(route).map_err(refusal)? {
            Some(_) => Ok(()),
            None => Err(nothing()),
        }
    }

    async fn ask(
        &self,
        route: &Route<'_>,
        asked: ObjectRequest<'_>,
        upload: Upload<Held>,
    ) -> OrRefusal<ObjectAnswer> {
        let Served { gateway, taken, open, .. } = &*self.served;
        let failure = match gateway.ask(route, asked, upload, taken).await.map_err(refusal)? {
            Ok((outcome, pump)) => {
                // Both bodies may go on from here.
                if let Some(pump) = pump {
                    open.spawn_local(pump.finish());
                }
                return Ok(outcome);
            }
            Err(failure) => failure,
        };
        Err(match failure {
            AskError::Nothing => nothing(),
            AskError::Call(error) => refusal(error),
            AskError::NoRoom => {
                let reason = "There is no room for another response: try again later.\n";
                refuse(StatusCode::SERVICE_UNAVAILABLE, reason)
            }
            AskError::Answer(reason) => unsendable(route, &reason),
            AskError::Client(refusal) => refusal,
            AskError::Late => late(),
        })
    }
}

/// Serves one connection of a fuzzer, to its end and to that of all that it led to.
#[cfg(fuzzing)]
pub(super) async fn serve_one(
    gateway: Rc<Gateway>,
    entrance: Entrance,
    taken: Rc<Taken>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) {
    let peer = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let place = Rc::new(taken.connect(peer.ip()).expect("it is the only connection"));
    let (open, ending) = (TaskTracker::new(), CancellationToken::new());
    let served = Rc::new(Served { gateway, entrance, taken, open: open.clone(), ending });
    let client = Client { served, peer: Peer::new(peer), reach: Reach::ThisMachine, place };
    client.speak(stream).await;
    open.close();
    open.wait().await;
}

/// The client gets nothing of an impossible head.
fn unsendable(route: &Route<'_>, reason: &str) -> Refusal {
    tracing::error!(class = route.class, %reason, "a class gave an HTTP response that can't be sent");
    let reason = "The object's response can't be sent; the server's log says why.\n";
    refuse(StatusCode::INTERNAL_SERVER_ERROR, reason)
}

fn going(response: Response<Reader>, call: Promise<(), ::capnp::Error>) -> Response<Download> {
    response.map(|reader| Download::Streamed(StreamedBody::new(reader, call)))
}

fn whole(body: Held) -> Download {
    Download::Whole(Bytes::from_owner(body))
}

/// The answer to a request beside others of its connection, for which there is no place.
fn full(asked: &HeaderMap) -> Response<Download> {
    let reason = "There are too many requests at once: try again later.\n";
    let refusal = refuse(StatusCode::SERVICE_UNAVAILABLE, reason);
    own(refusal.response(asked)).map(Download::from)
}
