//! The server's numbers over HTTP, for whoever watches it.

use std::convert::Infallible;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, Response, StatusCode};
use tokio::net::TcpListener;

use crate::metrics::Metrics;

/// Serves `/metrics` until it is dropped.
pub(super) async fn serve(listener: TcpListener, metrics: Arc<Metrics>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let metrics = metrics.clone();
                let service = hyper::service::service_fn(move |request| {
                    let page = page(&request, &metrics);
                    async move { Ok::<_, Infallible>(page) }
                });
                let stream = hyper_util::rt::TokioIo::new(stream);
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(stream, service);
                // Ends with its connection.
                tokio::task::spawn_local(async move { connection.await.ok() });
            }
            Err(error) => crate::net::rest_after(&error).await,
        }
    }
}

fn page<B>(request: &Request<B>, metrics: &Metrics) -> Response<Full<Bytes>> {
    let (status, text) = match request.uri().path() {
        "/metrics" => (StatusCode::OK, metrics.render()),
        _ => (StatusCode::NOT_FOUND, "The numbers are at /metrics.\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}
