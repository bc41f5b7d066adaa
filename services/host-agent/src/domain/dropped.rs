//! What a host has dropped a moment ago: a wake or launch of that placement may still be on its way, and must not bring it back
//! beside the one that goes on elsewhere.

use std::collections::BTreeMap;
use std::time::Duration;

/// How long it is kept: longer than a call can be on its way. The connection it came by has ended long before.
const KEPT: Duration = Duration::from_secs(60);
/// Most that are kept; the oldest go first.
const KEPT_MAX: usize = 10_000;

/// Generations that were dropped, by microVM; of one agent's life, because the next has another lease.
#[derive(Debug, Default)]
pub struct Dropped {
    by_id: BTreeMap<String, (u64, Duration)>,
}

impl Dropped {
    /// Notes at an uptime that a placement is given up here, and every older one.
    pub fn note(&mut self, id: &str, generation: u64, now: Duration) {
        self.by_id.retain(|_, (_, at)| *at + KEPT > now);
        if self.by_id.len() >= KEPT_MAX
            && let Some(oldest) = self.by_id.iter().min_by_key(|(_, (_, at))| *at).map(|(id, _)| id.clone())
        {
            self.by_id.remove(&oldest);
        }
        let (known, at) = self.by_id.entry(id.to_owned()).or_default();
        (*known, *at) = (generation.max(*known), now);
    }

    /// Whether a command of this generation is too late.
    pub fn is_late(&self, id: &str, generation: u64, now: Duration) -> bool {
        self.by_id.get(id).is_some_and(|(dropped, at)| generation <= *dropped && *at + KEPT > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_dropped_stays_so_for_a_while() {
        let mut dropped = Dropped::default();
        let at = Duration::from_secs;
        dropped.note("a", 3, at(100));
        assert!(dropped.is_late("a", 3, at(101)) && dropped.is_late("a", 2, at(159)));
        assert!(!dropped.is_late("a", 4, at(101)) && !dropped.is_late("b", 1, at(101)));
        assert!(!dropped.is_late("a", 3, at(160)));
        dropped.note("a", 2, at(110));
        assert!(dropped.is_late("a", 3, at(165)), "the newest counts");
    }

    #[test]
    fn no_more_are_kept_than_may_be() {
        let mut dropped = Dropped::default();
        for number in 0..=KEPT_MAX {
            let millis = u64::try_from(number).unwrap();
            dropped.note(&number.to_string(), 1, Duration::from_millis(millis));
        }
        assert_eq!(dropped.by_id.len(), KEPT_MAX);
        assert!(!dropped.by_id.contains_key("0"));
    }
}
