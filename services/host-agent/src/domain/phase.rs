//! Phases of one microVM on this host, and what each lets a caller do.
//!
//! ```text
//! Launching --> Running <--> Suspending --> Suspended --> Waking --> Running
//!     |            |              |             ^           |
//!     |            |              +-- fails: Running        +-- fails: Suspended
//!     +------------+--------------+-------------+-----------+--> Terminating --> Gone
//! ```
//!
//! Not here: how a transition is carried out (`crate::microvm`), and whether a
//! command is too old (`fence`).

use serde::{Deserialize, Serialize};

/// Where a microVM is in its life on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Being started for the first time.
    Launching,
    /// Its engine runs and its endpoint is open.
    Running,
    /// Its snapshot is being taken.
    Suspending,
    /// Only files: no process, no memory, no slot.
    Suspended,
    /// Being restored from its snapshot; the endpoint is still closed.
    Waking,
    /// Being taken down.
    Terminating,
    /// Ended; only its report and its log are left.
    Gone,
}

impl Phase {
    /// Every phase, for tests over the whole table.
    #[cfg(test)]
    pub const ALL: [Self; 7] = [
        Self::Launching,
        Self::Running,
        Self::Suspending,
        Self::Suspended,
        Self::Waking,
        Self::Terminating,
        Self::Gone,
    ];

    /// True while nothing is under way.
    #[must_use]
    pub fn is_settled(self) -> bool {
        matches!(self, Self::Running | Self::Suspended | Self::Gone)
    }
}

/// What a caller may ask of a microVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Start it (a repeat of the command that made it).
    Launch,
    /// Put it to sleep.
    Suspend,
    /// Wake it.
    Resume,
    /// Connect to it without waking it.
    Open,
    /// Connect to it, waking it when it sleeps.
    OpenWaking,
    /// End it.
    Terminate,
}

impl Ask {
    /// Every question, for tests over the whole table.
    #[cfg(test)]
    pub const ALL: [Self; 6] =
        [Self::Launch, Self::Suspend, Self::Resume, Self::Open, Self::OpenWaking, Self::Terminate];
}

/// How a phase answers an [`Ask`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Begin the transition now.
    Begin,
    /// The same transition is under way: share its outcome.
    Join,
    /// Something else is under way: ask again when it has ended.
    After,
    /// Stop what is under way, undo it, then begin.
    Interrupt,
    /// It is already so: answer with the present state.
    Already,
    /// Refused: it is suspended and may not be woken.
    Asleep,
    /// Refused: it has ended or is ending.
    Ended,
}

/// What `phase` answers to `ask`. Wakes and launches are single-flight: the
/// second caller joins the first. Only a launch or a wake may be interrupted; a
/// suspend that has begun is finished first, because until its manifest is
/// there the session exists nowhere else.
#[must_use]
pub fn admit(phase: Phase, ask: Ask) -> Admission {
    use Admission::{After, Already, Asleep, Begin, Ended, Interrupt, Join};
    match (phase, ask) {
        (Phase::Launching, Ask::Launch | Ask::Resume) => Join,
        (Phase::Launching | Phase::Waking, Ask::Suspend | Ask::Open | Ask::OpenWaking) => After,
        (Phase::Launching | Phase::Waking, Ask::Terminate) => Interrupt,

        (Phase::Running, Ask::Launch | Ask::Resume | Ask::Open | Ask::OpenWaking) => Already,
        (Phase::Running, Ask::Suspend | Ask::Terminate) => Begin,

        (Phase::Suspending, Ask::Suspend) => Join,
        (Phase::Suspending, _) => After,

        (Phase::Suspended, Ask::Launch | Ask::Suspend) => Already,
        (Phase::Suspended, Ask::Resume | Ask::OpenWaking | Ask::Terminate) => Begin,
        (Phase::Suspended, Ask::Open) => Asleep,

        (Phase::Waking, Ask::Resume) => Join,
        (Phase::Waking, Ask::Launch) => After,

        (Phase::Terminating, Ask::Terminate) => Join,
        (Phase::Gone, Ask::Terminate) => Already,
        (Phase::Terminating | Phase::Gone, _) => Ended,
    }
}

/// What happens to a microVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A launch, a wake, or a refused suspend ended with the guest running.
    IsRunning,
    /// A suspend began.
    SuspendBegan,
    /// Its snapshot is durable and its engine gone; or a wake was undone.
    IsSuspended,
    /// A wake began.
    WakeBegan,
    /// Its end began.
    EndBegan,
    /// Everything of it is released.
    IsGone,
}

impl Event {
    /// Every event, for tests over the whole table.
    #[cfg(test)]
    pub const ALL: [Self; 6] = [
        Self::IsRunning,
        Self::SuspendBegan,
        Self::IsSuspended,
        Self::WakeBegan,
        Self::EndBegan,
        Self::IsGone,
    ];
}

/// The phase after `event`, or `None` when the event cannot happen in `phase`.
#[must_use]
pub fn next(phase: Phase, event: Event) -> Option<Phase> {
    match (phase, event) {
        (Phase::Launching | Phase::Suspending | Phase::Waking, Event::IsRunning) => Some(Phase::Running),
        (Phase::Running, Event::SuspendBegan) => Some(Phase::Suspending),
        (Phase::Suspending | Phase::Waking, Event::IsSuspended) => Some(Phase::Suspended),
        (Phase::Suspended, Event::WakeBegan) => Some(Phase::Waking),
        (Phase::Gone | Phase::Terminating, Event::EndBegan) => None,
        (_, Event::EndBegan) => Some(Phase::Terminating),
        (Phase::Terminating, Event::IsGone) => Some(Phase::Gone),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    #[test]
    fn admission_table() {
        let mut table = String::new();
        for phase in Phase::ALL {
            for ask in Ask::ALL {
                let _ = writeln!(
                    table,
                    "{:<12} {:<11} {:?}",
                    format!("{phase:?}"),
                    format!("{ask:?}"),
                    admit(phase, ask)
                );
            }
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn transition_table() {
        let mut table = String::new();
        for phase in Phase::ALL {
            for event in Event::ALL {
                let to = next(phase, event).map_or("-".to_owned(), |to| format!("{to:?}"));
                let _ = writeln!(table, "{:<12} {:<13} {to}", format!("{phase:?}"), format!("{event:?}"));
            }
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn every_settled_phase_answers_at_once() {
        for phase in Phase::ALL.into_iter().filter(|phase| phase.is_settled()) {
            for ask in Ask::ALL {
                let answer = admit(phase, ask);
                assert!(
                    !matches!(answer, Admission::Join | Admission::After | Admission::Interrupt),
                    "{phase:?} {ask:?} {answer:?}"
                );
            }
        }
    }
}
