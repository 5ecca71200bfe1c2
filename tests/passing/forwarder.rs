//! The class of objects that pass HTTP requests on, so that a client can answer a browser.

use std::cell::RefCell;
use std::rc::Rc;

use capstead::http::http_service;
use capstead::{Context, Object, Result, failed};

use crate::forwarder_capnp::forwarder;
use crate::slot_capnp::slot;

#[derive(Default)]
pub(crate) struct Forwarder(RefCell<Option<http_service::Client>>);

impl Object for Forwarder {
    const CLASS: &'static str = "Forwarder";
    type Client = forwarder::Client;

    async fn wake(_: Context) -> Result<Self> {
        Ok(Self::default())
    }
}

impl forwarder::Server for Forwarder {}

impl slot::Server for Forwarder {
    async fn fill(self: Rc<Self>, params: slot::FillParams, _: slot::FillResults) -> Result<()> {
        self.0.replace(Some(params.get()?.get_with().get_as_capability()?));
        Ok(())
    }
}

impl http_service::Server for Forwarder {
    async fn request(
        self: Rc<Self>,
        params: http_service::RequestParams,
        mut results: http_service::RequestResults,
    ) -> Result<()> {
        let service = self.0.borrow().clone();
        let service = service.ok_or_else(|| failed("nobody answers yet"))?;
        let (mut request, params) = (service.request_request(), params.get()?);
        request.get().set_request(params.get_request()?)?;
        request.get().set_context(params.get_context()?);
        let sent = request.send();
        // The body is written before the call returns.
        results.get().set_request_body(sent.pipeline.get_request_body());
        results.set_pipeline()?;
        sent.promise.await.map(drop)
    }
}
