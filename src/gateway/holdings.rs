//! All that a gateway holds, and the calls of objects that it makes with that.

use std::cell::OnceCell;
use std::rc::Rc;
use std::sync::Arc;

use capnp::capability::FromClientHook;

use super::ask::{AnswerWithUpload, AskError, ObjectRequest, ask};
use super::capnp::CapnpDoor;
use super::classes::JsonCalls;
use super::limits::Taken;
use super::objects::{Given, ObjectCache};
use super::route::Route;
use super::routes::Routes;
use super::socket::Again;
use super::upload::Upload;
use crate::error::{Result, failed, is_not_begun, is_revoked};
use crate::http::Held;
use crate::metrics::Metrics;
use crate::schema::restorer_capnp::restorer;

/// A gateway with the namespaces that it serves.
pub(crate) struct Gateway {
    pub(super) objects: ObjectCache,
    pub(super) routes: Routes,
    /// Empty where no methods are called in JSON.
    pub(super) json: OnceCell<JsonCalls>,
    /// Empty where no Cap'n Proto is spoken.
    pub(super) capnp: OnceCell<CapnpDoor>,
    pub(super) metrics: Arc<Metrics>,
}

impl Gateway {
    pub(crate) fn new(
        namespaces: impl IntoIterator<Item = (String, Given)>,
        restorer: restorer::Client,
        routes: Routes,
        metrics: Arc<Metrics>,
    ) -> Rc<Self> {
        let objects = ObjectCache::new(namespaces.into_iter(), restorer);
        let (json, capnp) = (OnceCell::new(), OnceCell::new());
        Rc::new(Self { objects, routes, json, capnp, metrics })
    }

    /// From now on every method may be called in JSON, with references that `restorer` restores.
    pub(crate) fn serve_json(&self, restorer: restorer::Client) {
        // A second time changes nothing.
        let _ = self.json.set(JsonCalls::new(restorer));
    }

    /// Lets peers speak Cap'n Proto over WebSockets from now on: where rows of the table say so,
    /// and at `/capnp` if the door is there.
    pub(crate) fn serve_capnp(&self, door: CapnpDoor) {
        // A second time changes nothing.
        let _ = self.capnp.set(door);
    }

    /// A link broke, and some of its capabilities may have come by it: all are asked for anew when
    /// they are needed.
    pub(crate) fn forget_all(&self) {
        self.objects.forget_all();
        self.json.get().into_iter().for_each(JsonCalls::forget);
    }

    /// Reaches the object of a route anew after its capability broke.
    pub(super) fn again(self: &Rc<Self>, route: &Route<'_>) -> Again {
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

    pub(super) async fn ask(
        &self,
        route: &Route<'_>,
        asked: ObjectRequest<'_>,
        upload: Upload<Held>,
        taken: &Taken,
    ) -> Result<AnswerWithUpload> {
        // It was there before the body came, and classes never go away.
        let Some(object) = self.objects.get(route)? else { return Ok(Err(AskError::Nothing)) };
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
            Err(AskError::Call(error)) if error.kind == capnp::ErrorKind::Disconnected => {
                self.objects.forget(route);
            }
            Err(AskError::Call(error)) if is_revoked(error) => self.objects.forget_revoked(route),
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

fn has_not_begun(answer: &AnswerWithUpload) -> bool {
    matches!(answer, Err(AskError::Call(error)) if is_not_begun(error))
}
