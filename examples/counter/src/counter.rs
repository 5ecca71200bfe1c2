//! A number that survives everything, and a page that shows it live.

use std::rc::Rc;
use std::time::Duration;

use capstead::http::{self, Answer, Body, Message, Request, Socket, SocketHandler, Sockets};
use capstead::http::{StaticFile, StatusCode, http_service};
use capstead::{Alarm, Alarms, Context, Object, Result, Stored, conflict, failed};

use crate::counter_capnp::counter;

static PAGE: StaticFile =
    StaticFile::new("text/html; charset=utf-8", include_bytes!("../page/counter.html")).policy(
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
         connect-src 'self'; frame-ancestors 'none'",
    );

/// A durable counter.
#[derive(Debug)]
pub struct Counter {
    value: Stored<i64>,
    /// The windows that show it.
    windows: Sockets,
    alarms: Alarms,
}

impl Object for Counter {
    const CLASS: &'static str = "Counter";
    type Client = counter::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        Ok(Counter { value: ctx.stored("value")?, windows: ctx.sockets(), alarms: ctx.alarms() })
    }

    /// There is one alarm, `reset`. It may come twice, which makes no difference.
    async fn alarm(self: Rc<Self>, _: Alarm) -> Result<()> {
        self.set(0).map(drop)
    }
}

impl Counter {
    fn add(&self, by: i64) -> Result<i64> {
        let value =
            self.value.get().checked_add(by).ok_or_else(|| conflict("the counter is full"))?;
        self.set(value)
    }

    fn subtract(&self, by: i64) -> Result<i64> {
        let value =
            self.value.get().checked_sub(by).ok_or_else(|| conflict("the counter is empty"))?;
        self.set(value)
    }

    /// Windows show it when it is durable.
    fn set(&self, value: i64) -> Result<i64> {
        self.value.set(value)?;
        if !self.windows.is_empty() {
            self.windows.broadcast(&Message::Text(value.to_string()));
        }
        Ok(value)
    }

    /// Has the counter begin anew after so many seconds, whether it is awake then or not.
    fn reset_later(&self, request: &Request<Body>) -> Answer {
        let after = http::query(request, "after").unwrap_or_default().parse();
        let after = after.map_err(|_| {
            http::refuse(StatusCode::BAD_REQUEST, "after must be a number of seconds")
        })?;
        self.alarms.set_after("reset", Duration::from_secs(after))?;
        Ok(http::text(StatusCode::OK, self.value.get()))
    }

    fn http(self: &Rc<Self>, request: &Request<Body>) -> Answer {
        let by = http::query(request, "by").unwrap_or_else(|| "1".into()).parse();
        let by: i64 =
            by.map_err(|_| http::refuse(StatusCode::BAD_REQUEST, "by must be a number"))?;
        let value = match (request.method().as_str(), request.uri().path()) {
            ("GET", "/") => self.value.get(),
            ("GET", "/page") => return PAGE.answer(request),
            ("GET", "/live") => return self.windows.accept(self, request)?.answer(),
            ("POST", "/increment") => self.add(by)?,
            ("POST", "/decrement") => self.subtract(by)?,
            ("POST", "/reset") => return self.reset_later(request),
            (_, "/" | "/increment" | "/decrement" | "/reset") => {
                let reason = "use GET to read, POST to change";
                let allowed = if request.uri().path() == "/" { "GET, HEAD" } else { "POST" };
                return Err(http::refuse(StatusCode::METHOD_NOT_ALLOWED, reason).allow(allowed));
            }
            _ => return Err(http::refuse(StatusCode::NOT_FOUND, "a counter has no such path")),
        };
        Ok(http::text(StatusCode::OK, value))
    }
}

impl SocketHandler for Counter {
    async fn opened(self: Rc<Self>, window: Socket) -> Result<()> {
        drop(window.send_text(&self.value.get().to_string()));
        Ok(())
    }

    /// The page's buttons make requests, as everybody does.
    async fn message(self: Rc<Self>, _: Socket, _: Message) -> Result<()> {
        Err(failed("a counter only tells: count by a POST"))
    }
}

impl counter::Server for Counter {
    async fn increment(
        self: Rc<Self>,
        params: counter::IncrementParams,
        mut results: counter::IncrementResults,
    ) -> Result<()> {
        results.get().set_value(self.add(params.get()?.get_by())?);
        Ok(())
    }

    async fn decrement(
        self: Rc<Self>,
        params: counter::DecrementParams,
        mut results: counter::DecrementResults,
    ) -> Result<()> {
        results.get().set_value(self.subtract(params.get()?.get_by())?);
        Ok(())
    }

    async fn read(
        self: Rc<Self>,
        _: counter::ReadParams,
        mut results: counter::ReadResults,
    ) -> Result<()> {
        results.get().set_value(self.value.get());
        Ok(())
    }
}

impl http_service::Server for Counter {
    async fn request(
        self: Rc<Self>,
        params: http_service::RequestParams,
        results: http_service::RequestResults,
    ) -> Result<()> {
        http::serve(params, results, async |request| self.http(&request)).await
    }
}
