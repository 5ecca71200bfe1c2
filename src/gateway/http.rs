//! Serves HTTP and turns each request into one call of `HttpService`, and those that ask for a
//! WebSocket into a task for its frames.

use std::cell::OnceCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ::capnp::capability::{FromClientHook, Promise};
use hyper::body::{Bytes, Incoming};
use hyper::upgrade::OnUpgrade;
use hyper::{HeaderMap, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ask::{Accepted, Answered, Asked, Failure, Outcome, ask};
use super::bearer;
use super::capnp::{self, CapnpDoor};
use super::clients::Proxies;
use super::connection::{self, Requests};
use super::cors;
use super::door::{Door, is_from_here};
use super::download::{Download, StreamedBody};
use super::encrypted;
use super::head;
use super::json::JsonCalls;
use super::limits::{HttpLimits, Taken};
use super::link;
use super::objects::{Given, Objects};
use super::paced::Paced;
use super::route::Route;
use super::routes::{Found, Routes, To};
use super::socket::{self, Again, Pump as SocketPump};
use super::upload::Upload;
use super::way::Way;
use crate::error::{Result, failed, is_not_begun, is_revoked};
use crate::http::{Body, Held, Reader, Refusal, refuse};
use crate::limits::NAME_BYTES_MAX;
use crate::metrics::Metrics;
use crate::net::{Guests, Place};
use crate::schema::restorer_capnp::restorer;

/// The answer to a client without a place.
const FULL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\n\
    content-length: 47\r\nconnection: close\r\n\r\nThere are too many connections: try again later";

/// A gateway with the namespaces that it serves.
pub(crate) struct Gateway {
    pub(super) objects: Objects,
    pub(super) routes: Routes,
    /// Empty where no methods are called in JSON.
    pub(super) json: OnceCell<JsonCalls>,
    /// Empty where no Cap'n Proto is spoken.
    pub(super) capnp: OnceCell<CapnpDoor>,
    metrics: Arc<Metrics>,
}

impl Gateway {
    pub(crate) fn new(
        namespaces: impl IntoIterator<Item = (String, Given)>,
        restorer: restorer::Client,
        routes: Routes,
        metrics: Arc<Metrics>,
    ) -> Rc<Self> {
        let objects = Objects::new(namespaces.into_iter(), restorer);
        let (json, capnp) = (OnceCell::new(), OnceCell::new());
        Rc::new(Self { objects, routes, json, capnp, metrics })
    }

    /// From now on every method may be called in JSON, with references that `restorer` restores.
    pub(crate) fn serve_json(&self, restorer: restorer::Client) {
        // A second time changes nothing.
        let _ = self.json.set(JsonCalls::new(restorer));
    }

    /// Lets peers speak Cap'n Proto over WebSockets from now on: where rows of the table say so,
    /// and at `/capnp` if `is_at_path`.
    pub(crate) fn serve_capnp(&self, guests: Guests, is_at_path: bool) {
        // A second time changes nothing.
        let _ = self.capnp.set(CapnpDoor { guests, is_at_path });
    }

    /// A link broke, and some of its capabilities may have come by it: all are asked for anew when
    /// they are needed.
    pub(crate) fn forget_all(&self) {
        self.objects.forget_all();
        self.json.get().into_iter().for_each(JsonCalls::forget);
    }

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
                        let is_from_here = is_from_here(&stream);
                        let client = Client { served, peer, is_from_here, place };
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

    /// Reaches the object of a route anew after its capability broke.
    fn again(self: &Rc<Self>, route: &Route<'_>) -> Again {
        let (gateway, route) = (self.clone(), route.to_owned());
        Box::new(move || {
            let route = route.borrow();
            gateway.objects.forget(&route);
            gateway.objects.forget_broken(route.class);
            let object = gateway.objects.get(&route)?;
            let object = object.ok_or_else(|| failed("there is no such class"))?;
            Ok(FromClientHook::new(object.into_client_hook()))
        })
    }

    async fn ask(
        &self,
        route: &Route<'_>,
        asked: Asked<'_>,
        upload: Upload<Held>,
        taken: &Taken,
    ) -> Result<Answered> {
        // It was there before the body came, and classes never go away.
        let Some(object) = self.objects.get(route)? else { return Ok(Err(Failure::Nothing)) };
        let whole;
        let (upload, again) = match upload {
            Upload::Whole(body) => {
                whole = body;
                (Upload::Whole(&whole), Some(&whole))
            }
            // Bytes that have left are not here to be sent again.
            Upload::Streamed(streamed) => (Upload::Streamed(streamed), None),
        };
        let answer = ask(&object, asked, upload, taken).await;
        match &answer {
            Err(Failure::Call(error)) if error.kind == ::capnp::ErrorKind::Disconnected => {
                self.objects.forget(route);
            }
            Err(Failure::Call(error)) if is_revoked(error) => self.objects.forget_revoked(route),
            _ => return Ok(answer),
        }
        let Some(body) = again.filter(|_| has_not_begun(&answer)) else { return Ok(answer) };
        match self.objects.get(route)? {
            // An object's end between two requests is no concern of the next one. A call that began
            // is never made twice, not even to read: it may be what ended the object.
            Some(fresh) => Ok(ask(&fresh, asked, Upload::Whole(body), taken).await),
            None => Ok(answer),
        }
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
pub(super) struct Client {
    served: Rc<Served>,
    peer: SocketAddr,
    /// True if it came to an address that only this machine reaches.
    is_from_here: bool,
    /// Kept while the connection or its WebSocket is open.
    place: Rc<Place>,
}

/// A response, and what it leads to.
pub(super) type Answer = std::result::Result<Response<Download>, Refusal>;

impl Client {
    pub(super) fn peer(&self) -> IpAddr {
        self.peer.ip()
    }

    pub(super) fn place(&self) -> Rc<Place> {
        self.place.clone()
    }

    /// The way in for peers that speak Cap'n Proto.
    pub(super) fn guests(&self) -> Option<&Guests> {
        self.served.gateway.capnp.get().map(|door| &door.guests)
    }

    /// The time for a handshake.
    pub(super) fn head_time(&self) -> Duration {
        self.served.taken.limits.head
    }

    async fn connection(self, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let Served { taken, entrance, ending, .. } = &*self.served;
        let stream = Paced::new(stream, taken.limits, taken.metrics.clone());
        let Some(tls) = entrance.tls.clone() else { return self.speak(stream).await };
        let shaken = tokio::select! {
            shaken = encrypted::handshake(&tls, stream, taken.limits.head) => shaken,
            () = ending.cancelled() => return,
        };
        match shaken {
            Ok(stream) => self.speak(stream).await,
            Err(error) => tracing::debug!(peer = %self.peer, %error, "no TLS with an HTTP client"),
        }
    }

    async fn speak(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let Served { taken, ending, .. } = &*self.served;
        let requests = Requests::new(taken.clone(), self.peer.ip());
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
        let address = proxies.client(self.peer.ip(), &mut parts.headers);
        head::say_peer(&mut parts.headers, address);
        let uri = parts.uri.clone();
        let way = Way::of(gateway, &uri, &parts.headers);
        let (origins, manner) = (way.origins(), way.manner());
        let page = door.known_origin(&parts.headers, origins).cloned();
        let is_upgrade = socket::is_upgrade(&parts);
        let mut response = if let Err(wait) = taken.rate.admit(address) {
            let reason = "You have sent too many requests: try again later.\n";
            let refusal = refuse(StatusCode::TOO_MANY_REQUESTS, reason).after(wait);
            own(refusal.response(&parts.headers)).map(Download::from)
        } else if let Err(refusal) = door.admit(self.is_from_here, &parts, is_upgrade, origins) {
            own(refusal.response(&parts.headers)).map(Download::from)
        } else if page.is_some() && cors::is_preflight(&parts) {
            own(cors::preflight(&parts.headers)).map(Download::from)
        } else if let Some(refusal) = way.refuse_method(&parts) {
            own(refusal).map(Download::from)
        } else {
            let answer = if is_upgrade {
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
        way: Way<'_>,
        parts: &mut http::request::Parts,
        body: Incoming,
    ) -> Answer {
        let Served { gateway, taken, .. } = &*self.served;
        let most = way.body_bytes_max();
        let terms = way.terms();
        let shown = bearer::find(&gateway.objects, way, &mut parts.headers, false).await?;
        terms.map_or(Ok(()), |terms| taken.shares.admit(terms, shown.reference))?;
        let route = match shown.way {
            Way::Json(calls, path) => {
                let answer = gateway.answer_json(calls, path, parts, body, taken).await;
                return Ok(answer.map(Download::from));
            }
            Way::Row(Found { to: To::Object { is_json: true, route }, .. }) => {
                let answer = gateway.answer_route(&route, parts, (body, most), taken).await?;
                return Ok(answer.map(Download::from));
            }
            Way::Row(Found { to: To::Link(to), .. }) => {
                return Ok(link::page(to).map(Download::from));
            }
            Way::Row(Found { to: To::Object { route, .. }, .. }) | Way::Class(route) => route,
            Way::Row(Found { to: To::Capnp, .. }) | Way::Capnp => return Err(capnp::no_upgrade()),
            Way::Nowhere => return Err(nothing()),
        };
        self.let_see(&route, parts)?;
        let upload = Upload::begin((body, most), &parts.headers, taken).await?;
        let asked = Asked { url: &route.url, head: parts, is_upgrade: false };
        match self.ask(&route, asked, upload).await? {
            Outcome::Response(response) => Ok(response.map(whole)),
            Outcome::Begun(response, call) => Ok(going(response, call)),
            Outcome::Socket(_) => Err(unsendable(&route, "it accepts what was not asked for")),
        }
    }

    /// An object that accepts no socket gives an ordinary response.
    async fn open_socket(
        &self,
        way: Way<'_>,
        parts: &mut http::request::Parts,
        body: Incoming,
    ) -> Answer {
        let Served { gateway, taken, open, ending, .. } = &*self.served;
        let terms = way.terms();
        let shown = bearer::find(&gateway.objects, way, &mut parts.headers, true).await?;
        let share = match terms {
            Some(terms) => {
                taken.shares.admit(terms, shown.reference)?;
                taken.shares.open(terms, shown.reference)?
            }
            None => None,
        };
        let offered = parts.headers.clone();
        let route = match shown.way {
            Way::Row(Found { to: To::Capnp, .. }) | Way::Capnp => {
                return capnp::open(self, parts, &body, share);
            }
            Way::Row(Found { to: To::Object { is_json: false, route }, .. })
            | Way::Class(route) => route,
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
        let asked = Asked { url: &route.url, head: parts, is_upgrade: true };
        let no_body = Upload::Whole(taken.body());
        let socket = match self.ask(&route, asked, no_body).await? {
            Outcome::Response(response) => return Ok(response.map(whole)),
            Outcome::Begun(response, call) => return Ok(going(response, call)),
            Outcome::Socket(socket) => socket,
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
        let pump = SocketPump { up, outbox, call, taken: taken.clone(), stop: ending.clone() };
        let places = (self.place.clone(), share);
        open.spawn_local(async move {
            let _kept_while_it_is_open = places;
            pump.run(upgrade).await;
        });
        Ok(head.map(|()| Download::Whole(Bytes::new())))
    }

    /// Makes the head of a request as its object may see it, if there can be one.
    fn let_see(
        &self,
        route: &Route<'_>,
        parts: &mut http::request::Parts,
    ) -> std::result::Result<(), Refusal> {
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
        asked: Asked<'_>,
        upload: Upload<Held>,
    ) -> std::result::Result<Outcome, Refusal> {
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
            Failure::Nothing => nothing(),
            Failure::Call(error) => refusal(error),
            Failure::NoRoom => {
                let reason = "There is no room for another response: try again later.\n";
                refuse(StatusCode::SERVICE_UNAVAILABLE, reason)
            }
            Failure::Answer(reason) => unsendable(route, &reason),
            Failure::Client(refusal) => refusal,
            Failure::Late => late(),
        })
    }
}

/// The client gets nothing of an impossible head.
fn unsendable(route: &Route<'_>, reason: &str) -> Refusal {
    tracing::error!(class = route.class, %reason, "a class gave an HTTP response that can't be sent");
    let reason = "The object's response can't be sent; the server's log says why.\n";
    refuse(StatusCode::INTERNAL_SERVER_ERROR, reason)
}

pub(super) fn check_name(route: &Route<'_>) -> std::result::Result<(), Refusal> {
    if route.name.len() <= NAME_BYTES_MAX {
        return Ok(());
    }
    let reason = format!("The name of an object has at most {NAME_BYTES_MAX} bytes.\n");
    Err(refuse(StatusCode::URI_TOO_LONG, reason))
}

/// No class can set the first two, which are the server's.
pub(super) fn refusal(error: ::capnp::Error) -> Refusal {
    if is_revoked(&error) {
        return Refusal::of(StatusCode::FORBIDDEN, &error);
    }
    if is_not_begun(&error) {
        return Refusal::of(StatusCode::SERVICE_UNAVAILABLE, &error);
    }
    error.into()
}

pub(super) fn nothing() -> Refusal {
    refuse(StatusCode::NOT_FOUND, "There is nothing at this path.\n")
}

pub(super) fn late() -> Refusal {
    refuse(StatusCode::GATEWAY_TIMEOUT, "The object did not answer in time.\n")
}

fn going(response: Response<Reader>, call: Promise<(), ::capnp::Error>) -> Response<Download> {
    response.map(|reader| Download::Streamed(StreamedBody::new(reader, call)))
}

fn whole(body: Held) -> Download {
    Download::Whole(Bytes::from_owner(body))
}

/// A response of the gateway's own, which is small.
pub(super) fn own(response: Response<Body>) -> Response<Bytes> {
    response.map(|body| Bytes::from(body.into_bytes()))
}

/// The answer to a request beside others of its connection, for which there is no place.
fn full(asked: &HeaderMap) -> Response<Download> {
    let reason = "There are too many requests at once: try again later.\n";
    let refusal = refuse(StatusCode::SERVICE_UNAVAILABLE, reason);
    own(refusal.response(asked)).map(Download::from)
}

fn has_not_begun(answer: &Answered) -> bool {
    matches!(answer, Err(Failure::Call(error)) if is_not_begun(error))
}
