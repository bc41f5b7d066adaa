//! The host's record in etcd, under a lease, and what follows from losing it: a host whose lease is over
//! carries no more traffic, because others may place its microVMs elsewhere from then on.
//!
//! A lease that is back is not enough to go on. While it was gone the scheduler may have placed microVMs elsewhere, and an edge
//! with an old route would wake the old copy here beside the new one. So the host stays closed until it has registered with a
//! scheduler since, and has closed what the answer calls stale.
//!
//! While etcd is away, the promises of all schedulers take the lease's place ([`crate::vouches`]).

use std::sync::PoisonError;
use std::time::Duration;

use api::host::v1::HostSpec;
use prost::Message as _;
use tokio::sync::watch;

use crate::vouches::LeaseSeat;

/// Whether the host may serve requests and remove what it has superseded.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The lease that is held, by its id in etcd.
    held: Option<i64>,
    /// The lease under which a scheduler has last said what is stale here.
    told_under: Option<i64>,
    /// Whether a scheduler that led has recorded by whose vouches the host goes on.
    goes_by_vouches: bool,
    /// Whether the vouches of all of them have held ever since the host was open by its lease.
    vouched: bool,
}

impl Standing {
    /// The lease that is held.
    pub fn lease(self) -> Option<i64> {
        self.held
    }

    /// Whether a launch or wake that was sent under a lease of this host still counts. Under an older one than it has now it
    /// may have been on its way since before the host was given up, and what it names may run elsewhere. Across a gap that all
    /// vouched for nothing was given away.
    pub fn counts(self, sent_under: i64) -> bool {
        let sent_under = Some(sent_under);
        self.held == sent_under || (self.told_under == sent_under && !self.is_fenced())
    }

    /// True while others may run what is held here.
    pub fn is_fenced(self) -> bool {
        !self.is_open_by_lease() && !self.vouched
    }

    /// Whether the lease alone says that nobody else runs what is held here.
    pub fn is_open_by_lease(self) -> bool {
        self.held.is_some() && self.told_under == self.held
    }

    pub fn goes_by_vouches(self) -> bool {
        self.goes_by_vouches
    }

    /// A scheduler that leads has recorded the host's vouchers, or will not.
    pub fn go_by_vouches(&mut self, go: bool) {
        self.goes_by_vouches = go;
        self.vouched &= go;
    }

    /// The vouches of all schedulers hold, or not any more. What is fenced stays so: a vouch is a promise about what comes,
    /// and says nothing of what has been given to others meanwhile. Returns whether this changed anything.
    pub fn vouched(&mut self, hold: bool) -> bool {
        let vouched = hold && self.goes_by_vouches && !self.is_fenced();
        std::mem::replace(&mut self.vouched, vouched) != vouched
    }

    fn gained(&mut self, lease: i64) {
        self.held = Some(lease);
    }

    fn lost(&mut self) {
        self.held = None;
    }

    /// A scheduler has been asked while this lease was held, and what it called stale is closed.
    pub fn told(&mut self, lease: i64) {
        self.told_under = Some(lease);
    }
}

/// Pause before the lease is asked for again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Keeps the record there until it is dropped, and notes in `standing` whether it is, and by which lease.
pub async fn keep(
    store: records::Store,
    spec: HostSpec,
    ttl: Duration,
    (standing, seat): (watch::Sender<Standing>, LeaseSeat),
) {
    let sit = |lease| *seat.lock().unwrap_or_else(PoisonError::into_inner) = lease;
    let key = format!("hosts/{}", spec.host_id);
    loop {
        match hold(&store, &key, &spec, ttl).await {
            Ok(lease) => {
                sit(Some(lease.clone()));
                standing.send_modify(|standing| standing.gained(lease.id()));
                tracing::info!(key, "the host's record stands");
                lease.lost().await;
                // Before anything else: from this moment others may place our microVMs elsewhere, unless all vouch.
                standing.send_modify(Standing::lost);
                sit(None);
                let fenced = standing.borrow().is_fenced();
                tracing::warn!(key, fenced, "the lease is over");
            }
            Err(error) => tracing::warn!(%error, "no lease for the host's record yet"),
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

async fn hold(
    store: &records::Store,
    key: &str,
    spec: &HostSpec,
    ttl: Duration,
) -> records::Result<records::Lease> {
    let lease = store.lease(ttl).await?;
    let record = HostSpec { lease: lease.id(), ..spec.clone() };
    store.put_leased(key, record.encode_to_vec(), &lease).await?;
    Ok(lease)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_is_back_opens_nothing_before_a_scheduler_has_been_asked() {
        let mut standing = Standing::default();
        assert!(standing.is_fenced());
        standing.gained(11);
        assert!(standing.is_fenced(), "a lease, and nobody has said what is stale");
        let first = standing.lease().unwrap();
        standing.told(first);
        assert!(!standing.is_fenced());
        standing.lost();
        assert!(standing.is_fenced());
        standing.gained(12);
        // The answer to a question that was asked under the lease before.
        standing.told(first);
        assert!(standing.is_fenced(), "what it says may be older than a placement made meanwhile");
        standing.told(standing.lease().unwrap());
        assert!(!standing.is_fenced());
    }

    #[test]
    fn what_was_sent_under_an_older_lease_does_not_count() {
        let mut standing = Standing::default();
        assert!(!standing.counts(11));
        standing.gained(11);
        assert!(standing.counts(11), "a command may be faster than the answer to the registration");
        standing.told(11);
        standing.lost();
        assert!(!standing.counts(11), "fenced");
        standing.gained(12);
        assert!(standing.counts(12) && !standing.counts(11));
        standing.told(12);
        assert!(standing.counts(12) && !standing.counts(11));
        standing.go_by_vouches(true);
        assert!(standing.vouched(true));
        standing.lost();
        assert!(standing.counts(12), "nothing has been given away");
        standing.gained(13);
        assert!(standing.counts(12) && standing.counts(13));
        standing.told(13);
        assert!(!standing.counts(12));
    }

    #[test]
    fn vouches_hold_open_what_is_open_and_open_nothing() {
        let mut standing = Standing::default();
        standing.go_by_vouches(true);
        assert!(!standing.vouched(true), "fenced from the start");
        standing.gained(11);
        assert!(!standing.vouched(true), "a lease, and nobody has said what is stale");
        standing.told(11);
        assert!(standing.vouched(true) && !standing.vouched(true));
        standing.lost();
        assert!(!standing.is_fenced());
        standing.gained(12);
        assert!(!standing.is_fenced() && !standing.is_open_by_lease(), "across to the next lease");
        assert!(standing.vouched(false) && standing.is_fenced(), "one has not vouched any more");
        assert!(!standing.vouched(true) && standing.is_fenced());
        standing.told(12);
        assert!(standing.vouched(true));
        standing.lost();
        standing.go_by_vouches(false);
        assert!(standing.is_fenced(), "a leader that is not among them");
    }
}
