//! The HTTP side: probes, metrics, and a page for people. It reads only, and shows no job file.

mod gauges;
mod page;

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use pleach_base::shutdown::Shutdown;
use tokio::net::TcpListener;

use crate::actor::{Overview, Seat};

/// An actor that takes longer than this to answer is not ready.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Clone)]
struct Shared {
    actor: Seat,
    /// Counters, which the actor moves; gauges are made for each answer.
    counters: PrometheusHandle,
    shutdown: Shutdown,
}

/// Serves until a shutdown is requested.
pub(crate) async fn serve(listener: TcpListener, actor: Seat, counters: PrometheusHandle, shutdown: Shutdown) {
    let app = Router::new()
        .route("/", get(page))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Shared { actor, counters, shutdown: shutdown.clone() });
    let stop = async move { shutdown.requested().await };
    if let Err(error) = axum::serve(listener, app).with_graceful_shutdown(stop).await {
        tracing::error!(%error, "the HTTP side stopped");
    }
}

async fn overview(shared: &Shared) -> Result<Overview, (StatusCode, &'static str)> {
    if shared.shutdown.is_requested() {
        return Err((StatusCode::SERVICE_UNAVAILABLE, "going down\n"));
    }
    let asked = tokio::time::timeout(PATIENCE, shared.actor.ask(|actor| Ok(actor.overview()))).await;
    match asked {
        Ok(Ok(overview)) => Ok(overview),
        Ok(Err(_)) => Err((StatusCode::SERVICE_UNAVAILABLE, "going down\n")),
        Err(_) => Err((StatusCode::SERVICE_UNAVAILABLE, "the state is busy\n")),
    }
}

async fn readyz(State(shared): State<Shared>) -> Response {
    overview(&shared).await.map_or_else(IntoResponse::into_response, |_| "ready\n".into_response())
}

async fn metrics(State(shared): State<Shared>) -> Response {
    match overview(&shared).await {
        Ok(overview) => {
            let text = shared.counters.render() + &gauges::render(&overview);
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
        }
        Err(refused) => refused.into_response(),
    }
}

async fn page(State(shared): State<Shared>) -> Response {
    overview(&shared)
        .await
        .map_or_else(IntoResponse::into_response, |overview| Html(page::render(&overview)).into_response())
}
