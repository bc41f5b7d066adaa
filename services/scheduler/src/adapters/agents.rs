//! Channels to host-agents, kept warm, and the calls made on them. Every call
//! is bounded in time; nothing is retried here.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::hostagent::v1::host_agent_service_client::HostAgentServiceClient;
use rpc::{Role, TlsIdentity};
use tonic::transport::Channel;
use tonic::{Code, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// Longest wait for a connection made ahead.
const WARM_TIMEOUT: Duration = Duration::from_secs(5);
/// Most channels kept; beyond it, channels start anew (a fleet has 10,000 hosts).
const CHANNELS_MAX: usize = 20_000;

/// What to do about a failed call to a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The host may not have been reached: the same call again is safe.
    Again,
    /// The host has no room.
    Full,
    /// The host does not hold the microVM, or holds a newer placement.
    NotHere,
    /// The host says no.
    Final,
}

/// Sorts a host's answer.
#[must_use]
pub fn classify(status: &Status) -> Failure {
    use api::errors::reason;
    let named = api::errors::reason_of(status);
    match named.as_deref() {
        Some(reason::NOT_HERE | reason::STALE_GENERATION) => return Failure::NotHere,
        Some(reason::STORE_UNAVAILABLE) => return Failure::Again,
        Some(reason::DISK_FULL) => return Failure::Full,
        _ => {}
    }
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted => Failure::Again,
        // A connection that broke in the middle shows as UNKNOWN without details.
        Code::Unknown if named.is_none() => Failure::Again,
        Code::ResourceExhausted => Failure::Full,
        Code::NotFound => Failure::NotHere,
        _ => Failure::Final,
    }
}

/// Channels to hosts by address.
#[derive(Debug)]
pub struct Agents {
    identity: Arc<TlsIdentity>,
    channels: Mutex<HashMap<String, Channel>>,
}

impl Agents {
    /// No channels yet.
    #[must_use]
    pub fn new(identity: Arc<TlsIdentity>) -> Self {
        Self { identity, channels: Mutex::new(HashMap::new()) }
    }

    /// A client for the host at `address`.
    ///
    /// # Errors
    /// INVALID_ARGUMENT when the address is malformed.
    pub fn client(&self, address: &str) -> Result<HostAgentServiceClient<Channel>, Status> {
        Ok(HostAgentServiceClient::new(self.channel(address)?))
    }

    /// Connects ahead of the first call, so that a launch does not pay for the
    /// handshake. Failing is fine: the first call connects then.
    pub async fn warm(&self, address: &str) {
        if let Ok(channel) = self.channel(address) {
            let check = HealthCheckRequest { service: String::new() };
            let mut health = HealthClient::new(channel);
            let _ = tokio::time::timeout(WARM_TIMEOUT, health.check(check)).await;
        }
    }

    fn channel(&self, address: &str) -> Result<Channel, Status> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        if channels.len() >= CHANNELS_MAX {
            channels.clear();
        }
        let channel = rpc::channel(&self.identity, address, Role::HostAgent)?;
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }
}

/// Waits for a host's answer at most `timeout`.
///
/// # Errors
/// The host's status, or DEADLINE_EXCEEDED.
pub async fn bounded<T>(
    timeout: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(timeout, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("the host did not answer in time")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::errors::{reason, status};

    #[test]
    fn failures_by_code_and_reason() {
        for (answer, failure) in [
            (Status::unavailable("down"), Failure::Again),
            (Status::unknown("transport error"), Failure::Again),
            (status(Code::Unavailable, reason::STORE_UNAVAILABLE, "s3", &[]), Failure::Again),
            (status(Code::ResourceExhausted, reason::INSUFFICIENT_CAPACITY, "full", &[]), Failure::Full),
            (status(Code::FailedPrecondition, reason::STALE_GENERATION, "old", &[]), Failure::NotHere),
            (status(Code::NotFound, reason::NOT_HERE, "no", &[]), Failure::NotHere),
            (status(Code::DataLoss, reason::CORRUPT_OBJECT, "bad", &[]), Failure::Final),
            (status(Code::FailedPrecondition, reason::HOOK_FAILED, "hook", &[]), Failure::Final),
        ] {
            assert_eq!(classify(&answer), failure, "{answer:?}");
        }
    }
}
