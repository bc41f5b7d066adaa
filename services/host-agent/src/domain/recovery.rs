//! What a restarted agent does with each microVM of its journal. The agent's
//! death leaves engines untouched, so the truth is what the journal said last,
//! whether the engine lives and runs, and whether the snapshot that a suspend
//! was making got its manifest.

use super::phase::Phase;

/// The engine as found after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineFound {
    /// No such process.
    Dead,
    /// It lives and the guest stands still.
    Paused,
    /// It lives and the guest runs.
    Running,
}

impl EngineFound {
    /// Every case, for tests over the whole table.
    #[cfg(test)]
    pub const ALL: [Self; 3] = [Self::Dead, Self::Paused, Self::Running];
}

/// The snapshot that the journal names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotFound {
    /// Whole on this host.
    Local,
    /// Not here, but S3 has it.
    Remote,
    /// Nowhere.
    Missing,
}

impl SnapshotFound {
    /// Every case, for tests over the whole table.
    #[cfg(test)]
    pub const ALL: [Self; 3] = [Self::Local, Self::Remote, Self::Missing];
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Drive the running engine on; drop an unfinished snapshot.
    Adopt,
    /// Drop the unfinished snapshot, let the guest run on, adopt.
    ResumeInPlace,
    /// The snapshot is complete: end the engine if it lives, be SUSPENDED.
    FinishSuspend,
    /// End the engine if it lives, remove what it wrote, be SUSPENDED as before.
    BackToSuspended,
    /// End it and report TERMINATED with this reason.
    ReportTerminated(Cause),
    /// Remove every trace and report nothing: the command that made it was
    /// never answered and will be repeated, or it can be woken from S3.
    Remove,
}

/// Why a microVM ended while the agent was away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Its engine died with the session in its memory.
    EngineLost,
    /// Its end had begun; the journal holds the reason.
    EndHadBegun,
    /// It slept, and its snapshot is gone from the host and was never in S3.
    SnapshotLost,
}

/// Decides for one microVM. `new_manifest` says whether the snapshot after the
/// journal's sequence has its manifest.
#[must_use]
pub fn decide(phase: Phase, engine: EngineFound, new_manifest: bool, snapshot: SnapshotFound) -> Decision {
    use Decision::{Adopt, BackToSuspended, FinishSuspend, Remove, ReportTerminated, ResumeInPlace};
    match (phase, engine, new_manifest) {
        // Nobody was told that it runs, and its endpoint was never open.
        (Phase::Launching, _, _) => Remove,

        // A guest that runs has moved on from any snapshot: the snapshot is the leftover.
        (Phase::Running | Phase::Suspending, EngineFound::Running, _) => Adopt,
        (Phase::Running | Phase::Suspending, EngineFound::Paused, false) => ResumeInPlace,
        // The manifest is the last thing a suspend makes durable, so with it the session is whole even when a
        // power cut took the journal's newer words.
        (Phase::Running | Phase::Suspending, EngineFound::Paused | EngineFound::Dead, true) => FinishSuspend,
        (Phase::Running | Phase::Suspending, EngineFound::Dead, false) => ReportTerminated(Cause::EngineLost),

        // The endpoint opens only after the journal says Running: what a half-done wake ran is nobody's loss.
        (Phase::Suspended | Phase::Waking, _, _) => match snapshot {
            SnapshotFound::Local => BackToSuspended,
            SnapshotFound::Remote => Remove,
            SnapshotFound::Missing => ReportTerminated(Cause::SnapshotLost),
        },

        (Phase::Terminating | Phase::Gone, _, _) => ReportTerminated(Cause::EndHadBegun),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    #[test]
    fn decision_table() {
        let mut table = String::new();
        for phase in Phase::ALL {
            for engine in EngineFound::ALL {
                for new_manifest in [false, true] {
                    for snapshot in SnapshotFound::ALL {
                        let decision = decide(phase, engine, new_manifest, snapshot);
                        let _ = writeln!(
                            table,
                            "{:<12} engine {:<8} new manifest {new_manifest:<5} snapshot {:<8} {decision:?}",
                            format!("{phase:?}"),
                            format!("{engine:?}"),
                            format!("{snapshot:?}"),
                        );
                    }
                }
            }
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn a_session_that_exists_is_never_given_up() {
        for phase in [Phase::Running, Phase::Suspending] {
            for engine in EngineFound::ALL {
                for new_manifest in [false, true] {
                    let exists = engine != EngineFound::Dead || new_manifest;
                    let decision = decide(phase, engine, new_manifest, SnapshotFound::Missing);
                    let given_up = matches!(decision, Decision::ReportTerminated(_) | Decision::Remove);
                    assert_eq!(given_up, !exists, "{phase:?} {engine:?} {new_manifest}");
                }
            }
        }
        for engine in EngineFound::ALL {
            let decision = decide(Phase::Waking, engine, false, SnapshotFound::Local);
            assert_eq!(decision, Decision::BackToSuspended);
        }
    }
}
