//! A microVM's record: what was asked for, where it was placed, what was seen.
//!
//! ```text
//! PENDING -> RUNNING -> SUSPENDING -> SUSPENDED -> RUNNING ... -> TERMINATING -> TERMINATED
//! ```
//!
//! The table is `model::state`; this adds what goes with a transition. Intent is durable before a host is
//! asked: [`Intent::Live`] with the placement of a launch, [`Intent::End`] with the reason of an end.
//! Suspends and wakes need no intent, the host reports what became of them.

use std::fmt;
use std::time::{Duration, SystemTime};

use api::common::v1::{AwakeWhile, Hooks, Logging, Metering};
use api::hostagent::v1::EgressPolicy;
use api::image::v1::SnapshotRef;
use api::microvm::v1::{LastTransition, SnapshotCopies};
use model::state::{IllegalTransition, MicrovmEvent, MicrovmState};
use model::{ConnectorArn, HostId, ImageArn, ManagedConnector, MicrovmId, VersionNumber};

use super::hosts::Holding;
use super::idempotency::TokenUse;

pub const REASON_SUCCESS: &str = "Success.";
/// Reason of an end by the maximum duration or the suspended window.
pub const REASON_LIFETIME: &str = "MicroVM exceeded maximum lifetime.";

/// When a microVM sleeps and what wakes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdlePolicy {
    /// Time without traffic after which it is suspended.
    pub max_idle: Duration,
    pub suspended: Duration,
    pub auto_resume: bool,
    /// What else keeps it awake, for its host to look at.
    pub awake_while: Option<AwakeWhile>,
}

/// The run hook's payload, which is nobody's business: never printed.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Payload(pub String);

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({} bytes)", self.0.len())
    }
}

/// What was asked for; fixed for life.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    pub image: ImageArn,
    pub version: VersionNumber,
    pub snapshot: SnapshotRef,
    pub hooks: Option<Hooks>,
    /// Whether its connections end at a suspend; otherwise they sleep.
    pub end_connections: bool,
    /// Memory the host accounts for, MiB.
    pub baseline_mib: u32,
    /// First label of the endpoint's name.
    pub endpoint_label: String,
    /// Role the app acts as; may be empty.
    pub execution_role_arn: String,
    /// KMS key as the caller named it; may be empty. Recorded, not used.
    pub kms_key_identifier: String,
    /// When it sleeps; absent means never by itself.
    pub idle_policy: Option<IdlePolicy>,
    pub maximum_duration: Duration,
    /// How often its host makes a recovery point while it runs.
    pub checkpoint_interval: Option<Duration>,
    /// For the run hook; dropped once it runs.
    pub payload: Payload,
    pub logging: Option<Logging>,
    /// Ingress connectors as they were named.
    pub ingress: Vec<ConnectorArn>,
    /// Egress connectors as they were named.
    pub egress: Vec<ConnectorArn>,
    /// What the customer's connectors among them let out, as they were at the
    /// launch; absent when there are none.
    pub egress_policy: Option<EgressPolicy>,
}

impl Spec {
    /// Whether its ingress connectors let requests to its endpoint in.
    pub fn lets_requests_in(&self) -> bool {
        !names(&self.ingress, ManagedConnector::NoIngress)
    }

    /// Whether its ingress connectors let shells in.
    pub fn lets_shells_in(&self) -> bool {
        names(&self.ingress, ManagedConnector::ShellIngress) && !self.mixes_ingress()
    }

    /// Whether ALL_INGRESS stands beside other connectors: a launch takes that, a shell does not.
    pub fn mixes_ingress(&self) -> bool {
        names(&self.ingress, ManagedConnector::AllIngress) && self.ingress.len() > 1
    }

    /// Whether the platform's connector to everywhere is among its egress connectors.
    pub fn reaches_the_internet(&self) -> bool {
        names(&self.egress, ManagedConnector::InternetEgress)
    }
}

fn names(connectors: &[ConnectorArn], wanted: ManagedConnector) -> bool {
    connectors.iter().any(|arn| arn.managed_connector() == Some(wanted))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    Live,
    /// End; the state reason says why.
    End,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    pub host: HostId,
    /// Fencing number, raised at every placement.
    pub generation: u64,
    pub time: SystemTime,
    /// The host's platform fingerprint then: its snapshots start only on the same.
    pub fingerprint: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Microvm {
    pub id: MicrovmId,
    pub spec: Spec,
    /// The client token it was launched with, if the caller gave one.
    pub token: Option<TokenUse>,
    pub intent: Intent,
    pub placement: Placement,
    pub state: MicrovmState,
    /// Why; empty when there is nothing to say.
    pub state_reason: String,
    /// When the state began.
    pub state_time: SystemTime,
    /// When it was accepted.
    pub start_time: SystemTime,
    pub terminate_time: Option<SystemTime>,
    /// Last observation of this generation that was taken in.
    pub observation: u64,
    pub snapshot: Option<SnapshotCopies>,
    /// What it used so far; written with the next change only.
    pub metering: Option<Metering>,
    /// What of that was used before its present placement: each host counts from zero.
    pub metering_before: Option<Metering>,
    /// What of `metering` is in the totals of the days.
    pub metering_counted: Option<Metering>,
    pub last_transition: Option<LastTransition>,
    /// How often its tokens were revoked; a token of fewer opens nothing.
    pub token_revocations: u64,
    /// How it went back to a recovery point last.
    pub recovery: Option<Recovery>,
}

/// A microVM went back to a recovery point, because the host it ran on, or its engine there, was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    pub host: HostId,
    pub time: SystemTime,
    /// When the point had been made.
    pub point_time: SystemTime,
}

impl Microvm {
    /// Applies an event: state, reason and, when the state changed, its time.
    pub fn apply_event(
        &mut self,
        event: MicrovmEvent,
        reason: &str,
        at: SystemTime,
    ) -> Result<(), IllegalTransition> {
        let next = self.state.next(event)?;
        if next != self.state {
            self.state = next;
            self.state_time = at;
        }
        reason.clone_into(&mut self.state_reason);
        if next != MicrovmState::Pending {
            self.spec.payload = Payload::default();
        }
        if next == MicrovmState::Terminated && self.terminate_time.is_none() {
            self.terminate_time = Some(at);
            self.intent = Intent::End;
            self.snapshot = None;
        }
        Ok(())
    }

    /// Moves it to another host with the next generation. Observations of the
    /// new generation count anew, and the old host's copy is out of play.
    pub fn place(&mut self, host: HostId, fingerprint: String, now: SystemTime) {
        let generation = self.placement.generation + 1;
        self.placement = Placement { host, generation, time: now, fingerprint };
        self.observation = 0;
        self.metering_before = self.metering;
        if let Some(snapshot) = &mut self.snapshot {
            snapshot.local = false;
        }
    }

    /// What it holds on its host; `None` while it holds nothing.
    pub fn holding(&self) -> Option<Holding> {
        use MicrovmState as S;
        match self.state {
            S::Pending | S::Running | S::Suspending | S::Terminating => Some(Holding {
                memory_mib: u64::from(self.spec.baseline_mib),
                disk_bytes: self.spec.snapshot.disk_size_bytes,
            }),
            S::Suspended | S::Terminated => None,
        }
    }

    /// Whether it has ended or is about to.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, MicrovmState::Terminating | MicrovmState::Terminated)
    }

    /// When it must have ended, whatever its state.
    pub fn deadline(&self) -> SystemTime {
        self.start_time + self.spec.maximum_duration
    }

    /// Whether it has a recovery point that another host can go on from.
    pub fn has_recovery_point(&self) -> bool {
        let asked_for = self.snapshot.as_ref().is_some_and(|copies| copies.goes_back);
        (self.spec.checkpoint_interval.is_some() || asked_for) && self.has_remote_copy()
    }

    /// What ran on a lost host becomes what it was at its recovery point, asleep until it is woken elsewhere.
    pub fn go_back(&mut self, lost: &str, now: SystemTime) -> Result<(), IllegalTransition> {
        let point_time = made_at(self.snapshot.as_ref()).unwrap_or(now);
        let reason = model::recovery::went_back(lost, now.duration_since(point_time).unwrap_or_default());
        self.apply_event(MicrovmEvent::SuspendDone, &reason, now)?;
        self.recovery = Some(Recovery { host: self.placement.host.clone(), time: now, point_time });
        if let Some(copies) = &mut self.snapshot {
            copies.local = false;
        }
        Ok(())
    }

    /// Whether S3 holds its latest snapshot.
    pub fn has_remote_copy(&self) -> bool {
        self.snapshot.as_ref().is_some_and(|copies| copies.remote)
    }
}

/// When a snapshot was made, by its host's clock.
pub(super) fn made_at(copies: Option<&SnapshotCopies>) -> Option<SystemTime> {
    api::system_time(copies?.time.as_ref()?).ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A PENDING record on host "h1", for tests of this crate.
    pub(crate) fn sample(number: u128, start: SystemTime) -> Microvm {
        Microvm {
            id: MicrovmId::from_uuid(uuid::Uuid::from_u128(number)),
            spec: Spec {
                image: "arn:aws:lambda:us-east-1:000000000000:microvm-image:app".parse().unwrap(),
                version: VersionNumber::FIRST,
                snapshot: SnapshotRef {
                    manifest_key: "m".into(),
                    engine: "qemu".into(),
                    ..Default::default()
                },
                hooks: None,
                end_connections: false,
                baseline_mib: 512,
                endpoint_label: "label".into(),
                execution_role_arn: String::new(),
                kms_key_identifier: "alias/app".into(),
                idle_policy: None,
                maximum_duration: Duration::from_secs(28_800),
                checkpoint_interval: None,
                payload: Payload("secret".into()),
                logging: None,
                ingress: vec![],
                egress: vec![],
                egress_policy: None,
            },
            token: None,
            intent: Intent::Live,
            placement: Placement {
                host: "h1".parse().unwrap(),
                generation: 1,
                time: start,
                fingerprint: "f".into(),
            },
            state: MicrovmState::Pending,
            state_reason: String::new(),
            state_time: start,
            start_time: start,
            terminate_time: None,
            observation: 0,
            snapshot: None,
            metering: None,
            metering_before: None,
            metering_counted: None,
            last_transition: None,
            token_revocations: 0,
            recovery: None,
        }
    }

    #[test]
    fn ingress_by_connectors() {
        use ManagedConnector::{AllIngress, HttpIngress, NoIngress, ShellIngress};
        for (ingress, http, shell, mixed) in [
            (&[HttpIngress][..], true, false, false),
            (&[AllIngress], true, false, false),
            (&[NoIngress], false, false, false),
            (&[ShellIngress], true, true, false),
            (&[HttpIngress, ShellIngress], true, true, false),
            (&[AllIngress, ShellIngress], true, false, true),
        ] {
            let mut spec = sample(1, SystemTime::UNIX_EPOCH).spec;
            spec.ingress = ingress.iter().map(|one| ConnectorArn::managed("us-east-1", *one)).collect();
            let found = (spec.lets_requests_in(), spec.lets_shells_in(), spec.mixes_ingress());
            assert_eq!(found, (http, shell, mixed), "{ingress:?}");
        }
    }

    #[test]
    fn the_payload_is_dropped_once_it_runs_and_never_printed() {
        let start = SystemTime::UNIX_EPOCH;
        let mut microvm = sample(1, start);
        assert!(!format!("{microvm:?}").contains("secret"));
        microvm.apply_event(MicrovmEvent::Started, "", start).unwrap();
        assert_eq!(microvm.spec.payload, Payload::default());
    }

    #[test]
    fn an_end_is_timed_once_and_a_refused_event_changes_nothing() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let mut microvm = sample(1, at(0));
        let before = microvm.clone();
        assert!(microvm.apply_event(MicrovmEvent::WakeFailed, "x", at(1)).is_err());
        assert_eq!(microvm, before);
        microvm.apply_event(MicrovmEvent::Ended, "one", at(2)).unwrap();
        microvm.apply_event(MicrovmEvent::Ended, "one", at(3)).unwrap();
        assert_eq!((microvm.terminate_time, microvm.state_time), (Some(at(2)), at(2)));
        assert_eq!(microvm.holding(), None);
    }
}
