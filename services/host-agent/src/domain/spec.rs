//! What a microVM is made of: the wire's `MicrovmSpec` with everything checked that the host relies on.
//!
//! There is one way in, for a command at the door and for a journal after a restart alike, so that nothing behind it
//! looks for a field that may be missing.

use std::time::{Duration, SystemTime};

use api::common::v1::IdlePolicy as WireIdlePolicy;
use api::hostagent::v1 as wire;
use model::ids::MicrovmId;
use model::limits::{CHECKPOINT_INTERVAL_MAX, CHECKPOINT_INTERVAL_MIN, CPU_PERCENT};
use prost::Message as _;

use super::error::HostError;
use super::hooks::Hooks;
use super::idle::{AwakeWhile, IdlePolicy};

/// A field that breaks a rule, and the rule.
pub type Violations = Vec<(String, String)>;

#[derive(Clone)]
pub struct Spec {
    pub id: MicrovmId,
    pub image_name: String,
    pub image_version: String,
    pub snapshot: ImageSnapshot,
    pub hooks: Hooks,
    pub idle: IdlePolicy,
    /// Whether its connections end at a suspend; otherwise they sleep with it.
    pub end_connections: bool,
    pub run_hook_payload: String,
    pub ingress: Ingress,
    pub egress: slot::Egress,
    /// When it must have ended.
    pub deadline: Option<SystemTime>,
    /// How often a recovery point is made while it runs.
    pub checkpoint_interval: Option<Duration>,
    encoded: Vec<u8>,
}

/// What may reach a microVM from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ingress {
    pub http: bool,
    pub shell: bool,
}

impl Ingress {
    /// True when no tunnel may be opened: requests and shells both come through one.
    pub fn is_closed(self) -> bool {
        !self.http && !self.shell
    }
}

/// The snapshot that every microVM of an image's version starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSnapshot {
    pub manifest_key: String,
    /// 64 lower-case hex digits, so that it can name a directory.
    pub manifest_digest: String,
    pub guest_bundle_version: String,
    pub memory_mib: u32,
    pub vcpu_count: u32,
    pub disk_size_bytes: u64,
}

impl ImageSnapshot {
    /// Virtual CPUs, and guest memory in MiB.
    pub fn size(&self) -> (u32, u32) {
        (self.vcpu_count, self.memory_mib)
    }
}

impl Spec {
    /// Checks a spec that arrives with a command at `now`, and sets the end of its life on this host's clock.
    pub fn from_command(spec: Option<wire::MicrovmSpec>, now: SystemTime) -> Result<Self, Violations> {
        let Some(mut spec) = spec else { return Self::from_wire(None) };
        if let Some(left) = spec.life_left.take() {
            let left = api::duration(&left);
            let left = left.map_err(|_| vec![violation("spec.life_left", "must be a length of time")])?;
            spec.deadline = now.checked_add(left).map(api::timestamp);
        }
        Self::from_wire(Some(spec))
    }

    /// Checks a spec whose end is a time.
    pub fn from_wire(spec: Option<wire::MicrovmSpec>) -> Result<Self, Violations> {
        let Some(spec) = spec else {
            return Err(vec![violation("spec", "is required")]);
        };
        let mut violations = Vec::new();
        let id = spec.microvm_id.parse().map_err(|error: model::ids::IdError| {
            violations.push(violation("spec.microvm_id", error.to_string()));
        });
        let snapshot = image_snapshot(&spec).map_err(|found| violations.push(found));
        let egress = egress(spec.egress.as_ref()).map_err(|found| violations.push(found));
        let ingress = spec.ingress.ok_or_else(|| violations.push(violation("spec.ingress", "is required")));
        let idle = idle(spec.idle_policy.as_ref()).map_err(|found| violations.push(found));
        let deadline = spec.deadline.as_ref().map(api::system_time).transpose().map_err(|_| {
            violations.push(violation("spec.deadline", "must be a point in time"));
        });
        let checkpoints =
            checkpoint_interval(spec.checkpoint_interval.as_ref()).map_err(|found| violations.push(found));
        let (Ok(id), Ok(snapshot), Ok(egress), Ok(ingress), Ok(idle), Ok(deadline), Ok(checkpoint_interval)) =
            (id, snapshot, egress, ingress, idle, deadline, checkpoints)
        else {
            return Err(violations);
        };
        Ok(Self {
            id,
            snapshot,
            hooks: Hooks::from_wire(spec.hooks.as_ref()),
            idle,
            end_connections: spec.end_connections_at_suspend,
            ingress: Ingress { http: ingress.http, shell: ingress.shell },
            egress,
            deadline,
            checkpoint_interval,
            encoded: spec.encode_to_vec(),
            image_name: spec.image_name,
            image_version: spec.image_version,
            run_hook_payload: spec.run_hook_payload,
        })
    }

    /// The wire's form, which the journal keeps.
    pub fn encoded(&self) -> &[u8] {
        &self.encoded
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, HostError> {
        let spec = wire::MicrovmSpec::decode(bytes)
            .map_err(|error| HostError::Internal(format!("the spec in the journal is damaged: {error}")))?;
        Self::from_wire(Some(spec)).map_err(|found| {
            HostError::Internal(format!(
                "the spec in the journal cannot be used: {}",
                HostError::Invalid(found)
            ))
        })
    }
}

fn violation(field: impl Into<String>, rule: impl Into<String>) -> (String, String) {
    (field.into(), rule.into())
}

fn checkpoint_interval(given: Option<&prost_types::Duration>) -> Result<Option<Duration>, (String, String)> {
    const FIELD: &str = "spec.checkpoint_interval";
    let given = given.map(api::duration).transpose().map_err(|_| violation(FIELD, "must be a duration"))?;
    let (least, most) = (CHECKPOINT_INTERVAL_MIN, CHECKPOINT_INTERVAL_MAX);
    if given.is_some_and(|interval| !(least..=most).contains(&interval)) {
        return Err(violation(FIELD, format!("must be {} to {} s", least.as_secs(), most.as_secs())));
    }
    Ok(given)
}

fn idle(policy: Option<&WireIdlePolicy>) -> Result<IdlePolicy, (String, String)> {
    let Some(policy) = policy else { return Ok(IdlePolicy::default()) };
    let limit = policy.max_idle_duration.as_ref().map(api::duration).transpose();
    let limit = limit.map_err(|_| violation("spec.idle_policy.max_idle_duration", "must be a duration"))?;
    let awake = policy.awake_while.unwrap_or_default();
    if awake.cpu_percent.is_some_and(|percent| !CPU_PERCENT.contains(&percent)) {
        return Err(violation("spec.idle_policy.awake_while.cpu_percent", "must be 1 to 100"));
    }
    let awake_while = AwakeWhile { stream: awake.stream, shell: awake.shell, cpu_percent: awake.cpu_percent };
    Ok(IdlePolicy { limit, awake_while })
}

fn image_snapshot(spec: &wire::MicrovmSpec) -> Result<ImageSnapshot, (String, String)> {
    let Some(snapshot) = &spec.snapshot else {
        return Err(violation("spec.snapshot", "is required"));
    };
    if snapshot.memory_mib == 0 || snapshot.manifest_key.is_empty() {
        return Err(violation("spec.snapshot", "needs memory_mib and manifest_key"));
    }
    let digest = &snapshot.manifest_digest;
    if digest.len() != 64 || !digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(violation("spec.snapshot.manifest_digest", "must be 64 lower-case hex digits"));
    }
    Ok(ImageSnapshot {
        manifest_key: snapshot.manifest_key.clone(),
        manifest_digest: digest.clone(),
        guest_bundle_version: snapshot.guest_bundle_version.clone(),
        memory_mib: snapshot.memory_mib,
        vcpu_count: snapshot.vcpu_count.max(1),
        disk_size_bytes: snapshot.disk_size_bytes,
    })
}

fn egress(egress: Option<&wire::Egress>) -> Result<slot::Egress, (String, String)> {
    let egress = egress.ok_or_else(|| violation("spec.egress", "is required"))?;
    match &egress.reach {
        None => Ok(slot::Egress::None),
        Some(wire::egress::Reach::Internet(_)) => Ok(slot::Egress::Internet),
        Some(wire::egress::Reach::Policy(policy)) => {
            slot::Policy::parse(&policy.allow_cidrs, &policy.deny_cidrs)
                .map(slot::Egress::Policy)
                .map_err(|error| violation(format!("spec.egress.policy.{}", error.field), error.message))
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use api::common::v1::AwakeWhile;

    pub fn wire_spec() -> wire::MicrovmSpec {
        wire::MicrovmSpec {
            microvm_id: "microvm-0123abcd-0000-4000-8000-000000000000".to_owned(),
            snapshot: Some(api::image::v1::SnapshotRef {
                manifest_key: "images/x/manifest.json".to_owned(),
                manifest_digest: "0a".repeat(32),
                memory_mib: 256,
                ..Default::default()
            }),
            ingress: Some(wire::Ingress { http: true, shell: false }),
            egress: Some(wire::Egress::default()),
            ..Default::default()
        }
    }

    fn reach(allow: &[&str], deny: &[&str]) -> wire::Egress {
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        let policy = wire::EgressPolicy { allow_cidrs: texts(allow), deny_cidrs: texts(deny) };
        wire::Egress { reach: Some(wire::egress::Reach::Policy(policy)) }
    }

    #[test]
    fn a_life_is_counted_from_when_the_command_arrives() {
        let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000);
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let spec = wire::MicrovmSpec { life_left: seconds(60), ..wire_spec() };
        let spec = Spec::from_command(Some(spec), now).ok().unwrap();
        let deadline = Some(now + std::time::Duration::from_secs(60));
        assert_eq!(spec.deadline, deadline);
        // The journal keeps the end, not what was left.
        assert_eq!(Spec::decode(spec.encoded()).ok().unwrap().deadline, deadline);
        let bad = wire::MicrovmSpec { life_left: seconds(-1), ..wire_spec() };
        assert_eq!(Spec::from_command(Some(bad), now).err().unwrap()[0].0, "spec.life_left");
    }

    #[test]
    fn every_violation_is_named_by_its_field() {
        type Break = fn(&mut wire::MicrovmSpec);
        let broken: &[(&str, Break)] = &[
            ("spec.microvm_id", |s| s.microvm_id = "x".into()),
            ("spec.snapshot", |s| s.snapshot = None),
            ("spec.snapshot", |s| s.snapshot.as_mut().unwrap().memory_mib = 0),
            ("spec.snapshot.manifest_digest", |s| {
                s.snapshot.as_mut().unwrap().manifest_digest = "../x".into();
            }),
            ("spec.ingress", |s| s.ingress = None),
            ("spec.egress", |s| s.egress = None),
            ("spec.idle_policy.awake_while.cpu_percent", |s| {
                let awake_while = AwakeWhile { cpu_percent: Some(101), ..Default::default() };
                s.idle_policy = Some(WireIdlePolicy { awake_while: Some(awake_while), ..Default::default() });
            }),
            ("spec.egress.policy.deny_cidrs[1]", |s| {
                s.egress = Some(reach(&["10.0.0.0/8"], &["10.1.0.0/16", "10.1.0.0"]));
            }),
        ];
        for (field, break_it) in broken {
            let mut spec = wire_spec();
            break_it(&mut spec);
            let found = Spec::from_wire(Some(spec)).err().unwrap();
            assert_eq!(found.iter().map(|(field, _)| field.as_str()).collect::<Vec<_>>(), [*field]);
        }
        let all = Spec::from_wire(Some(wire::MicrovmSpec::default())).err().unwrap();
        let fields: Vec<_> = all.iter().map(|(field, _)| field.as_str()).collect();
        assert_eq!(fields, ["spec.microvm_id", "spec.snapshot", "spec.egress", "spec.ingress"]);
        assert_eq!(Spec::from_wire(None).err().unwrap()[0].0, "spec");
    }

    #[test]
    fn egress_is_what_was_resolved() {
        let of = |egress| {
            Spec::from_wire(Some(wire::MicrovmSpec { egress: Some(egress), ..wire_spec() }))
                .ok()
                .unwrap()
                .egress
        };
        assert_eq!(of(wire::Egress::default()), slot::Egress::None);
        let internet = wire::egress::Reach::Internet(wire::Internet {});
        assert_eq!(of(wire::Egress { reach: Some(internet) }), slot::Egress::Internet);
        let lists = [vec!["10.0.0.0/8".to_owned()], vec!["10.1.0.0/16".to_owned()]];
        let expected = slot::Policy::parse(&lists[0], &lists[1]).unwrap();
        assert_eq!(of(reach(&["10.0.0.0/8"], &["10.1.0.0/16"])), slot::Egress::Policy(expected));
    }

    #[test]
    fn the_journal_gives_back_what_it_was_given() {
        let spec = Spec::from_wire(Some(wire_spec())).ok().unwrap();
        assert_eq!(Spec::decode(spec.encoded()).unwrap().id, spec.id);
        let old = wire::MicrovmSpec { egress: None, ..wire_spec() }.encode_to_vec();
        let error = Spec::decode(&old).err().unwrap().to_string();
        assert!(error.contains("spec.egress: is required"), "{error}");
    }
}
