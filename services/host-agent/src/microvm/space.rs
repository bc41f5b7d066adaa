//! A guest that wrote to its disk when the host had no room for it.
//!
//! Its engine stops it before it hears of that: to the guest time stands still, and no write fails. When there is room it
//! goes on by itself, with its clock put right. Until then it says why it does not answer. It cannot be put to sleep, for its
//! app could not be told; it can be ended.

use std::time::{Duration, Instant};

use api::microvm::v1::ActivityKind;

use super::core::Core;
use super::guest::link_error;
use super::start::engine_error;
use crate::domain::HostError;

/// How often it is looked whether there is room.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Attempts to put the clock of a guest right that runs again: its link may have to be made anew.
const REPAIRS_MAX: u32 = 10;
/// The state's reason meanwhile.
const REASON: &str = "The host's disk is full: the microVM stands still in the middle of a write, and goes on by itself \
                      when there is space.";

/// Of a guest that stands still for want of room.
pub struct OutOfSpace {
    since: Instant,
    /// When it is looked at next.
    look: Instant,
    repairs: u32,
}

/// How an attempt to let the guest go on ended.
enum WentOn {
    Repaired,
    /// There was no room after all.
    Stopped,
}

impl Core {
    /// Why its state is what it is, while it stands still.
    pub fn out_of_space_reason(&self) -> Option<&'static str> {
        self.is_out_of_space().then_some(REASON)
    }

    /// Whether the guest stands still for want of room.
    pub fn is_out_of_space(&self) -> bool {
        self.live.as_ref().is_some_and(|live| live.out_of_space.is_some())
    }

    /// Waits until the guest stands still for want of room, or until it is time to look whether there is some.
    pub async fn space_due(&self) {
        match self.live.as_ref().map(|live| (live, &live.out_of_space)) {
            None => std::future::pending().await,
            Some((live, None)) => live.machine.out_of_space().await,
            Some((_, Some(stands))) => tokio::time::sleep_until(stands.look.into()).await,
        }
    }

    /// Notes that the guest stands still, or lets it go on when there is room.
    ///
    /// None of this is in the journal. When the agent dies, the next one finds the engine in the same state, and begins here;
    /// when it dies after the guest was set going and before its clock was put right, the clock stays behind until the next
    /// sleep.
    pub async fn meet_space(&mut self) {
        let now = Instant::now();
        let Some(live) = &mut self.live else { return };
        let Some(stands) = &mut live.out_of_space else {
            live.out_of_space = Some(OutOfSpace { since: now, look: now + LOOK_INTERVAL, repairs: 0 });
            tracing::error!(microvm = %self.id, "the disk is full; the guest stands still until there is room");
            self.log.append(REASON);
            self.publish();
            return;
        };
        stands.look = now + LOOK_INTERVAL;
        if !self.host.disk.has_room() {
            return;
        }
        let since = stands.since;
        match self.try_to_go_on().await {
            Ok(WentOn::Repaired) => {}
            Ok(WentOn::Stopped) => return,
            Err(failure) => {
                tracing::warn!(microvm = %self.id, error = %failure, "the guest runs again, with its clock behind");
                let stands = self.live.as_mut().and_then(|live| live.out_of_space.as_mut());
                if let Some(stands) = stands {
                    stands.repairs += 1;
                    stands.look = Instant::now() + LOOK_INTERVAL;
                    if stands.repairs < REPAIRS_MAX {
                        return;
                    }
                }
            }
        }
        if let Some(live) = &mut self.live {
            live.out_of_space = None;
        }
        // It had no chance to be used meanwhile.
        self.activity.begin(ActivityKind::Start, &self.host);
        self.save_settled();
        self.publish();
        let stood = since.elapsed().as_secs();
        tracing::info!(microvm = %self.id, seconds = stood, "there is room; the guest goes on");
        self.log.append(format!("There is space again: the microVM goes on after {stood} s."));
    }

    async fn try_to_go_on(&mut self) -> Result<WentOn, HostError> {
        let Some(live) = &self.live else { return Ok(WentOn::Stopped) };
        live.machine.resume().await.map_err(|error| engine_error(&error))?;
        let now = self.host.clock.now();
        let repaired = async { live.link()?.set_clock(now).await.map_err(|error| link_error(&error)) };
        tokio::select! {
            biased;
            () = live.machine.out_of_space() => Ok(WentOn::Stopped),
            repaired = repaired => repaired.map(|()| WentOn::Repaired),
        }
    }
}
