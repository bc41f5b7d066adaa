//! What is due when: the end of a life or of a suspended window, and the day a
//! terminated record is forgotten. One ordered set for all microVMs.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use model::MicrovmId;
use model::state::MicrovmState;

use super::microvm::{Intent, Microvm};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// End it: its maximum duration or its suspended window is over.
    End,
    Forget,
}

/// The next deadline of a record. `retention` is how long a terminated record stays readable.
pub fn next(microvm: &Microvm, retention: Duration) -> Option<(SystemTime, Due)> {
    if let Some(ended) = microvm.terminate_time {
        return Some((ended + retention, Due::Forget));
    }
    if microvm.intent == Intent::End {
        return None;
    }
    let window = match (microvm.state, microvm.spec.idle_policy) {
        (MicrovmState::Suspended, Some(policy)) => Some(microvm.state_time + policy.suspended),
        _ => None,
    };
    let end = window.map_or(microvm.deadline(), |window| window.min(microvm.deadline()));
    Some((end, Due::End))
}

/// Deadlines of many microVMs, one each.
#[derive(Debug, Default)]
pub struct Timers {
    ordered: BTreeSet<(SystemTime, MicrovmId)>,
    by_id: HashMap<MicrovmId, SystemTime>,
}

impl Timers {
    /// Sets or clears a microVM's deadline.
    pub fn set(&mut self, id: &MicrovmId, deadline: Option<SystemTime>) {
        if self.by_id.get(id).copied() == deadline {
            return;
        }
        if let Some(old) = self.by_id.remove(id) {
            self.ordered.remove(&(old, id.clone()));
        }
        if let Some(deadline) = deadline {
            self.by_id.insert(id.clone(), deadline);
            self.ordered.insert((deadline, id.clone()));
        }
    }

    pub fn earliest(&self) -> Option<SystemTime> {
        self.ordered.first().map(|(deadline, _)| *deadline)
    }

    /// Takes out what is due at `now`, earliest first, at most `limit`.
    pub fn take_due(&mut self, now: SystemTime, limit: usize) -> Vec<MicrovmId> {
        let mut due = Vec::new();
        while due.len() < limit && self.earliest().is_some_and(|deadline| deadline <= now) {
            let (_, id) = self.ordered.pop_first().expect("there is an earliest");
            self.by_id.remove(&id);
            due.push(id);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::super::microvm::IdlePolicy;
    use super::super::microvm::tests::sample;
    use super::*;
    use model::state::MicrovmEvent as E;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn the_next_deadline_of_every_situation() {
        let retention = Duration::from_secs(100);
        let mut microvm = sample(1, at(0));
        microvm.spec.maximum_duration = Duration::from_secs(50);
        assert_eq!(next(&microvm, retention), Some((at(50), Due::End)));
        microvm.apply_event(E::Started, "", at(1)).unwrap();
        microvm.apply_event(E::SuspendDone, "", at(10)).unwrap();
        assert_eq!(next(&microvm, retention), Some((at(50), Due::End)), "no policy, no window");
        let policy = |suspended| IdlePolicy {
            max_idle: Duration::from_secs(60),
            suspended: Duration::from_secs(suspended),
            auto_resume: true,
            awake_while: None,
        };
        for (suspended, expected) in [(0, 10), (5, 15), (40, 50), (4000, 50)] {
            microvm.spec.idle_policy = Some(policy(suspended));
            assert_eq!(next(&microvm, retention), Some((at(expected), Due::End)), "{suspended}");
        }
        microvm.apply_event(E::Started, "", at(12)).unwrap();
        assert_eq!(next(&microvm, retention), Some((at(50), Due::End)), "a wake closes the window");
        microvm.intent = Intent::End;
        microvm.apply_event(E::TerminateBegan, "", at(13)).unwrap();
        assert_eq!(next(&microvm, retention), None, "ending already");
        microvm.apply_event(E::Ended, "", at(14)).unwrap();
        assert_eq!(next(&microvm, retention), Some((at(114), Due::Forget)));
    }

    #[test]
    fn timers_fire_in_order_and_once() {
        let ids: Vec<MicrovmId> = (0..4).map(|n| sample(n, at(0)).id).collect();
        let mut timers = Timers::default();
        timers.set(&ids[0], Some(at(30)));
        timers.set(&ids[1], Some(at(10)));
        timers.set(&ids[2], Some(at(20)));
        timers.set(&ids[3], Some(at(5)));
        timers.set(&ids[3], None);
        timers.set(&ids[0], Some(at(15)));
        assert_eq!(timers.earliest(), Some(at(10)));
        assert_eq!(timers.take_due(at(9), 10), []);
        assert_eq!(timers.take_due(at(30), 2), [ids[1].clone(), ids[0].clone()]);
        assert_eq!(timers.take_due(at(30), 2), [ids[2].clone()]);
        assert_eq!(timers.earliest(), None);
    }
}
