//! Reaching the guest-agent after a boot or a restore, and what it is told about the clone it now is.

use std::time::{Duration, Instant, SystemTime};

use api::guest::v1::{CallHookRequest, HookKind, RepairIdentityRequest};
use backoff::Backoff;
use guest_link::{Event, Link};
use model::ids::MicrovmId;
use rand::TryRng as _;
use tokio::sync::mpsc;

use super::gate::control_address;
use crate::domain::HostError;
use crate::domain::hooks::{self, Answer, Hook, HookName};

/// Entropy given to each restored guest, in bytes: 256 from the system.
const ENTROPY_BYTES: usize = 256;
/// First attempt to connect; a guest that has just been resumed answers within it.
const ATTEMPT_MIN: Duration = Duration::from_millis(250);
const ATTEMPT_MAX: Duration = Duration::from_secs(1);
/// Pauses after refusals: the guest-agent is not listening yet. They grow, because every attempt takes a turn of the one
/// thread that opens sockets in slots, and a guest may refuse for as long as it likes.
const REFUSED_PAUSES: Backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(100));

/// A link and what comes through it unasked.
pub struct GuestConnection {
    pub link: Link,
    /// Log lines, the app's end, the link's end.
    pub events: mpsc::Receiver<Event>,
}

/// Connects to the guest-agent, trying at once and again until `deadline`.
pub async fn connect_guest(dialer: &slot::Dialer, timeout: Duration) -> Result<GuestConnection, HostError> {
    let deadline = Instant::now() + timeout;
    let mut attempt = ATTEMPT_MIN;
    let mut pauses = REFUSED_PAUSES;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(HostError::Guest {
                message: format!("the guest-agent did not answer within {} seconds", timeout.as_secs()),
                outcome: "no_answer",
                exit_code: None,
            });
        }
        match dialer.connect(control_address(), attempt.min(left)).await {
            Ok(stream) => {
                let (link, events) = Link::start(stream);
                return Ok(GuestConnection { link, events });
            }
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {
                attempt = (attempt * 2).min(ATTEMPT_MAX)
            }
            Err(_) => pauses.pause().await,
        }
    }
}

/// What a guest is being restored for, which says what of it is old.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restore {
    /// A launch: it gets a machine id of its own, and nothing that was open when its image was made.
    First,
    /// A wake that carries its host's connections across.
    Wake,
    /// A wake from a recovery point: nothing that was open then has its other end any more.
    Recovery,
}

/// What a clone is told about itself.
pub fn repair_request(
    id: &MicrovmId,
    restore_count: u64,
    restore: Restore,
) -> Result<RepairIdentityRequest, HostError> {
    let mut entropy = vec![0u8; ENTROPY_BYTES];
    rand::rngs::SysRng
        .try_fill_bytes(&mut entropy)
        .map_err(|error| HostError::Internal(format!("no entropy from the system: {error}")))?;
    Ok(RepairIdentityRequest {
        entropy,
        wall_clock: Some(api::timestamp(SystemTime::now())),
        host_name: host_name(id),
        machine_id: if restore == Restore::First { id.uuid().simple().to_string() } else { String::new() },
        microvm_id: id.to_string(),
        restore_count,
        credentials: Vec::new(),
        connections_lost: restore == Restore::Recovery,
    })
}

/// Host name of a microVM: short, and told apart by a glance.
pub fn host_name(id: &MicrovmId) -> String {
    let digits = id.uuid().simple().to_string();
    format!("microvm-{}", &digits[..12])
}

/// Turns a link's error into what the caller is told.
pub fn link_error(error: &guest_link::Error) -> HostError {
    HostError::Guest { message: error.to_string(), outcome: "no_answer", exit_code: None }
}

/// Calls a runtime hook and judges its answer.
pub async fn call_hook(link: &Link, hook: Hook, body: String) -> Result<(), HostError> {
    let kind = match hook.name {
        HookName::Ready => HookKind::Ready,
        HookName::Validate => HookKind::Validate,
        HookName::Run => HookKind::Run,
        HookName::Resume => HookKind::Resume,
        HookName::Suspend => HookKind::Suspend,
        HookName::Terminate => HookKind::Terminate,
    };
    let request = CallHookRequest {
        kind: kind.into(),
        port: hook.port,
        timeout: Some(api::duration_proto(hook.timeout)),
        body,
    };
    let answer = link.call_hook(request).await.map_err(|error| link_error(&error))?;
    let answer = Answer { http_status: answer.http_status, timed_out: answer.timed_out, error: answer.error };
    hooks::decide(hook, &answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_are_told_apart() {
        let id: MicrovmId = "microvm-0123abcd-0000-4000-8000-000000000000".parse().unwrap();
        let first = repair_request(&id, 1, Restore::First).unwrap();
        let second = repair_request(&id, 2, Restore::Wake).unwrap();
        assert_eq!(first.host_name, "microvm-0123abcd0000");
        assert_eq!(first.machine_id, "0123abcd000040008000000000000000");
        assert_eq!(second.machine_id, "");
        assert_eq!(first.entropy.len(), ENTROPY_BYTES);
        assert_ne!(first.entropy, second.entropy);
    }
}
