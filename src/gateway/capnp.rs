//! Cap'n Proto over a WebSocket, for clients that reach the gateway alone: a page, or a program
//! behind a proxy for HTTP.
//!
//! The gateway moves bytes and understands none of them: the peer is served as one that came to the
//! first host's own listener, with the same guard, limits and places, and gets nothing without a
//! reference.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use hyper::body::{Bytes, Incoming};
use hyper::upgrade::OnUpgrade;
use hyper::{HeaderMap, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::download::Download;
use super::route_shares::SocketShare;
use super::socket;
use crate::http::{OrRefusal, Refusal, peer_of, refuse};
use crate::net::{Guests, Place};

/// The path where no row of the table says another.
pub(super) const PATH: &str = "/capnp";

/// The way in for peers that speak Cap'n Proto.
pub(crate) struct CapnpDoor {
    pub(crate) guests: Guests,
    /// It is at [`PATH`] too, and not only where rows lead to it.
    pub(crate) is_at_path: bool,
}

/// A client of HTTP who wants to speak Cap'n Proto.
pub(super) struct Visitor<'a> {
    pub(super) guests: Option<&'a Guests>,
    pub(super) peer: IpAddr,
    /// The connection's own, which lasts as long as the WebSocket.
    pub(super) place: Rc<Place>,
    /// The time for the handshake.
    pub(super) head_time: Duration,
}

/// The answer to a request that asks for no WebSocket.
pub(super) fn no_upgrade() -> Refusal {
    let reason = "Cap'n Proto is spoken here over a WebSocket.\n";
    refuse(StatusCode::UPGRADE_REQUIRED, reason)
}

/// Opens a WebSocket, behind which a peer is served.
/// It has `share` for as long as it is open.
pub(super) fn open(
    client: Visitor<'_>,
    parts: &mut http::request::Parts,
    body: &Incoming,
    share: Option<SocketShare>,
) -> OrRefusal<Response<Download>> {
    let accepts = socket::asked(&parts.headers)?;
    let upgrade = parts.extensions.remove::<OnUpgrade>();
    let (Some(upgrade), true) = (upgrade, hyper::body::Body::is_end_stream(body)) else {
        let reason = "The handshake of a WebSocket has no body.\n";
        return Err(refuse(StatusCode::BAD_REQUEST, reason));
    };
    let full = || {
        let reason = "There are too many connections: try again later.\n";
        refuse(StatusCode::SERVICE_UNAVAILABLE, reason)
    };
    let guests = client.guests.ok_or_else(full)?;
    // Behind a proxy, the client's and not the proxy's.
    let peer = peer_of(&parts.headers).unwrap_or(client.peer);
    let place = guests.take(peer).ok_or_else(full)?;
    let head = socket::response(&parts.headers, accepts, HeaderMap::new());
    // Nothing of a class is in it.
    let head: Response<()> = head.map_err(|why| refuse(StatusCode::BAD_REQUEST, why))?;
    let (time, kept) = (client.head_time, (client.place, share));
    guests.serve(place, async move {
        let upgraded = timeout(time, upgrade).await.ok()?.ok()?;
        let stream = capstead_client::WebSocketBytes::accepted(TokioIo::new(upgraded)).await;
        Some((stream, kept))
    });
    Ok(head.map(|()| Download::Whole(Bytes::new())))
}
