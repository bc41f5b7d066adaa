//! What a microVM's connections and its driver know of its use together: stamped by the connections, read by the idle timer
//! and by whoever asks when it sleeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use api::microvm::v1::{ActivityKind, AwakeReason, Idleness};

use crate::domain::idle::{IdleDecision, IdlePolicy, Situation, awake_sentence, decide};
use crate::host::{Host, timestamp};

/// Bits of a stamp that say what was active; the time is above them.
const KIND_BITS: u32 = 4;
/// Stands for a CPU use that is not known.
const UNKNOWN: u32 = u32::MAX;

/// Bytes through a microVM's tunnel and what else its idle timer goes by. Monotonic milliseconds come from the one clock of
/// `Host`.
#[derive(Debug)]
pub struct Activity {
    bytes: AtomicU64,
    /// Things that came and moved no bytes themselves.
    requests: AtomicU64,
    /// Monotonic milliseconds and kind of the last activity, in one number so that both are of one moment.
    last: AtomicU64,
    last_wall_ms: AtomicU64,
    lease_end_ms: AtomicU64,
    streams: AtomicUsize,
    shells: AtomicUsize,
    cpu_percent: AtomicU32,
    /// What kept it awake when its idle time had passed.
    kept_by: AtomicI32,
}

/// A connection that counts as open until it is dropped.
#[derive(Debug)]
pub struct OpenConnection {
    activity: Arc<Activity>,
    shell: bool,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.activity.open(self.shell).fetch_sub(1, Ordering::Relaxed);
    }
}

impl Activity {
    /// None yet. `bytes` were counted by earlier runs of the agent.
    pub fn new(bytes: u64) -> Self {
        Self {
            bytes: AtomicU64::new(bytes),
            requests: AtomicU64::new(0),
            last: AtomicU64::new(0),
            last_wall_ms: AtomicU64::new(0),
            lease_end_ms: AtomicU64::new(0),
            streams: AtomicUsize::new(0),
            shells: AtomicUsize::new(0),
            cpu_percent: AtomicU32::new(UNKNOWN),
            kept_by: AtomicI32::new(0),
        }
    }

    /// Something came for it now that moves no bytes itself.
    pub fn request(&self, host: &Host) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.begin(ActivityKind::Request, host);
        self.last_wall_ms.fetch_max(host.now_ms(), Ordering::Relaxed);
    }

    /// How often something has come for it.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Counts `bytes` moved now, through a shell or another connection.
    pub fn moved(&self, bytes: u64, shell: bool, host: &Host) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.begin(if shell { ActivityKind::Shell } else { ActivityKind::Traffic }, host);
        self.last_wall_ms.fetch_max(host.now_ms(), Ordering::Relaxed);
    }

    /// Idle time counts from now on.
    pub fn begin(&self, kind: ActivityKind, host: &Host) {
        self.last.fetch_max(stamp(host.monotonic_ms(), kind), Ordering::Relaxed);
    }

    /// Its policy keeps it awake: idle time counts from now on.
    pub fn stay_awake(&self, reason: AwakeReason, host: &Host) {
        self.kept_by.store(reason.into(), Ordering::Relaxed);
        self.begin(ActivityKind::AwakeWhile, host);
    }

    /// A connection that has just been opened.
    pub fn opened(self: &Arc<Self>, shell: bool) -> OpenConnection {
        self.open(shell).fetch_add(1, Ordering::Relaxed);
        OpenConnection { activity: Arc::clone(self), shell }
    }

    fn open(&self, shell: bool) -> &AtomicUsize {
        if shell { &self.shells } else { &self.streams }
    }

    /// Monotonic time at which its lease ends; 0 when it has none.
    pub fn set_lease_end(&self, end_ms: u64) {
        self.lease_end_ms.store(end_ms, Ordering::Relaxed);
    }

    /// CPU time of its engine lately, in percent of one CPU.
    pub fn set_cpu(&self, percent: u32) {
        self.cpu_percent.store(percent, Ordering::Relaxed);
    }

    /// The microVM was placed here anew: bytes count from zero.
    pub fn begin_placement(&self) {
        self.bytes.store(0, Ordering::Relaxed);
    }

    /// Bytes in both directions.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Wall-clock time at which something came last; `None` before that.
    pub fn last_wall_ms(&self) -> Option<u64> {
        match self.last_wall_ms.load(Ordering::Relaxed) {
            0 => None,
            ms => Some(ms),
        }
    }

    pub fn situation(&self) -> Situation {
        let (activity_ms, activity) = read_stamp(self.last.load(Ordering::Relaxed));
        Situation {
            activity_ms,
            activity,
            lease_end_ms: self.lease_end_ms.load(Ordering::Relaxed),
            streams: self.streams.load(Ordering::Relaxed),
            shells: self.shells.load(Ordering::Relaxed),
            cpu_percent: Some(self.cpu_percent.load(Ordering::Relaxed)).filter(|percent| *percent != UNKNOWN),
        }
    }

    /// What keeps it awake and when it sleeps, for whoever asks.
    pub fn idleness(&self, policy: &IdlePolicy, host: &Host) -> Idleness {
        let (now_ms, now_wall_ms) = (host.monotonic_ms(), host.now_ms());
        let wall = |ms: u64| timestamp((now_wall_ms + ms).saturating_sub(now_ms));
        let situation = self.situation();
        let kept_by = || AwakeReason::try_from(self.kept_by.load(Ordering::Relaxed)).unwrap_or_default();
        let (reason, sleep_ms) = match decide(policy, &situation, now_ms) {
            IdleDecision::Never => (AwakeReason::NoPolicy, None),
            IdleDecision::Wait { until_ms, reason: AwakeReason::Activity }
                if situation.activity == ActivityKind::AwakeWhile =>
            {
                (kept_by(), Some(until_ms))
            }
            IdleDecision::Wait { until_ms, reason } => (reason, Some(until_ms)),
            // The timer is about to see the same.
            IdleDecision::StayAwake(reason) => (reason, Some(now_ms)),
            IdleDecision::Sleep => (AwakeReason::Activity, Some(now_ms)),
        };
        Idleness {
            sleep_time: sleep_ms.map(wall),
            awake_reason: reason.into(),
            message: awake_sentence(reason, &situation).to_owned(),
            activity: situation.activity.into(),
            activity_time: Some(wall(situation.activity_ms)),
            lease_end_time: Some(situation.lease_end_ms).filter(|end_ms| *end_ms > now_ms).map(wall),
        }
    }
}

fn stamp(ms: u64, kind: ActivityKind) -> u64 {
    let kind = u64::from(i32::from(kind).unsigned_abs());
    (ms << KIND_BITS) | kind
}

fn read_stamp(stamp: u64) -> (u64, ActivityKind) {
    let kind = i32::try_from(stamp & ((1 << KIND_BITS) - 1)).unwrap_or_default();
    (stamp >> KIND_BITS, ActivityKind::try_from(kind).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_keeps_time_and_kind() {
        for kind in 0..1 << KIND_BITS {
            let Ok(kind) = ActivityKind::try_from(kind) else { continue };
            for ms in [0, 1, 1 << 50] {
                assert_eq!(read_stamp(stamp(ms, kind)), (ms, kind));
            }
        }
        let last = ActivityKind::HostRestart;
        assert!(i32::from(last) < 1 << KIND_BITS && ActivityKind::try_from(i32::from(last) + 1).is_err());
    }

    #[test]
    fn open_connections_are_counted_while_they_live() {
        let activity = Arc::new(Activity::new(0));
        let (shell, stream) = (activity.opened(true), activity.opened(false));
        assert_eq!((activity.situation().streams, activity.situation().shells), (1, 1));
        drop(shell);
        assert_eq!((activity.situation().streams, activity.situation().shells), (1, 0));
        drop(stream);
        assert_eq!(activity.situation().streams, 0);
    }
}
