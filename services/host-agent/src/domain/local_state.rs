//! States of one microVM on this host, and what each lets a caller do.
//!
//! ```text
//! Launching --> Running <--> Suspending --> Suspended --> Waking --> Running
//!     |            |              |             ^           |
//!     |            |              +-- fails: Running        +-- fails: Suspended
//!     |            +-- engine lost, back to a recovery point: Suspended
//!     +------------+--------------+-------------+-----------+--> Terminating --> Gone
//! ```
//!
//! Not here: how a transition is carried out (`crate::microvm`), and whether a command is too old (`fence`).

use serde::{Deserialize, Serialize};

/// Where a microVM is in its life on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LocalState {
    /// Being started for the first time.
    Launching,
    /// Its engine runs and its endpoint is open.
    Running,
    Suspending,
    /// Only files: no process, no memory, no slot.
    Suspended,
    /// Being restored from its snapshot; the endpoint is still closed.
    Waking,
    Terminating,
    /// Ended; only its report and its log are left.
    Gone,
}

impl LocalState {
    /// Every state, for tests over the whole table.
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
    pub fn is_settled(self) -> bool {
        matches!(self, Self::Running | Self::Suspended | Self::Gone)
    }
}

/// What a caller may ask of a microVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Start it (a repeat of the command that made it).
    Launch,
    Suspend,
    /// Keep it from falling asleep, or give that up.
    KeepAwake,
    Resume,
    /// Connect to it without waking it.
    Open,
    /// Connect to it, waking it when it sleeps.
    OpenWaking,
    Terminate,
    /// Drop it unless it is awake.
    GiveUp,
}

impl Ask {
    /// Every question, for tests over the whole table.
    #[cfg(test)]
    pub const ALL: [Self; 8] = [
        Self::Launch,
        Self::Suspend,
        Self::KeepAwake,
        Self::Resume,
        Self::Open,
        Self::OpenWaking,
        Self::Terminate,
        Self::GiveUp,
    ];
}

/// How a state answers an [`Ask`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
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
    /// Refused: it runs.
    Awake,
    /// Refused: it has ended or is ending.
    Ended,
}

/// What `state` answers to `ask`. Wakes and launches are single-flight: the second caller joins the first.
/// Only a launch or a wake may be interrupted; a suspend that has begun is finished first, because until its
/// manifest is there the session exists nowhere else, unless it is called off before the pause (`microvm::suspend`).
pub fn admit(state: LocalState, ask: Ask) -> Admission {
    use Admission::{After, Already, Asleep, Awake, Begin, Ended, Interrupt, Join};
    match (state, ask) {
        (LocalState::Launching, Ask::Launch | Ask::Resume) => Join,
        (
            LocalState::Launching | LocalState::Waking,
            Ask::Suspend | Ask::KeepAwake | Ask::Open | Ask::OpenWaking | Ask::GiveUp,
        ) => After,
        (LocalState::Launching | LocalState::Waking, Ask::Terminate) => Interrupt,

        (LocalState::Running, Ask::Launch | Ask::Resume | Ask::Open | Ask::OpenWaking) => Already,
        (LocalState::Running, Ask::Suspend | Ask::KeepAwake | Ask::Terminate) => Begin,
        (LocalState::Running, Ask::GiveUp) => Awake,

        (LocalState::Suspending, Ask::Suspend) => Join,
        (LocalState::Suspending, _) => After,

        (LocalState::Suspended, Ask::Launch | Ask::Suspend) => Already,
        (LocalState::Suspended, Ask::Resume | Ask::OpenWaking | Ask::Terminate | Ask::GiveUp) => Begin,
        (LocalState::Suspended, Ask::Open | Ask::KeepAwake) => Asleep,

        (LocalState::Waking, Ask::Resume) => Join,
        (LocalState::Waking, Ask::Launch) => After,

        (LocalState::Terminating, Ask::Terminate) => Join,
        (LocalState::Gone, Ask::Terminate) => Already,
        (LocalState::Terminating | LocalState::Gone, _) => Ended,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A launch, a wake, or a refused suspend ended with the guest running.
    IsRunning,
    SuspendBegan,
    /// Its snapshot is durable and its engine gone; or a wake was undone.
    IsSuspended,
    WakeBegan,
    /// Its engine is lost; it is what it was at its recovery point.
    WentBack,
    EndBegan,
    IsGone,
}

impl Event {
    /// Every event, for tests over the whole table.
    #[cfg(test)]
    pub const ALL: [Self; 7] = [
        Self::IsRunning,
        Self::SuspendBegan,
        Self::IsSuspended,
        Self::WakeBegan,
        Self::WentBack,
        Self::EndBegan,
        Self::IsGone,
    ];
}

/// The state after `event`, or `None` when the event cannot happen in `state`.
pub fn next(state: LocalState, event: Event) -> Option<LocalState> {
    match (state, event) {
        (LocalState::Launching | LocalState::Suspending | LocalState::Waking, Event::IsRunning) => {
            Some(LocalState::Running)
        }
        (LocalState::Running, Event::SuspendBegan) => Some(LocalState::Suspending),
        (LocalState::Suspending | LocalState::Waking, Event::IsSuspended) => Some(LocalState::Suspended),
        (LocalState::Suspended, Event::WakeBegan) => Some(LocalState::Waking),
        (LocalState::Running | LocalState::Suspending, Event::WentBack) => Some(LocalState::Suspended),
        (LocalState::Gone | LocalState::Terminating, Event::EndBegan) => None,
        (_, Event::EndBegan) => Some(LocalState::Terminating),
        (LocalState::Terminating, Event::IsGone) => Some(LocalState::Gone),
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
        for state in LocalState::ALL {
            for ask in Ask::ALL {
                let _ = writeln!(
                    table,
                    "{:<12} {:<11} {:?}",
                    format!("{state:?}"),
                    format!("{ask:?}"),
                    admit(state, ask)
                );
            }
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn transition_table() {
        let mut table = String::new();
        for state in LocalState::ALL {
            for event in Event::ALL {
                let to = next(state, event).map_or("-".to_owned(), |to| format!("{to:?}"));
                let _ = writeln!(table, "{:<12} {:<13} {to}", format!("{state:?}"), format!("{event:?}"));
            }
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn every_settled_phase_answers_at_once() {
        for state in LocalState::ALL.into_iter().filter(|state| state.is_settled()) {
            for ask in Ask::ALL {
                let answer = admit(state, ask);
                assert!(
                    !matches!(answer, Admission::Join | Admission::After | Admission::Interrupt),
                    "{state:?} {ask:?} {answer:?}"
                );
            }
        }
    }
}
