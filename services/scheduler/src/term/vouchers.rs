//! Whose promises a host goes by while it has no lease, and when what it holds may be given to another (RFD 0017).

use std::time::{Duration, SystemTime};

use model::{HostId, Violations};
use records::Expect;

use super::Term;
use super::memory::Memory;
use crate::refusal::Refusal;

/// Prefix of the keys that say whose promises a host goes by.
pub const VOUCHERS: &str = "vouchers/";
/// Most schedulers a host may name, and the longest address.
const VOUCHERS_MAX: usize = 16;
const ADDRESS_LENGTH_MAX: usize = 256;
/// How much longer than [`model::limits::VOUCHED_MAX`] a leader waits that a host does not go by: the two clocks need not run alike.
const MARGIN: Duration = Duration::from_secs(60);

/// What a host is told of the vouchers it has named.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct VouchersReply {
    pub recorded: bool,
    pub withdraw: bool,
}

/// The vouchers of a record; what cannot be read names nobody, and so is waited for longest.
pub(crate) fn read(value: &[u8]) -> Vec<String> {
    serde_json::from_slice(value).unwrap_or_else(|error| {
        tracing::warn!(%error, "a host's vouchers cannot be read");
        vec![String::new()]
    })
}

/// A host's vouchers as it may name them.
///
/// # Errors
/// Names the field and the limit.
pub fn check(vouchers: &[String]) -> Result<(), Refusal> {
    let mut violations = Violations::default();
    let few = vouchers.len() <= VOUCHERS_MAX;
    violations.check(few, "vouchers", format!("must name at most {VOUCHERS_MAX} schedulers"));
    let short = vouchers.iter().all(|address| (1..=ADDRESS_LENGTH_MAX).contains(&address.len()));
    violations.check(short, "vouchers", format!("must be addresses of 1 to {ADDRESS_LENGTH_MAX} characters"));
    violations.finish().map_err(Refusal::Invalid)
}

impl Term {
    /// Records whose promises a host will go by, durably before it is told so. Those among whom this scheduler is not are no
    /// proof while it leads: they are not recorded, and what is recorded is to be withdrawn by the host, which stops going by
    /// it first.
    pub(crate) async fn record_vouchers(
        &self,
        host: &HostId,
        vouchers: Vec<String>,
    ) -> Result<VouchersReply, Refusal> {
        let recorded = self.memory().hosts.vouchers(host).to_vec();
        let listed = vouchers.iter().any(|address| address == self.context.vouches.scheduler());
        if !vouchers.is_empty() && !listed {
            return Ok(VouchersReply { recorded: false, withdraw: !recorded.is_empty() });
        }
        if vouchers != recorded {
            let key = format!("{VOUCHERS}{host}");
            let (store, guard) = (&self.context.store, Some(&self.leadership));
            // Dying after this write, before the answer: the host does not go by them yet, and the next leader waits for
            // promises that nobody needs.
            if vouchers.is_empty() {
                store.delete_if(&key, Expect::Any, guard).await?;
            } else {
                let value = serde_json::to_vec(&vouchers).unwrap_or_default();
                store.put_if(&key, value, Expect::Any, guard).await?;
            }
            self.memory().hosts.set_vouchers(host, vouchers);
        }
        Ok(VouchersReply { recorded: listed, withdraw: false })
    }

    /// Whether what a host holds may be given to another, or up: its lease has been gone for `grace`, and nobody's promise
    /// lets it go on.
    pub(crate) fn may_give_up(&self, memory: &Memory, id: &HostId, grace: Duration, now: SystemTime) -> bool {
        let Some(host) = memory.hosts.get(id).filter(|host| host.gone_for(grace, now)) else {
            return false;
        };
        let (vouchers, vouches) = (memory.hosts.vouchers(id), &self.context.vouches);
        if vouchers.is_empty() {
            return true;
        }
        // It goes on by the promises of all of them: that ours is over stops it. The time that it goes on for at most does, too.
        let ours = vouchers.iter().any(|address| address == vouches.scheduler());
        (ours && !vouches.binds(id)) || host.gone_for(model::limits::VOUCHED_MAX + MARGIN, now)
    }
}
