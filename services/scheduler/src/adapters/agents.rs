//! Channels to host-agents, kept warm, and the calls made on them. Every call
//! is bounded in time; nothing is retried here.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use api::hostagent::v1::host_agent_service_client::HostAgentServiceClient;
use model::HostId;
use rpc::{Dialer, Identity, Transport, WrongPeer};
use tonic::{Code, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::refusal::Refusal;

/// Longest wait for a connection made ahead.
const WARM_TIMEOUT: Duration = Duration::from_secs(5);
/// Most channels kept; beyond it, channels start anew (a fleet has 10,000 hosts).
const CHANNELS_MAX: usize = 20_000;

/// What a host's error means for the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// The host may not have been reached: the same call again is safe.
    Again,
    Full,
    /// The host does not hold the microVM, or holds a newer placement.
    NotHere,
    Final,
}

pub fn classify(status: &Status) -> ErrorClass {
    use api::errors::reason;
    let named = api::errors::reason_of(status);
    match named.as_deref() {
        Some(reason::NOT_HERE | reason::STALE_GENERATION) => return ErrorClass::NotHere,
        // Of a host only when another one answered at its address: it was not reached, and may come back elsewhere.
        Some(reason::STORE_UNAVAILABLE | reason::PERMISSION_DENIED) => return ErrorClass::Again,
        Some(reason::DISK_FULL) => return ErrorClass::Full,
        _ => {}
    }
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted => ErrorClass::Again,
        // A connection that broke in the middle shows as UNKNOWN without details.
        Code::Unknown if named.is_none() => ErrorClass::Again,
        Code::ResourceExhausted => ErrorClass::Full,
        Code::NotFound => ErrorClass::NotHere,
        _ => ErrorClass::Final,
    }
}

/// Whether a host has had another lease than the command named.
pub fn is_lease_changed(status: &Status) -> bool {
    api::errors::reason_of(status).as_deref() == Some(api::errors::reason::LEASE_CHANGED)
}

/// A host's error as a refusal: passed on, but a host that was not reached is away.
pub fn refusal_of(host: &HostId, status: Status) -> Refusal {
    match classify(&status) {
        ErrorClass::Again if api::errors::reason_of(&status).is_none() => {
            Refusal::away(host, "it did not answer")
        }
        _ => Refusal::Host(Box::new(status)),
    }
}

#[derive(Debug)]
pub struct Agents {
    dialer: Dialer,
    /// By host, with the address they lead to.
    channels: Mutex<HashMap<HostId, (String, Transport)>>,
}

impl Agents {
    pub fn new(dialer: impl Into<Dialer>) -> Self {
        Self { dialer: dialer.into(), channels: Mutex::new(HashMap::new()) }
    }

    /// A client for a host, which is at `address`. Whoever else is there is not spoken to.
    pub fn client(&self, host: &HostId, address: &str) -> Result<HostAgentServiceClient<Transport>, Status> {
        Ok(HostAgentServiceClient::new(self.channel(host, address)?))
    }

    /// Connects ahead of the first call, so that a launch does not pay for the
    /// handshake. Failing is fine: the first call connects then.
    pub async fn warm(&self, host: &HostId, address: &str) {
        if let Ok(channel) = self.channel(host, address) {
            let check = HealthCheckRequest { service: String::new() };
            let mut health = HealthClient::new(channel);
            let _ = tokio::time::timeout(WARM_TIMEOUT, health.check(check)).await;
        }
    }

    fn channel(&self, host: &HostId, address: &str) -> Result<Transport, Status> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, channel)) = channels.get(host).filter(|(led, _)| led == address) {
            return Ok(channel.clone());
        }
        if channels.len() >= CHANNELS_MAX {
            channels.clear();
        }
        let channel = self.dialer.dial(address, Identity::of_host(host.as_str()))?;
        channels.insert(host.clone(), (address.to_owned(), channel.clone()));
        Ok(channel)
    }
}

/// Waits for a host's answer at most `timeout`.
pub async fn bounded<T>(
    timeout: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(timeout, call).await {
        Ok(answer) => {
            answer.map(Response::into_inner).map_err(|status| WrongPeer::behind(&status).unwrap_or(status))
        }
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
            (Status::unavailable("down"), ErrorClass::Again),
            (Status::unknown("transport error"), ErrorClass::Again),
            (status(Code::Unavailable, reason::STORE_UNAVAILABLE, "s3", &[]), ErrorClass::Again),
            (status(Code::PermissionDenied, reason::PERMISSION_DENIED, "other", &[]), ErrorClass::Again),
            (status(Code::ResourceExhausted, reason::INSUFFICIENT_CAPACITY, "full", &[]), ErrorClass::Full),
            (status(Code::FailedPrecondition, reason::STALE_GENERATION, "old", &[]), ErrorClass::NotHere),
            (status(Code::NotFound, reason::NOT_HERE, "no", &[]), ErrorClass::NotHere),
            (status(Code::DataLoss, reason::CORRUPT_OBJECT, "bad", &[]), ErrorClass::Final),
            (status(Code::FailedPrecondition, reason::HOOK_FAILED, "hook", &[]), ErrorClass::Final),
        ] {
            assert_eq!(classify(&answer), failure, "{answer:?}");
        }
    }
}
