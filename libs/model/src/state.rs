//! The state tables. Each machine is one `next` function; the whole state x event matrix is a snapshot test,
//! so a changed transition shows up as a changed table.
//!
//! ```text
//! image    CREATING -> CREATED | CREATE_FAILED;  UPDATING -> UPDATED | UPDATE_FAILED;  DELETING -> DELETED | DELETE_FAILED
//! version  PENDING -> IN_PROGRESS -> SUCCESSFUL | FAILED -> DELETING -> DELETED
//! build    PENDING -> IN_PROGRESS -> SUCCESSFUL | FAILED
//! microVM  PENDING -> RUNNING -> SUSPENDING -> SUSPENDED -> RUNNING ... -> TERMINATING -> TERMINATED
//! connector and its versions  PENDING -> ACTIVE -> DELETING -> DELETED
//! ```

use serde::{Deserialize, Serialize};

/// An event that the state it met does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event} is not possible in state {state}")]
pub struct IllegalTransition {
    pub state: &'static str,
    pub event: &'static str,
}

macro_rules! names {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $wire:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $wire)] $variant),+
        }
        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name on the wire.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $wire),+ }
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

names!(
    /// State of a microVM.
    MicrovmState {
        /// Accepted, being launched.
        Pending = "PENDING",
        /// The endpoint answers.
        Running = "RUNNING",
        Suspending = "SUSPENDING",
        Suspended = "SUSPENDED",
        Terminating = "TERMINATING",
        Terminated = "TERMINATED",
    }
);
names!(
    /// What happens to a microVM.
    MicrovmEvent {
        /// The launch or wake succeeded.
        Started = "started",
        SuspendBegan = "suspend-began",
        /// The suspend is durable.
        SuspendDone = "suspend-done",
        /// The suspend failed; it runs on.
        SuspendFailed = "suspend-failed",
        /// A wake failed; it sleeps on.
        WakeFailed = "wake-failed",
        TerminateBegan = "terminate-began",
        /// Everything is released, whoever caused it.
        Ended = "ended",
    }
);

impl MicrovmState {
    /// The state after `event`.
    pub fn next(self, event: MicrovmEvent) -> Result<Self, IllegalTransition> {
        use MicrovmEvent as E;
        Ok(match (self, event) {
            (Self::Pending | Self::Running | Self::Suspended, E::Started) => Self::Running,
            (Self::Running | Self::Suspending, E::SuspendBegan) => Self::Suspending,
            // A host may report the end of a suspend whose beginning was never seen.
            (Self::Running | Self::Suspending | Self::Suspended, E::SuspendDone) => Self::Suspended,
            (Self::Running | Self::Suspending, E::SuspendFailed) => Self::Running,
            (Self::Suspended, E::WakeFailed) => Self::Suspended,
            (Self::Terminated, E::TerminateBegan | E::Ended) => Self::Terminated,
            (_, E::TerminateBegan) => Self::Terminating,
            (_, E::Ended) => Self::Terminated,
            _ => {
                return Err(IllegalTransition { state: self.name(), event: event.name() });
            }
        })
    }
}

names!(
    /// State of an image.
    ImageState {
        /// Its first version is being built.
        Creating = "CREATING",
        /// Its first version was built.
        Created = "CREATED",
        /// Its first version failed.
        CreateFailed = "CREATE_FAILED",
        /// A later version is being built, or a version is being deleted.
        Updating = "UPDATING",
        /// A later version was built, or a version was deleted.
        Updated = "UPDATED",
        /// A later version failed.
        UpdateFailed = "UPDATE_FAILED",
        Deleting = "DELETING",
        /// Could not be deleted.
        DeleteFailed = "DELETE_FAILED",
        Deleted = "DELETED",
    }
);
names!(
    /// What happens to an image.
    ImageEvent {
        /// A build of a new version began.
        UpdateBegan = "update-began",
        BuildSucceeded = "build-succeeded",
        BuildFailed = "build-failed",
        /// The delete of one of its versions began.
        TrimBegan = "trim-began",
        /// No version of it is being deleted any more.
        TrimEnded = "trim-ended",
        DeleteBegan = "delete-began",
        DeleteFailed = "delete-failed",
        DeleteDone = "delete-done",
    }
);

impl ImageState {
    /// The state after `event`.
    pub fn next(self, event: ImageEvent) -> Result<Self, IllegalTransition> {
        use ImageEvent as E;
        Ok(match (self, event) {
            (Self::Created | Self::CreateFailed | Self::Updated | Self::UpdateFailed, E::UpdateBegan) => {
                Self::Updating
            }
            (Self::Creating, E::BuildSucceeded) => Self::Created,
            (Self::Creating, E::BuildFailed) => Self::CreateFailed,
            (Self::Updating, E::BuildSucceeded) => Self::Updated,
            (Self::Updating, E::BuildFailed) => Self::UpdateFailed,
            (
                Self::Created
                | Self::CreateFailed
                | Self::Updated
                | Self::UpdateFailed
                | Self::DeleteFailed
                | Self::Updating,
                E::TrimBegan,
            ) => Self::Updating,
            (Self::Updating, E::TrimEnded) => Self::Updated,
            (
                Self::Created
                | Self::CreateFailed
                | Self::Updated
                | Self::UpdateFailed
                | Self::DeleteFailed
                | Self::Deleting,
                E::DeleteBegan,
            ) => Self::Deleting,
            (Self::Deleting, E::DeleteFailed) => Self::DeleteFailed,
            (Self::Deleting, E::DeleteDone) => Self::Deleted,
            _ => {
                return Err(IllegalTransition { state: self.name(), event: event.name() });
            }
        })
    }
}

names!(
    /// State of a version.
    VersionState {
        /// Waiting for a builder.
        Pending = "PENDING",
        InProgress = "IN_PROGRESS",
        Successful = "SUCCESSFUL",
        Failed = "FAILED",
        Deleting = "DELETING",
        Deleted = "DELETED",
        /// Could not be deleted.
        DeleteFailed = "DELETE_FAILED",
    }
);
names!(
    /// What happens to a version.
    VersionEvent {
        /// A builder took its build.
        BuildBegan = "build-began",
        BuildSucceeded = "build-succeeded",
        BuildFailed = "build-failed",
        DeleteBegan = "delete-began",
        DeleteFailed = "delete-failed",
        DeleteDone = "delete-done",
    }
);

impl VersionState {
    /// The state after `event`.
    pub fn next(self, event: VersionEvent) -> Result<Self, IllegalTransition> {
        use VersionEvent as E;
        Ok(match (self, event) {
            // A build that another builder takes over begins again.
            (Self::Pending | Self::InProgress, E::BuildBegan) => Self::InProgress,
            (Self::InProgress, E::BuildSucceeded) => Self::Successful,
            (Self::Pending | Self::InProgress, E::BuildFailed) => Self::Failed,
            (Self::Successful | Self::Failed | Self::DeleteFailed | Self::Deleting, E::DeleteBegan) => {
                Self::Deleting
            }
            (Self::Deleting, E::DeleteFailed) => Self::DeleteFailed,
            (Self::Deleting, E::DeleteDone) => Self::Deleted,
            _ => {
                return Err(IllegalTransition { state: self.name(), event: event.name() });
            }
        })
    }
}

names!(
    /// State of a build.
    BuildState {
        /// Waiting for a builder.
        Pending = "PENDING",
        InProgress = "IN_PROGRESS",
        Successful = "SUCCESSFUL",
        Failed = "FAILED",
    }
);
names!(
    /// What happens to a build.
    BuildEvent {
        /// A builder took it.
        Began = "began",
        Succeeded = "succeeded",
        Failed = "failed",
    }
);

impl BuildState {
    /// The state after `event`.
    pub fn next(self, event: BuildEvent) -> Result<Self, IllegalTransition> {
        use BuildEvent as E;
        Ok(match (self, event) {
            (Self::Pending | Self::InProgress, E::Began) => Self::InProgress,
            (Self::InProgress, E::Succeeded) => Self::Successful,
            (Self::Pending | Self::InProgress, E::Failed) => Self::Failed,
            _ => {
                return Err(IllegalTransition { state: self.name(), event: event.name() });
            }
        })
    }
}

names!(
    /// State of a network connector, and of one version of it; it follows from
    /// their times, so there are no events.
    ConnectorState {
        /// Being made.
        Pending = "PENDING",
        /// May be passed to launches.
        Active = "ACTIVE",
        Deleting = "DELETING",
        Deleted = "DELETED",
    }
);

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    macro_rules! matrix {
        ($state:ty, $event:ty) => {{
            let mut table = String::new();
            for state in <$state>::ALL {
                for event in <$event>::ALL {
                    let next = state.next(*event).map_or("-".to_owned(), |next| next.to_string());
                    writeln!(table, "{:<14} {:<16} {next}", state.name(), event.name()).unwrap();
                }
            }
            table
        }};
    }

    #[test]
    fn every_transition_is_the_one_in_the_table() {
        insta::assert_snapshot!("microvm", matrix!(MicrovmState, MicrovmEvent));
        insta::assert_snapshot!("image", matrix!(ImageState, ImageEvent));
        insta::assert_snapshot!("version", matrix!(VersionState, VersionEvent));
        insta::assert_snapshot!("build", matrix!(BuildState, BuildEvent));
    }

    #[test]
    fn nothing_leaves_terminated() {
        for event in MicrovmEvent::ALL {
            let next = MicrovmState::Terminated.next(*event);
            assert!(next.is_err() || next == Ok(MicrovmState::Terminated), "{event}");
        }
    }
}
