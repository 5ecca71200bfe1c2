//! Requests that show a sturdyref, `Authorization: Bearer capstead:…`, or in the name of a protocol
//! of a WebSocket, and are for the object that it names.
//!
//! Invariants:
//! - The reference goes to the restorer and nowhere else: no object, log or answer has it.
//! - A request with a reference that is refused, or was revoked, reaches no object.

use capstead_client::sturdyref::{PayloadHash, TextReference};
use http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use zeroize::Zeroizing;

use super::door::Wanted;
use super::objects::ObjectCache;
use super::refusals::unreached;
use super::route::{Reference, Route};
use super::routes::{RowMatch, To};
use super::way::RequestWay;
use crate::error::is_reference_refused;
use crate::http::{Refusal, refuse};

/// The beginning of the protocol by which a WebSocket shows a reference: browsers let no page set
/// other headers of a handshake.
pub(super) const PROTOCOL: &str = "capstead.bearer.";

/// The part of a reference before the one that stands in a protocol, where marks like `/` can't be.
/// The address isn't used: the reference is restored here.
const BEFORE: &str = "capstead://localhost:1/#";

/// The way of a request, and the reference that it shows, if the way asks for one.
pub(super) struct ShownReference<'a> {
    pub(super) way: RequestWay<'a>,
    pub(super) reference: Option<PayloadHash>,
    /// It was shown as a protocol, so that one of the others has to be answered.
    pub(super) is_protocol: bool,
}

/// Finds the object of a request that goes such a way; other requests keep theirs.
///
/// # Errors
/// The answer to a request that shows no reference, or none that is good.
pub(super) async fn find<'a>(
    objects: &ObjectCache,
    way: RequestWay<'a>,
    headers: &mut HeaderMap,
    wanted: Wanted,
) -> Result<ShownReference<'a>, Refusal> {
    match way {
        RequestWay::Row(RowMatch { terms, to: To::Object { is_json, route } })
            if terms.needs_bearer =>
        {
            let (text, is_protocol) = take(headers, wanted)?;
            // Most texts that aren't references never get to a host.
            let parsed = TextReference::parse(&text).map_err(|_| refused())?;
            let route = Route::held(route.class, Reference::new(&text), route.url);
            objects.restore(&route).await.map_err(unrestored)?;
            let way = RequestWay::Row(RowMatch { terms, to: To::Object { is_json, route } });
            let reference = Some(parsed.reference().payload_hash());
            Ok(ShownReference { way, reference, is_protocol })
        }
        way => Ok(ShownReference { way, reference: None, is_protocol: false }),
    }
}

/// Takes the reference out of the head of a request. True if it stood among the protocols.
///
/// # Errors
/// The answer to a request that shows none, or several.
pub(super) fn take(
    headers: &mut HeaderMap,
    wanted: Wanted,
) -> Result<(Zeroizing<String>, bool), Refusal> {
    let mut shown: Vec<_> = take_all(headers, &AUTHORIZATION)
        .iter()
        .map(|value| of_header(value).map(|text| (text, false)))
        .collect();
    let protocols = take_all(headers, &SEC_WEBSOCKET_PROTOCOL);
    let protocols = protocols.iter().filter_map(|value| value.to_str().ok());
    let protocols = protocols.flat_map(|value| value.split(',')).map(str::trim);
    let protocols = protocols.filter(|protocol| !protocol.is_empty());
    let (secret, others): (Vec<_>, Vec<_>) =
        protocols.partition(|protocol| protocol.starts_with(PROTOCOL));
    if !others.is_empty() {
        let others = HeaderValue::try_from(others.join(", ")).expect("each was in a header");
        headers.insert(SEC_WEBSOCKET_PROTOCOL, others);
    }
    if wanted == Wanted::Socket {
        let text = |protocol: &&str| Zeroizing::new(protocol.replacen(PROTOCOL, BEFORE, 1));
        shown.extend(secret.iter().map(|protocol| Some((text(protocol), true))));
    }
    let Some((text, is_protocol)) = shown.pop().flatten().filter(|_| shown.is_empty()) else {
        return Err(missing());
    };
    if is_protocol && others.is_empty() {
        return Err(lonely());
    }
    Ok((text, is_protocol))
}

fn take_all(headers: &mut HeaderMap, name: &HeaderName) -> Vec<HeaderValue> {
    let all = headers.get_all(name).iter().cloned().collect();
    headers.remove(name);
    all
}

/// The text behind `Bearer`.
fn of_header(value: &HeaderValue) -> Option<Zeroizing<String>> {
    let (scheme, text) = value.to_str().ok()?.split_once(' ')?;
    let is_bearer = scheme.eq_ignore_ascii_case("bearer");
    is_bearer.then(|| Zeroizing::new(text.trim().to_owned()))
}

fn missing() -> Refusal {
    let reason = "This path is for those who show a reference: `Authorization: Bearer capstead://…`, or, \
                  for a WebSocket, the protocol `capstead.bearer.` with what stands behind the # of it.\n";
    refuse(StatusCode::UNAUTHORIZED, reason)
}

fn lonely() -> Refusal {
    let reason =
        "A reference that is shown as a protocol is no answer: offer another protocol beside it.\n";
    refuse(StatusCode::BAD_REQUEST, reason)
}

fn refused() -> Refusal {
    let reason = "The reference that was shown is refused: ask its giver for another one.\n";
    refuse(StatusCode::UNAUTHORIZED, reason)
}

/// The answer when a reference isn't restored. Only its giver may learn the reason.
fn unrestored(error: capnp::Error) -> Refusal {
    if is_reference_refused(&error) { refused() } else { unreached(error) }
}
