//! The server's metrics and its readiness over HTTP, for monitoring.
//!
//! It has a thread of its own, so it answers even while a turn holds up the hosts.

use std::convert::Infallible;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioTimer;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, LocalOptions};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::gateway::{Door, Reach};
use crate::limits::HTTP_HEADER_SECS;
use crate::metrics::Metrics;
use crate::net::Places;

/// Serves `/metrics` and `/ready` until it is dropped.
pub(super) struct MetricsPage {
    _stop: DropGuard,
}

impl MetricsPage {
    /// # Errors
    /// When the operating system gives no thread, or doesn't let it listen.
    pub(super) async fn start(
        listener: std::net::TcpListener,
        door: Door,
        metrics: Arc<Metrics>,
        tools: usize,
    ) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let begin = move || {
            let runtime =
                Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
            let entered = runtime.enter();
            let listener = TcpListener::from_std(listener)?;
            drop(entered);
            Ok((runtime, listener))
        };
        let run = move || {
            let (begun, serving): (io::Result<()>, _) = match begin() {
                Ok(serving) => (Ok(()), Some(serving)),
                Err(error) => (Err(error), None),
            };
            // The receiver is gone if the start was abandoned.
            let _ = ready.send(begun);
            if let Some((runtime, listener)) = serving {
                let serve = serve(listener, door, metrics, tools);
                runtime.block_on(stopped.run_until_cancelled(serve));
            }
        };
        std::thread::Builder::new().name("capstead-metrics".into()).spawn(run)?;
        is_ready.await.unwrap_or_else(|_| Err(io::Error::other("its thread panicked")))?;
        Ok(Self { _stop: stop.drop_guard() })
    }
}

/// The time of one connection, which has one request.
const CONNECTION_TIME: Duration = Duration::from_secs(2 * HTTP_HEADER_SECS);

async fn serve(listener: TcpListener, door: Door, metrics: Arc<Metrics>, tools: usize) {
    let (door, places) = (Rc::new(door), Places::new(tools));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let Some(place) = Places::take(&places) else { continue };
                let (door, metrics) = (door.clone(), metrics.clone());
                let reach = Reach::of(&stream);
                let service = hyper::service::service_fn(move |request| {
                    let page = page(&request, (&door, reach), &metrics);
                    async move { Ok::<_, Infallible>(page) }
                });
                let stream = hyper_util::rt::TokioIo::new(stream);
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(Duration::from_secs(HTTP_HEADER_SECS))
                    // A client that asks again and reads nothing would keep its place for ever.
                    .keep_alive(false)
                    .serve_connection(stream, service);
                // The task ends with its connection.
                tokio::task::spawn_local(async move {
                    let _place = place;
                    timeout(CONNECTION_TIME, connection).await.ok()
                });
            }
            Err(error) => crate::net::rest_after(&error).await,
        }
    }
}

fn page<B>(
    request: &Request<B>,
    (door, reach): (&Door, Reach),
    metrics: &Metrics,
) -> Response<Full<Bytes>> {
    let (uri, headers) = (request.uri(), request.headers());
    let known = door.check_host(reach, request.version(), uri, headers);
    if let Err(refusal) = known {
        return refusal
            .response(request.headers())
            .map(|body| Full::new(Bytes::from(body.into_bytes())));
    }
    let (status, text) = match request.uri().path() {
        "/metrics" => (StatusCode::OK, metrics.render()),
        "/ready" => ready(metrics),
        _ => (
            StatusCode::NOT_FOUND,
            "The numbers are at /metrics; /ready says whether all hosts can take calls.\n"
                .to_owned(),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}

fn ready(metrics: &Metrics) -> (StatusCode, String) {
    match metrics.hosts_unready.get() {
        0 => (StatusCode::OK, "ready\n".to_owned()),
        hosts => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!(
                "{hosts} of the hosts can't take calls: held up by a turn, cut off, or shutting down\n"
            ),
        ),
    }
}
