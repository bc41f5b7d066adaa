//! The client side.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use api::errors::{self, reason};

use crate::connector::Connector;
use crate::layer::{REQUEST_ID, RequestId};
use crate::{Identity, TlsIdentity};

/// A peer that stands still, or that a network has lost, is noticed after the sum of the two; its calls then go to
/// another replica.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Largest headers of an answer, in bytes: an error's details travel there.
/// Beyond it the connection ends, and every other call on it.
const HEADERS_MAX: u32 = 64 * 1024;

/// A channel to `address` ("host:port") that connects when first used, reconnects by itself, with the certificate that
/// it has by then, and accepts only the server that is called: any of a role, or the host-agent of one host.
/// [`WrongPeer::behind`](crate::WrongPeer::behind) tells when somebody else answered.
pub fn channel(
    identity: &Arc<TlsIdentity>,
    address: &str,
    server: impl Into<Identity>,
) -> Result<Channel, Status> {
    let called = server.into();
    let malformed = |error: &dyn std::fmt::Display| {
        errors::status(
            tonic::Code::InvalidArgument,
            reason::INVALID_ARGUMENT,
            format!("cannot connect to '{address}': {error}"),
            &[("address", address)],
        )
    };
    let name = ServerName::try_from(called.role().dns_name()).map_err(|error| malformed(&error))?;
    // TLS is the connector's, so the URI has none.
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| malformed(&error))?;
    Ok(endpoint
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .http2_max_header_list_size(HEADERS_MAX)
        .connect_with_connector_lazy(Connector { identity: Arc::clone(identity), called, name }))
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
