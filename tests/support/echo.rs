//! A class that echoes HTTP requests.

use std::rc::Rc;

use capstead::counter_capnp::counter;
use capstead::http::{self, Body, Request, StatusCode, http_service};
use capstead::{Context, Object, Result};

/// Stores the request, then answers with its method, path and body.
pub(crate) struct Echo(Context);

impl Object for Echo {
    const CLASS: &'static str = "Echo";
    type Client = counter::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        Ok(Self(ctx))
    }
}

impl Echo {
    fn http(&self, request: Request<Body>) -> http::Answer {
        let head = format!("{} {}\n", request.method(), request.uri());
        self.0.storage().put("head", &head)?;
        let body = [head.into_bytes(), request.into_body().into_bytes()].concat();
        let mut response = http::text(StatusCode::CREATED, "");
        *response.body_mut() = Body::from(body);
        Ok(response)
    }
}

impl counter::Server for Echo {}

impl http_service::Server for Echo {
    async fn request(
        self: Rc<Self>,
        params: http_service::RequestParams,
        results: http_service::RequestResults,
    ) -> Result<()> {
        http::serve(params, results, async |request| self.http(request)).await
    }
}
