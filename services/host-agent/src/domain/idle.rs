//! When a microVM has been idle for long enough, what keeps it awake until then, and how that is said.
//!
//! Activity is bytes through its tunnel and nothing else: neither CPU load nor control-plane calls count. A policy may
//! name more that keeps it awake ([`AwakeWhile`]); that is looked at when the idle time has passed, and never before.

use std::time::Duration;

use api::microvm::v1::{ActivityKind, AwakeReason};

/// When a microVM sleeps by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IdlePolicy {
    /// Time without activity after which it sleeps; `None` never.
    pub limit: Option<Duration>,
    pub awake_while: AwakeWhile,
}

/// What beside activity keeps a microVM awake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AwakeWhile {
    /// A connection is open that is no shell.
    pub stream: bool,
    pub shell: bool,
    /// Least CPU time of its engine, in percent of one CPU.
    pub cpu_percent: Option<u32>,
}

/// A microVM as the idle timer sees it; times in milliseconds of one monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Situation {
    /// When something was active last, and what.
    pub activity_ms: u64,
    pub activity: ActivityKind,
    /// End of the keep-awake lease; one in the past is none.
    pub lease_end_ms: u64,
    /// Open connections that are no shells.
    pub streams: usize,
    /// Open shells.
    pub shells: usize,
    /// CPU time of its engine lately, in percent of one CPU; `None` while it is not known.
    pub cpu_percent: Option<u32>,
}

/// What the idle timer has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdleDecision {
    Sleep,
    /// Look again then; the reason is what keeps it awake until then.
    Wait {
        until_ms: u64,
        reason: AwakeReason,
    },
    /// Its idle time has passed, but its policy keeps it awake: the idle time begins anew.
    StayAwake(AwakeReason),
    /// It never sleeps by itself.
    Never,
}

/// Decides at `now_ms`. A clock that stands before the last activity (another
/// thread has just stamped it) counts as no idle time at all.
pub fn decide(policy: &IdlePolicy, situation: &Situation, now_ms: u64) -> IdleDecision {
    let Some(limit) = policy.limit else {
        return IdleDecision::Never;
    };
    let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    let idle_ms = situation.activity_ms.saturating_add(limit_ms);
    let until_ms = idle_ms.max(situation.lease_end_ms);
    if until_ms > now_ms {
        let leased = situation.lease_end_ms > idle_ms;
        let reason = if leased { AwakeReason::Lease } else { AwakeReason::Activity };
        return IdleDecision::Wait { until_ms, reason };
    }
    let AwakeWhile { stream, shell, cpu_percent } = policy.awake_while;
    let busy = cpu_percent.zip(situation.cpu_percent).is_some_and(|(least, used)| used >= least);
    if shell && situation.shells > 0 {
        IdleDecision::StayAwake(AwakeReason::Shell)
    } else if stream && situation.streams > 0 {
        IdleDecision::StayAwake(AwakeReason::Stream)
    } else if busy {
        IdleDecision::StayAwake(AwakeReason::Cpu)
    } else {
        IdleDecision::Sleep
    }
}

/// Why it was put to sleep: "idle for 60 s since its last request".
pub fn sleep_sentence(situation: &Situation, now_ms: u64) -> String {
    let idle = now_ms.saturating_sub(situation.activity_ms) / 1000;
    let connections = situation.streams + situation.shells;
    let since = match situation.activity {
        ActivityKind::Request | ActivityKind::Traffic | ActivityKind::Shell if connections > 0 => {
            return format!("idle for {idle} s: no bytes moved on {}", open_connections(connections));
        }
        ActivityKind::Request | ActivityKind::Traffic => "its last request",
        ActivityKind::Shell => "its last shell was used",
        ActivityKind::AwakeWhile => "what its policy names kept it awake last",
        ActivityKind::SuspendFailed => "a suspend failed, without a request",
        ActivityKind::HostRestart => "its host-agent restarted, without a request",
        ActivityKind::Start | ActivityKind::Unspecified => "it started, without a request",
    };
    format!("idle for {idle} s since {since}")
}

fn open_connections(count: usize) -> String {
    if count == 1 { "its open connection".to_owned() } else { format!("its {count} open connections") }
}

/// What keeps it awake, in words.
pub fn awake_sentence(reason: AwakeReason, situation: &Situation) -> &'static str {
    match reason {
        AwakeReason::NoPolicy => "it has no idle policy",
        AwakeReason::Lease => "kept awake by a lease",
        AwakeReason::Stream => "kept awake by an open connection",
        AwakeReason::Shell => "kept awake by an open shell",
        AwakeReason::Cpu => "kept awake by its CPU use",
        AwakeReason::Activity | AwakeReason::Unspecified => match situation.activity {
            ActivityKind::Request => "a request came",
            ActivityKind::Traffic => "bytes moved on a connection",
            ActivityKind::Shell => "a shell was used",
            ActivityKind::AwakeWhile => "what its policy names kept it awake",
            ActivityKind::SuspendFailed => "a suspend failed",
            ActivityKind::HostRestart => "its host-agent restarted",
            ActivityKind::Start | ActivityKind::Unspecified => "it was launched or woken",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const QUIET: Situation = Situation {
        activity_ms: 1_000,
        activity: ActivityKind::Traffic,
        lease_end_ms: 0,
        streams: 0,
        shells: 0,
        cpu_percent: None,
    };

    fn policy(limit_s: Option<u64>) -> IdlePolicy {
        IdlePolicy { limit: limit_s.map(Duration::from_secs), awake_while: AwakeWhile::default() }
    }

    fn wait(until_ms: u64, reason: AwakeReason) -> IdleDecision {
        IdleDecision::Wait { until_ms, reason }
    }

    #[test]
    fn traffic_alone_keeps_it_awake_by_default() {
        let busy = Situation { streams: 3, shells: 1, cpu_percent: Some(100), ..QUIET };
        for situation in [QUIET, busy] {
            for (limit_s, now_ms, expected) in [
                (None, 1 << 40, IdleDecision::Never),
                (Some(60), 1_000, wait(61_000, AwakeReason::Activity)),
                (Some(60), 60_999, wait(61_000, AwakeReason::Activity)),
                (Some(60), 61_000, IdleDecision::Sleep),
                (Some(60), 500, wait(61_000, AwakeReason::Activity)),
                (Some(0), 1_000, IdleDecision::Sleep),
            ] {
                assert_eq!(decide(&policy(limit_s), &situation, now_ms), expected, "{limit_s:?} {now_ms}");
            }
        }
    }

    #[test]
    fn a_lease_counts_when_it_ends_later() {
        for (lease_end_ms, now_ms, expected) in [
            (30_000, 20_000, wait(61_000, AwakeReason::Activity)),
            (90_000, 20_000, wait(90_000, AwakeReason::Lease)),
            (90_000, 89_999, wait(90_000, AwakeReason::Lease)),
            (90_000, 90_000, IdleDecision::Sleep),
        ] {
            let situation = Situation { lease_end_ms, ..QUIET };
            assert_eq!(decide(&policy(Some(60)), &situation, now_ms), expected, "{lease_end_ms} {now_ms}");
        }
        let leased = Situation { lease_end_ms: u64::MAX, ..QUIET };
        assert_eq!(decide(&policy(None), &leased, 0), IdleDecision::Never);
    }

    #[test]
    fn what_the_policy_names_is_looked_at_when_the_idle_time_has_passed() {
        let stream = AwakeWhile { stream: true, ..AwakeWhile::default() };
        let shell = AwakeWhile { shell: true, ..AwakeWhile::default() };
        let cpu = AwakeWhile { cpu_percent: Some(20), ..AwakeWhile::default() };
        let all = AwakeWhile { stream: true, shell: true, cpu_percent: Some(20) };
        let of = |streams, shells, cpu_percent| Situation { streams, shells, cpu_percent, ..QUIET };
        for (awake_while, situation, expected) in [
            (stream, of(1, 0, None), Some(AwakeReason::Stream)),
            (stream, of(0, 1, Some(100)), None),
            (shell, of(0, 1, None), Some(AwakeReason::Shell)),
            (shell, of(1, 0, Some(100)), None),
            (cpu, of(0, 0, Some(20)), Some(AwakeReason::Cpu)),
            (cpu, of(1, 1, Some(19)), None),
            (cpu, of(0, 0, None), None),
            (all, of(1, 1, Some(100)), Some(AwakeReason::Shell)),
            (all, of(0, 0, Some(1)), None),
        ] {
            let policy = IdlePolicy { awake_while, ..policy(Some(60)) };
            let expected = expected.map_or(IdleDecision::Sleep, IdleDecision::StayAwake);
            assert_eq!(decide(&policy, &situation, 61_000), expected, "{awake_while:?} {situation:?}");
            assert_eq!(decide(&policy, &situation, 60_999), wait(61_000, AwakeReason::Activity));
        }
    }

    #[test]
    fn why_it_sleeps_in_words() {
        use ActivityKind as K;
        for (activity, streams, expected) in [
            (K::Traffic, 0, "idle for 60 s since its last request"),
            (K::Traffic, 1, "idle for 60 s: no bytes moved on its open connection"),
            (K::Request, 2, "idle for 60 s: no bytes moved on its 2 open connections"),
            (K::Start, 0, "idle for 60 s since it started, without a request"),
            (K::AwakeWhile, 1, "idle for 60 s since what its policy names kept it awake last"),
        ] {
            let situation = Situation { activity, streams, ..QUIET };
            assert_eq!(sleep_sentence(&situation, 61_000), expected);
        }
    }

    proptest! {
        /// Waiting exactly as long as told ends in sleep when nothing happened meanwhile.
        #[test]
        fn a_wait_is_never_too_long(
            activity_ms in 0u64..1 << 40,
            lease_end_ms in 0u64..1 << 40,
            limit in 1u64..30_000,
            now in 0u64..1 << 41,
        ) {
            let (policy, situation) = (policy(Some(limit)), Situation { activity_ms, lease_end_ms, ..QUIET });
            if let IdleDecision::Wait { until_ms, .. } = decide(&policy, &situation, now) {
                prop_assert!(until_ms > now);
                prop_assert_eq!(decide(&policy, &situation, until_ms), IdleDecision::Sleep);
            }
        }
    }
}
