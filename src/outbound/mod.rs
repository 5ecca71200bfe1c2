//! The way of objects to the outside: a class whose objects stand for the origins of HTTP servers.
//!
//! `Outbound/https://api.example.com` answers HTTP by asking that server. A holder of a reference
//! to it can call the server, and nobody else can: the operator says which origins there are, and
//! grants or bindings say which objects reach them.
//!
//! Invariants:
//! - No request leaves the origin, and the path, of the object's name; no redirect is followed.
//! - Nothing is sent twice. Each request has a connection of its own, so that none is lost with one
//!   that its server closed meanwhile.
//! - Nothing of a request is left when its caller has gone, or nothing moved for too long.
//!
//! Calls write nothing. It knows neither the gateway nor the storage.

mod counted;
mod dial;
mod exchange;
mod head;
mod origin;
mod setup;
mod socket;
mod watch;

use std::rc::Rc;
use std::sync::Arc;

use self::counted::Counted;
use self::origin::Destination;
pub use self::setup::OutboundLimits;
pub(crate) use self::setup::Setup;
use crate::error::{Result, failed, overloaded};
use crate::http::{http_service, passed_on};
use crate::{Context, Object};

/// The only value that is ever stored, of an object that the operator named.
const NAMED: &str = "named";

/// The class whose objects are servers outside: each is named by an origin, such as
/// `https://api.example.com`, or by an origin and a path that all of its requests are below. It
/// answers HTTP ([`http::send`](crate::http::send)) and opens WebSockets
/// ([`Sockets::connect`](crate::http::Sockets::connect)).
///
/// A server has it by [`Server::outbound`](crate::Server::outbound) or the flag `--outbound`.
/// Objects get it by a grant, as in `capstead grant Outbound/https://api.example.com`, or by a
/// [binding](crate::Server::bind):
///
/// ```
/// use capstead::http::{self, Body, Request, Response, ResponseBody};
/// use capstead::{Context, Outbound, Result, failed};
///
/// /// The server was put together with `.outbound(["https://api.example.com"])` and
/// /// `.bind::<Mine, Outbound>("web")`.
/// async fn ask(ctx: &Context) -> Result<Response<ResponseBody>> {
///     let api = ctx.namespace::<Outbound>("web")?.get("https://api.example.com/v1")?;
///     let request = Request::get("/v1/things").body(Body::default());
///     http::send(&api, request.map_err(|error| failed(error.to_string()))?).await
/// }
/// ```
#[derive(Debug)]
pub struct Outbound {
    setup: Arc<Setup>,
    target: std::result::Result<Destination, String>,
}

impl Object for Outbound {
    const CLASS: &'static str = "Outbound";
    type Client = http_service::Client;

    /// It wakes whatever its name is: its grants can be shown and revoked. One that the operator
    /// named exists from then on, so that the operator can grant it.
    async fn wake(ctx: Context) -> Result<Self> {
        let setup: Arc<Setup> =
            ctx.setting().ok_or_else(|| failed("this server has no way out"))?;
        let target = Destination::parse(ctx.name().unwrap_or_default());
        if target.as_ref().is_ok_and(|target| setup.is_named(target))
            && !ctx.storage().contains(NAMED)?
            && let Err(error) = ctx.storage().put(NAMED, "")
        {
            tracing::warn!(%error, "an origin of --outbound can't be granted yet");
        }
        Ok(Self { setup, target })
    }
}

impl http_service::Server for Outbound {
    async fn request(
        self: Rc<Self>,
        params: http_service::RequestParams,
        results: http_service::RequestResults,
    ) -> Result<()> {
        let target = self.target.as_ref().map_err(|reason| failed(reason.as_str()))?;
        if !self.setup.allows(target) {
            return Err(failed(format!(
                "no object may call {target}: the operator lets them by `--outbound {target}`"
            )));
        }
        let asked = params.get()?.get_request()?;
        let head = head::asked(asked, target)?;
        let context = params.get()?.get_context()?;
        let (body, left) = passed_on(asked, results, self.setup.limits.body_bytes)?;
        drop(params);
        let mut counted = Counted::new(&self.setup.metrics);
        let Ok(_place) = self.setup.places.try_acquire() else {
            counted.not_sent();
            return Err(overloaded(
                "too many requests to the outside are under way, and nothing was sent: try again \
                 later",
            ));
        };
        tokio::select! {
            biased;
            () = left => Err(failed("whoever made the request has given it up")),
            ended = exchange::run(&self.setup, target, (head, body), context, &mut counted) => {
                counted.ended(&ended);
                ended
            }
        }
    }
}
