//! A number that survives everything.

use std::rc::Rc;

use capstead::http::{self, Answer, Body, Request, StatusCode, http_service};
use capstead::{Context, Object, Result, Stored, conflict};

use crate::counter_capnp::counter;

/// A durable counter.
#[derive(Debug)]
pub struct Counter {
    value: Stored<i64>,
}

impl Object for Counter {
    const CLASS: &'static str = "Counter";
    type Client = counter::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        Ok(Counter { value: ctx.stored("value")? })
    }
}

impl Counter {
    fn add(&self, by: i64) -> Result<i64> {
        let value =
            self.value.get().checked_add(by).ok_or_else(|| conflict("the counter is full"))?;
        self.value.set(value)?;
        Ok(value)
    }

    fn subtract(&self, by: i64) -> Result<i64> {
        let value =
            self.value.get().checked_sub(by).ok_or_else(|| conflict("the counter is empty"))?;
        self.value.set(value)?;
        Ok(value)
    }

    fn http(&self, request: &Request<Body>) -> Answer {
        let by = http::query(request, "by").unwrap_or_else(|| "1".into()).parse();
        let by: i64 =
            by.map_err(|_| http::refuse(StatusCode::BAD_REQUEST, "by must be a number"))?;
        let value = match (request.method().as_str(), request.uri().path()) {
            ("GET", "/") => self.value.get(),
            ("POST", "/increment") => self.add(by)?,
            ("POST", "/decrement") => self.subtract(by)?,
            (_, "/" | "/increment" | "/decrement") => {
                let reason = "use GET to read, POST to change";
                return Err(http::refuse(StatusCode::METHOD_NOT_ALLOWED, reason));
            }
            _ => return Err(http::refuse(StatusCode::NOT_FOUND, "a counter has no such path")),
        };
        Ok(http::text(StatusCode::OK, value))
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
