//! Torpor's host-agent: owns the microVMs of one machine.

mod adapters;
mod app;
mod bake;
mod config;
mod disk;
mod domain;
mod engines_ahead;
mod failpoint;
mod host;
mod metrics;
mod microvm;
mod microvms;
mod reporter;
mod resources;
mod server;
mod stopwatch;
mod vouches;
mod wakes;

use std::process::ExitCode;

pub use config::Config;
pub use wakes::{QueueFull, Turn, Wakes};

/// What a simulated host runs of this program: everything that decides, and everything that speaks with the scheduler. Engines,
/// slots, files and S3 are its own.
pub mod simulated {
    pub use crate::adapters::journal::{Journal, Process, RemoteCopy, Tombstone};
    pub use crate::adapters::lease::{Standing, keep as keep_lease};
    pub use crate::domain::dropped::Dropped;
    pub use crate::domain::error::HostError;
    pub use crate::domain::fence::{Fence, fence, has_diverged, is_spare, must_fetch};
    pub use crate::domain::local_state::{Admission, Ask, Event, LocalState, admit, next};
    pub use crate::domain::metering::Sample;
    pub use crate::domain::recovery::{Cause as LostBecause, Decision, EngineFound, SnapshotFound, decide};
    pub use crate::domain::spec::Spec;
    pub use crate::domain::transition::{Cause, Transition};
    pub use crate::microvm::observed;
    pub use crate::microvms::{EndReport, Remote, observed_end};
    pub use crate::reporter::{Holdings, Reporter, Signals};
    pub use crate::server::status::status;
    pub use crate::vouches::{LeaseSeat, Vouches};
}

/// The whole program: settings, telemetry, the service, an exit code.
pub fn main() -> ExitCode {
    telemetry::run_service(
        "host-agent",
        "Runs microVMs on this machine for a Torpor scheduler",
        |config: &Config| {
            config.check().map_err(anyhow::Error::msg)?;
            failpoint::arm(config.failpoints);
            Ok(&config.telemetry)
        },
        async |config: Config, telemetry: &telemetry::Guard| {
            app::App::build(config, telemetry).await?.run().await
        },
    )
}
