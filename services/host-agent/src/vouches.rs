//! Going on without a lease while etcd is away (RFD 0017).
//!
//! ```text
//! open by the lease ──lease in danger──> asks every scheduler ──all promise──> open by their vouches
//!        ^                                                                          │
//!        └── a lease, and a scheduler has told what is stale ───────────────────────┤
//!                                                        one has not vouched for so long: fenced
//! ```
//!
//! Nothing is given to another host but by a scheduler that leads, and each of those that may lead has promised not to. So as
//! long as the vouches of all of them hold, nobody else can have been given what is here. The chain must not break: a host
//! that was fenced for a moment is opened by a lease and a scheduler's word only, never by a vouch.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::host::v1::VouchForHostRequest;
use api::host::v1::host_service_client::HostServiceClient;
use clock::Clock;
use futures::future::join_all;
use model::limits::VOUCHED_MAX;
use rpc::{Dialer, Role, Transport};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;

use crate::adapters::lease::Standing;

/// How often the lease is looked at, and the schedulers are asked while it is in danger: a part of the lease's life, at most a
/// second.
const INTERVAL_PART: u32 = 8;
const INTERVAL_MAX: Duration = Duration::from_secs(1);
/// Longest wait for the answers.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// A lease is in danger when less than this part of its life is left: two keepalives have not been answered.
const DANGER_PART: u32 = 2;

/// The lease that is held, for who must know how long it lasts.
pub type LeaseSeat = Arc<Mutex<Option<records::Lease>>>;

/// A scheduler that may lead.
#[derive(Debug)]
struct Voucher {
    address: String,
    channel: Transport,
    /// Uptime until which its vouch holds; counted from before it was asked.
    until: Duration,
    /// Whether the log says already that it answers as another.
    complained: bool,
}

/// Asks for vouches when they are needed and notes in the host's standing whether they hold.
#[derive(Debug)]
pub struct Vouches {
    host_id: String,
    clock: Clock,
    standing: watch::Sender<Standing>,
    lease: LeaseSeat,
    ttl: Duration,
    vouchers: Vec<Voucher>,
    /// Uptime when the host was last open by its lease.
    by_lease: Duration,
}

impl Vouches {
    /// Prepares a channel to each scheduler.
    ///
    /// # Errors
    /// INVALID_ARGUMENT when an address is malformed.
    pub fn new(
        (host_id, clock): (&str, &Clock),
        (standing, lease, ttl): (&watch::Sender<Standing>, &LeaseSeat, Duration),
        (dialer, schedulers): (impl Into<Dialer>, &[String]),
    ) -> Result<Self, Status> {
        let dialer = dialer.into();
        let vouchers = schedulers.iter().map(|address| {
            let channel = dialer.dial(address, Role::Scheduler)?;
            Ok(Voucher { address: address.clone(), channel, until: Duration::ZERO, complained: false })
        });
        Ok(Self {
            host_id: host_id.to_owned(),
            by_lease: clock.uptime(),
            clock: clock.clone(),
            standing: standing.clone(),
            lease: Arc::clone(lease),
            ttl,
            vouchers: vouchers.collect::<Result<_, Status>>()?,
        })
    }

    /// Looks after the standing until it is dropped.
    pub async fn keep(mut self) {
        loop {
            if self.standing.borrow().is_open_by_lease() {
                self.by_lease = self.clock.uptime();
            }
            if self.are_needed() {
                let left = self.left();
                // What holds now may end while the answers are waited for.
                let _ = tokio::time::timeout(left.unwrap_or(ASK_TIMEOUT), self.ask()).await;
            }
            self.judge();
            let interval = (self.ttl / INTERVAL_PART).min(INTERVAL_MAX);
            tokio::time::sleep(self.left().unwrap_or(interval).min(interval)).await;
        }
    }

    /// Whether the host is open and may soon be so by vouches only.
    fn are_needed(&self) -> bool {
        let standing = *self.standing.borrow();
        if standing.is_fenced() || !standing.goes_by_vouches() {
            return false;
        }
        let lease = self.lease.lock().unwrap_or_else(PoisonError::into_inner);
        let left = lease.as_ref().map(|lease| lease.deadline().saturating_duration_since(Instant::now()));
        !standing.is_open_by_lease() || left.is_none_or(|left| left < self.ttl / DANGER_PART)
    }

    /// Asks every scheduler once and notes what each says as it comes.
    async fn ask(&mut self) {
        let sent = self.clock.uptime();
        let host_id = self.host_id.as_str();
        join_all(self.vouchers.iter_mut().map(|voucher| voucher.ask(host_id, sent))).await;
    }

    /// How long the vouches of all schedulers hold from now; `None` when they do not.
    fn left(&self) -> Option<Duration> {
        let now = self.clock.uptime();
        let until = self.vouchers.iter().map(|voucher| voucher.until).min()?;
        let until = until.min(self.by_lease + VOUCHED_MAX);
        until.checked_sub(now).filter(|left| !left.is_zero())
    }

    fn judge(&self) {
        let hold = self.left().is_some();
        let changed = self.standing.send_if_modified(|standing| standing.vouched(hold));
        if changed {
            let standing = *self.standing.borrow();
            match (hold, standing.is_open_by_lease()) {
                (true, _) => tracing::warn!("etcd does not answer; every scheduler vouches for this host"),
                (false, false) => tracing::warn!("no lease, and not every scheduler vouches any more"),
                (false, true) => tracing::info!("the lease is enough again"),
            }
        }
    }
}

impl Voucher {
    async fn ask(&mut self, host_id: &str, sent: Duration) {
        let mut client = HostServiceClient::new(self.channel.clone());
        let request = rpc::request(VouchForHostRequest { host_id: host_id.to_owned() });
        let answer = match tokio::time::timeout(ASK_TIMEOUT, client.vouch_for_host(request)).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => {
                let message = status.message();
                return tracing::debug!(scheduler = self.address, code = ?status.code(), message, "no vouch");
            }
            Err(_) => return tracing::debug!(scheduler = self.address, "no vouch in time"),
        };
        // Behind one address several may answer in turn; one that has not been asked would have promised nothing.
        if answer.scheduler != self.address {
            if !self.complained {
                let (named, answers) = (&self.address, &answer.scheduler);
                tracing::warn!(named, answers, "a scheduler is not listed by the address it is elected by");
            }
            self.complained = true;
            return;
        }
        let valid_for = answer.valid_for.as_ref().and_then(|valid_for| api::duration(valid_for).ok());
        self.until = self.until.max(sent + valid_for.unwrap_or_default());
    }
}

#[cfg(test)]
mod tests;
