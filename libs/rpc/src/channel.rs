//! The client side.

use std::time::Duration;

use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use api::errors::{self, reason};

use crate::layer::{REQUEST_ID, RequestId};
use crate::{Role, TlsIdentity};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest headers of an answer, in bytes: an error's details travel there.
/// Beyond it the connection ends, and every other call on it.
const HEADERS_MAX: u32 = 64 * 1024;

/// A channel to `address` ("host:port") that connects when first used,
/// reconnects by itself, and accepts only a server with the given role.
pub fn channel(identity: &TlsIdentity, address: &str, server: Role) -> Result<Channel, Status> {
    let malformed = |error: tonic::transport::Error| {
        errors::status(
            tonic::Code::InvalidArgument,
            reason::INVALID_ARGUMENT,
            format!("cannot connect to '{address}': {error}"),
            &[("address", address)],
        )
    };
    Ok(Endpoint::from_shared(format!("https://{address}"))
        .map_err(malformed)?
        .tls_config(identity.tonic_client(server))
        .map_err(malformed)?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .http2_max_header_list_size(HEADERS_MAX)
        .connect_lazy())
}

/// Wraps a message for an outgoing call: the current trace context goes along,
/// and the request id of the call being served, if there is one.
#[must_use]
pub fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(value) = telemetry::current_traceparent().and_then(|text| MetadataValue::try_from(text).ok())
    {
        request.metadata_mut().insert(telemetry::TRACEPARENT, value);
    }
    if let Some(value) = RequestId::current().and_then(|id| MetadataValue::try_from(id.as_str()).ok()) {
        request.metadata_mut().insert(REQUEST_ID, value);
    }
    request
}
