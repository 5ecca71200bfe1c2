//! One call: parameters from JSON, results to JSON, and the references in both.

use capnp::capability::{FromClientHook, Response};
use capnp::private::capability::ClientHook;
use futures::future::join_all;
use http::{HeaderName, StatusCode};
use sha2::{Digest, Sha256};
use tokio::time::{Instant, timeout_at};

use super::super::classes::{JsonCalls, JsonClass};
use super::super::holdings::Gateway;
use super::super::limits::Taken;
use super::super::refusals::{late, nothing, unreached};
use super::super::route::Route;
use super::outcome::{HAPPENED, NOT, UNKNOWN, refusal_of};
use crate::dynamic::{
    CapSink, CapSource, MethodShape, NoCapSink, Root, RootBuilder, Table, Unfit, parse,
};
use crate::error::{Result, is_not_begun, is_reference_refused, is_revoked};
use crate::http::{OrRefusal, Refusal, refuse};
use crate::limits::{HTTP_RESPONSE_BYTES_MAX, JSON_CAPABILITIES_MAX, JSON_PARAMS_BYTES_MAX};
use crate::schema::facet_capnp::persistent;
use crate::schema::restorer_capnp::restorer;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Keys are as hard to guess as request ids, and have as many bytes at least.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 16..=256;

/// The options of a request beside the call.
pub(super) struct CallOptions {
    /// The call's request id.
    id: Option<[u8; 32]>,
    /// The fields of the results whose capabilities become references.
    saved: Vec<String>,
}

/// The fields that one request may ask to save: each capability of the results is compared with
/// all.
const SAVED_MAX: usize = 64;

impl CallOptions {
    /// # Errors
    /// When the key or the query isn't one.
    pub(super) fn of(request: &http::request::Parts, query: &str) -> OrRefusal<Self> {
        let mut saved = Vec::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if name != "save" {
                let why = format!("There is no {name} to ask for: only save=FIELD is known.\n");
                return Err(refuse(StatusCode::BAD_REQUEST, why));
            }
            if saved.len() == SAVED_MAX {
                let why = format!("At most {SAVED_MAX} fields can be saved at once.\n");
                return Err(refuse(StatusCode::BAD_REQUEST, why));
            }
            saved.push(value.into_owned());
        }
        let mut keys = request.headers.get_all(IDEMPOTENCY_KEY).iter();
        let id = match (keys.next(), keys.next()) {
            (None, _) => None,
            (Some(key), None) => Some(request_id(key.as_bytes())?),
            _ => {
                let why = "A request has one Idempotency-Key.\n";
                return Err(refuse(StatusCode::BAD_REQUEST, why));
            }
        };
        Ok(Self { id, saved })
    }

    /// # Errors
    /// When a field that is to be saved isn't one of a capability: after the call it would be too
    /// late to say so.
    pub(super) fn check(&self, table: &Table, method: &MethodShape) -> OrRefusal<()> {
        for path in &self.saved {
            table.check_capability(&method.results, path).map_err(|unfit| {
                let why = format!("save={path} can't be: {unfit}.\n");
                refuse(StatusCode::BAD_REQUEST, why)
            })?;
        }
        Ok(())
    }
}

/// The request id of a key, which may stand in quotation marks. Ids that were made elsewhere are
/// never the same.
fn request_id(key: &[u8]) -> OrRefusal<[u8; 32]> {
    let key = key.strip_prefix(b"\"").and_then(|key| key.strip_suffix(b"\"")).unwrap_or(key);
    if !KEY_BYTES.contains(&key.len()) {
        let why = format!(
            "An Idempotency-Key has {} to {} bytes, since whoever knows it gets the reply: take a random UUID.\n",
            KEY_BYTES.start(),
            KEY_BYTES.end()
        );
        return Err(refuse(StatusCode::BAD_REQUEST, why));
    }
    Ok(Sha256::new()
        .chain_update(b"capstead idempotency key v1\0")
        .chain_update(key)
        .finalize()
        .into())
}

/// A call that is to be made.
pub(super) struct JsonCall<'a> {
    pub(super) calls: &'a JsonCalls,
    pub(super) class: &'a JsonClass,
    pub(super) method: &'a MethodShape,
    /// The parameters. Read anew for each attempt: as values they take far more memory than here.
    pub(super) text: &'a [u8],
}

impl JsonCall<'_> {
    /// Writes the parameters into a message.
    fn write(&self, root: RootBuilder<'_>, restores: &mut Restores<'_>) -> OrRefusal<()> {
        let wrong = |why: String| refuse(StatusCode::BAD_REQUEST, why);
        let json =
            parse(self.text).map_err(|error| wrong(format!("The body isn't JSON: {error}.\n")))?;
        let Self { class, method, .. } = self;
        let written =
            class.table.write(&method.params, &json, root, JSON_PARAMS_BYTES_MAX, restores);
        written.map_err(|unfit| wrong(format!("{unfit}.\n")))
    }
}

/// The results of a call, or why there are none.
type Replied = std::result::Result<Response<capnp::any_pointer::Owned>, Failure>;

enum Failure {
    Call(capnp::Error),
    Refused(Refusal),
}

impl Gateway {
    /// The results as JSON.
    pub(super) async fn call(
        &self,
        route: &Route<'_>,
        params: &JsonCall<'_>,
        asked: &CallOptions,
        taken: &Taken,
    ) -> OrRefusal<Vec<u8>> {
        let due = Instant::now() + taken.limits.transfer;
        // Otherwise its refusal would look like an error of the object's.
        timeout_at(due, self.objects.restore(route))
            .await
            .map_err(|_| late().with_outcome(NOT))?
            .map_err(|error| unrestored(error).with_outcome(NOT))?;
        let mut replied = self.try_call(route, params, asked, due).await;
        if let Err(Failure::Call(error)) = &replied {
            if error.kind == capnp::ErrorKind::Disconnected {
                self.objects.forget(route);
            } else if is_revoked(error) {
                self.objects.forget_revoked(route);
            }
            // An object's end between two requests is no concern of the next one.
            if is_not_begun(error) {
                replied = self.try_call(route, params, asked, due).await;
            }
        }
        match replied {
            Ok(results) => results_as_json(params, asked, &results, due).await,
            Err(Failure::Call(error)) => Err(refusal_of(&error).0),
            Err(Failure::Refused(refusal)) => Err(refusal),
        }
    }

    async fn try_call(
        &self,
        route: &Route<'_>,
        params: &JsonCall<'_>,
        asked: &CallOptions,
        due: Instant,
    ) -> Replied {
        let not = |refusal: Refusal| Failure::Refused(refusal.with_outcome(NOT));
        let object =
            self.objects.get(route).map_err(Failure::Call)?.ok_or_else(|| not(nothing()))?;
        let object = match &asked.id {
            Some(id) => capstead_client::once(&object, id).into_client_hook(),
            None => object.into_client_hook(),
        };
        let JsonCall { calls, method, .. } = params;
        let mut request = object.new_call(method.interface, method.number, None);
        let mut restores = Restores { calls, under_way: Vec::new() };
        params.write(RootBuilder::of(request.get()), &mut restores).map_err(not)?;
        for restored in
            timeout_at(due, join_all(restores.under_way)).await.map_err(|_| not(late()))?
        {
            restored.map_err(|error| {
                not(unrestored(error).saying("A reference in the parameters can't be restored: "))
            })?;
        }
        match timeout_at(due, request.send().promise).await {
            Ok(replied) => replied.map_err(Failure::Call),
            Err(_) => Err(Failure::Refused(late().with_outcome(UNKNOWN))),
        }
    }
}

/// The answer when a reference isn't restored. Only a refusal that its giver can mend is final.
fn unrestored(error: capnp::Error) -> Refusal {
    if is_reference_refused(&error) {
        Refusal::of(StatusCode::FORBIDDEN, &error)
    } else {
        unreached(error)
    }
}

/// Restores the references in parameters.
struct Restores<'a> {
    calls: &'a JsonCalls,
    under_way:
        Vec<capnp::capability::Promise<Response<restorer::restore_results::Owned>, capnp::Error>>,
}

impl CapSource for Restores<'_> {
    fn capability(&mut self, text: &str) -> std::result::Result<Box<dyn ClientHook>, Unfit> {
        if self.under_way.len() >= JSON_CAPABILITIES_MAX {
            let why = format!("there are more than {JSON_CAPABILITIES_MAX} references");
            return Err(Unfit::new(why));
        }
        let mut request = self.calls.restorer.restore_request();
        request.get().set_sturdy_ref(text);
        let restored = request.send();
        self.under_way.push(restored.promise);
        Ok(restored.pipeline.get_cap().as_cap())
    }
}

/// Collects the capabilities that become references.
struct Wanted<'a> {
    saved: &'a [String],
    found: Vec<Box<dyn ClientHook>>,
}

impl Wanted<'_> {
    fn has(&self, path: &[&str]) -> bool {
        self.saved.iter().any(|saved| saved.split('.').eq(path.iter().copied()))
    }
}

impl CapSink for Wanted<'_> {
    fn capability(
        &mut self,
        path: &[&str],
        capability: Box<dyn ClientHook>,
    ) -> std::result::Result<Option<String>, Unfit> {
        if self.has(path) {
            if self.found.len() >= JSON_CAPABILITIES_MAX {
                let why = format!("more than {JSON_CAPABILITIES_MAX} capabilities would be saved");
                return Err(Unfit::new(why));
            }
            self.found.push(capability);
        }
        Ok(None)
    }
}

/// Puts the references in their places.
struct Saved<'a> {
    wanted: Wanted<'a>,
    /// In the reverse of the order in which they were found.
    texts: Vec<String>,
}

impl CapSink for Saved<'_> {
    fn capability(
        &mut self,
        path: &[&str],
        _: Box<dyn ClientHook>,
    ) -> std::result::Result<Option<String>, Unfit> {
        Ok(if self.wanted.has(path) { self.texts.pop() } else { None })
    }
}

/// The call has happened in any case.
async fn results_as_json(
    params: &JsonCall<'_>,
    asked: &CallOptions,
    results: &Response<capnp::any_pointer::Owned>,
    due: Instant,
) -> OrRefusal<Vec<u8>> {
    let happened = |refusal: Refusal| refusal.with_outcome(HAPPENED);
    let read = |outgoing: &mut dyn CapSink| {
        let root = results.get().and_then(Root::of).map_err(Unfit::from);
        let of = &params.method.results;
        root.and_then(|root| params.class.table.read(of, root, HTTP_RESPONSE_BYTES_MAX, outgoing))
            .map_err(|unfit| {
                let why = format!("The results can't be written as JSON: {unfit}.\n");
                happened(refuse(StatusCode::INTERNAL_SERVER_ERROR, why))
            })
    };
    if asked.saved.is_empty() {
        return read(&mut NoCapSink);
    }
    let mut wanted = Wanted { saved: &asked.saved, found: Vec::new() };
    read(&mut wanted)?;
    let saves = std::mem::take(&mut wanted.found).into_iter().map(save);
    let texts = timeout_at(due, join_all(saves)).await.map_err(|_| happened(late()))?;
    let texts = texts.into_iter().rev().collect::<Result<Vec<_>>>().map_err(|error| {
        let (refusal, _) = refusal_of(&error);
        happened(refusal.saying("A capability in the results can't be saved: "))
    })?;
    read(&mut Saved { wanted, texts })
}

async fn save(capability: Box<dyn ClientHook>) -> Result<String> {
    let mut request = <persistent::Client as FromClientHook>::new(capability).save_request();
    request.get().init_seal_for().set_label("by JSON");
    let saved = request.send().promise.await?;
    Ok(saved.get()?.get_sturdy_ref()?.to_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Reason, disconnected, failed, overloaded, revoked};

    #[test]
    fn only_a_reference_that_is_refused_is_a_final_answer() {
        for (error, status) in [
            (failed("the reference is refused"), 403),
            (revoked("it was taken back"), 403),
            (Reason::Expired.error("the time of this capability is over"), 403),
            (Reason::ImportUnfinished.error("import it again"), 503),
            (Reason::Damaged.error("a stored record"), 503),
            (Reason::NotBegun.error("the host is cut off"), 503),
            (overloaded("too many at once"), 503),
            (disconnected("the host is cut off"), 502),
            (Reason::StorageFailed.error("start it again"), 500),
        ] {
            let refusal = unrestored(error.clone());
            assert_eq!(refusal.status().as_u16(), status, "{error}");
            assert!(refusal.said().ends_with(&error.extra), "{error}");
        }
    }
}
