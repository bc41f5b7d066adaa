//! What a restarted agent does with each microVM of its journal. The agent's
//! death leaves engines untouched, so the truth is what the journal said last (a
//! snapshot's manifest has one in it) and whether the engine lives and runs.

use super::local_state::LocalState;

/// The engine as found after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineFound {
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
    Local,
    /// Not here, but S3 has it.
    Remote,
    Missing,
}

impl SnapshotFound {
    /// Every case, for tests over the whole table.
    #[cfg(test)]
    pub const ALL: [Self; 3] = [Self::Local, Self::Remote, Self::Missing];
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Drive the running engine on; drop an unfinished snapshot.
    Adopt,
    /// Drop the unfinished snapshot, let the guest run on, adopt.
    ResumeInPlace,
    /// End the engine if it lives, remove what it wrote, be SUSPENDED as before.
    BackToSuspended,
    /// Its engine is gone; be what it was at its recovery point, and wake.
    GoBack,
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

/// `checkpoints`: whether it goes back to its latest snapshot when its engine is lost.
pub fn decide(
    phase: LocalState,
    engine: EngineFound,
    snapshot: SnapshotFound,
    checkpoints: bool,
) -> Decision {
    use Decision::{Adopt, BackToSuspended, GoBack, Remove, ReportTerminated, ResumeInPlace};
    match (phase, engine) {
        // Nobody was told that it runs, and its endpoint was never open.
        (LocalState::Launching, _) => Remove,

        // The manifest of the snapshot that a suspend was making would say Suspended: there is none.
        (LocalState::Running | LocalState::Suspending, EngineFound::Running) => Adopt,
        (LocalState::Running | LocalState::Suspending, EngineFound::Paused) => ResumeInPlace,
        (LocalState::Running | LocalState::Suspending, EngineFound::Dead) => {
            let point = checkpoints && snapshot == SnapshotFound::Local;
            if point { GoBack } else { ReportTerminated(Cause::EngineLost) }
        }

        // The endpoint opens only after the journal says Running: what a half-done wake ran is nobody's loss.
        (LocalState::Suspended | LocalState::Waking, _) => match snapshot {
            SnapshotFound::Local => BackToSuspended,
            SnapshotFound::Remote => Remove,
            SnapshotFound::Missing => ReportTerminated(Cause::SnapshotLost),
        },

        (LocalState::Terminating | LocalState::Gone, _) => ReportTerminated(Cause::EndHadBegun),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    #[test]
    fn decision_table() {
        let mut table = String::new();
        for phase in LocalState::ALL {
            for engine in EngineFound::ALL {
                for snapshot in SnapshotFound::ALL {
                    let (plain, pointed) =
                        (decide(phase, engine, snapshot, false), decide(phase, engine, snapshot, true));
                    let with = if plain == pointed {
                        String::new()
                    } else {
                        format!(", with checkpoints {pointed:?}")
                    };
                    let _ = writeln!(
                        table,
                        "{:<12} engine {:<8} snapshot {:<8} {plain:?}{with}",
                        format!("{phase:?}"),
                        format!("{engine:?}"),
                        format!("{snapshot:?}"),
                    );
                }
            }
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn a_session_that_exists_is_never_given_up() {
        for phase in [LocalState::Running, LocalState::Suspending] {
            for engine in EngineFound::ALL {
                let decision = decide(phase, engine, SnapshotFound::Missing, true);
                let given_up = matches!(decision, Decision::ReportTerminated(_) | Decision::Remove);
                assert_eq!(given_up, engine == EngineFound::Dead, "{phase:?} {engine:?}");
            }
        }
        for phase in [LocalState::Suspended, LocalState::Waking] {
            for engine in EngineFound::ALL {
                let decision = decide(phase, engine, SnapshotFound::Local, false);
                assert_eq!(decision, Decision::BackToSuspended);
            }
        }
    }
}
