//! The page at `/` of the bundled server, with links to what there is to try.

use std::rc::Rc;

use capstead::http::{self, StaticFile, http_service};
use capstead::{Context, Object, Result};

use crate::index_capnp::index;

static PAGE: StaticFile = StaticFile::new("text/html; charset=utf-8", include_bytes!("index.html"))
    .policy("default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'");

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

impl index::Server for Index {}

impl http_service::Server for Index {
    async fn request(
        self: Rc<Self>,
        params: http_service::RequestParams,
        results: http_service::RequestResults,
    ) -> Result<()> {
        http::serve(params, results, async |request| PAGE.answer(&request)).await
    }
}
