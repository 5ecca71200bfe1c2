//! The page at `/` of the bundled server, with links to what there is to try.

use std::rc::Rc;

use capstead::http::{
    self, Answer, Body, HeaderValue, Request, Response, StatusCode, http_service,
};
use capstead::{Context, Object, Result};

use crate::index_capnp::index;

const PAGE: &str = include_str!("index.html");

/// The page. It stores nothing.
#[derive(Debug)]
pub struct Index;

impl Object for Index {
    const CLASS: &'static str = "Index";
    type Client = index::Client;

    async fn wake(_: Context) -> Result<Self> {
        Ok(Index)
    }
}

fn answer(request: &Request<Body>) -> Answer {
    if request.method() != http::Method::GET {
        return Err(http::refuse(StatusCode::METHOD_NOT_ALLOWED, "use GET"));
    }
    let mut response = Response::new(Body::from(PAGE));
    for (name, value) in [
        ("content-type", "text/html; charset=utf-8"),
        ("content-security-policy", "default-src 'none'; style-src 'unsafe-inline'"),
        ("x-content-type-options", "nosniff"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

impl index::Server for Index {}

impl http_service::Server for Index {
    async fn request(
        self: Rc<Self>,
        params: http_service::RequestParams,
        results: http_service::RequestResults,
    ) -> Result<()> {
        http::serve(params, results, async |request| answer(&request)).await
    }
}
