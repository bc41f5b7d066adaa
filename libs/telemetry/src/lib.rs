//! What a process tells about itself: log lines on standard error, spans to an
//! OTLP collector when one is configured, and `/metrics` for Prometheus.
//!
//! [`init`] is called once, by [`run_service`], which every service's `main`
//! calls; dropping the [`Guard`] flushes what is still buffered.

mod context;
mod metrics;
mod service;

use std::io::IsTerminal as _;
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use prometheus_client::registry::Registry;
use settings::TelemetrySettings;
use tracing::Metadata;
use tracing_subscriber::filter::{FilterExt as _, FilterFn, LevelFilter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

pub use context::{TRACEPARENT, current_traceparent, set_parent};
pub use metrics::{Part, register, serve_metrics};
pub use service::{run_service, shutdown_on_signal};

/// Why telemetry could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("telemetry.log_filter '{filter}' is not a filter")]
    Filter { filter: String, source: tracing_subscriber::filter::ParseError },
    #[error("telemetry.otlp_endpoint cannot be used: {message}")]
    Otlp { message: String },
    #[error("telemetry.metrics_address {address} cannot be used")]
    Metrics { address: std::net::SocketAddr, source: std::io::Error },
}

/// Keeps telemetry alive; dropping it flushes buffered spans.
pub struct Guard {
    provider: Option<SdkTracerProvider>,
    registry: Arc<Mutex<Registry>>,
}

impl Guard {
    /// The process's metrics.
    #[must_use]
    pub fn registry(&self) -> Arc<Mutex<Registry>> {
        Arc::clone(&self.registry)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(provider) = self.provider.take()
            && let Err(error) = provider.shutdown()
        {
            eprintln!("telemetry: spans may be lost: {error}");
        }
    }
}

/// Starts logs, traces and metrics of `service` ("scheduler"). Needs a tokio runtime.
pub fn init<'a>(
    service: &'static str,
    settings: &'a TelemetrySettings,
) -> BoxFuture<'a, Result<Guard, Error>> {
    Box::pin(async move {
        let filter = || {
            EnvFilter::try_new(&settings.log_filter)
                .map_err(|source| Error::Filter { filter: settings.log_filter.clone(), source })
        };
        let provider =
            settings.otlp_endpoint.as_deref().map(|url| tracer_provider(service, url)).transpose()?;
        opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_filter(filter()?);
        let spans = match &provider {
            Some(provider) => Some(
                tracing_opentelemetry::layer()
                    .with_tracer(provider.tracer(service))
                    .with_filter(filter()?.or(requests())),
            ),
            None => None,
        };
        // A second subscriber in one process (tests) is not an error worth failing for.
        let _ = tracing_subscriber::registry().with(lines).with(spans).try_init();
        let registry = Arc::new(Mutex::new(Registry::with_prefix("torpor")));
        if let Some(address) = settings.metrics_address {
            serve_metrics(address, Arc::clone(&registry))
                .await
                .map_err(|source| Error::Metrics { address, source })?;
        }
        Ok(Guard { provider, registry })
    })
}

/// The spans of single requests. They are DEBUG, so that nobody writes their fields down for log lines that never come.
fn requests() -> FilterFn {
    FilterFn::new(
        (|metadata| metadata.is_span() && metadata.name() == "request") as fn(&Metadata<'_>) -> bool,
    )
    .with_max_level_hint(LevelFilter::DEBUG)
}

fn tracer_provider(service: &'static str, endpoint: &str) -> Result<SdkTracerProvider, Error> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .map_err(|error| Error::Otlp { message: error.to_string() })?;
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(Resource::builder().with_service_name(format!("torpor-{service}")).build())
        .build())
}
