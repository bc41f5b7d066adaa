//! Which hosts are in trouble, and how long those who wait for them have waited.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What the sessions and the faults tell each other.
#[derive(Debug, Default)]
pub struct Trouble {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The fault that is on; empty when none is.
    fault: String,
    /// Ids of hosts whose requests need not be answered now.
    hosts: HashSet<String>,
    /// It is upkeep, during which nothing may fail.
    upkeep: bool,
    /// MicroVMs whose first answer is waited for.
    waiting: HashMap<String, Waiting>,
    waited: Vec<Duration>,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    /// It has been asked since the fault began.
    asked: bool,
    /// What the wait counts from.
    since: Option<Instant>,
}

/// What the waits for first answers count from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// When each microVM was first asked.
    Asked,
    /// Now, whoever asks when.
    Now,
}

impl Trouble {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A fault begins, which takes these hosts.
    pub fn begin(&self, fault: String, hosts: &[String]) {
        let mut state = self.state();
        state.fault = fault;
        state.hosts.extend(hosts.iter().cloned());
    }

    /// Upkeep begins, in which nothing may fail.
    pub fn begin_upkeep(&self, what: String) {
        let mut state = self.state();
        (state.fault, state.upkeep) = (what, true);
    }

    pub fn is_upkeep(&self) -> bool {
        self.state().upkeep
    }

    /// The fault is over, and everything is well again.
    pub fn end(&self) {
        *self.state() = State::default();
    }

    pub fn now(&self) -> String {
        let state = self.state();
        if state.fault.is_empty() { "no fault was on".to_owned() } else { state.fault.clone() }
    }

    pub fn is_healthy(&self, host: &str) -> bool {
        !self.state().hosts.contains(host)
    }

    /// From now on the first answers of these are waited for.
    pub fn wait_for(&self, ids: Vec<String>, since: Since) {
        let since = (since == Since::Now).then(Instant::now);
        let mut state = self.state();
        state.waiting = ids.into_iter().map(|id| (id, Waiting { asked: false, since })).collect();
        state.waited.clear();
    }

    /// A microVM is asked now.
    pub fn asked(&self, id: &str) {
        if let Some(waiting) = self.state().waiting.get_mut(id) {
            waiting.asked = true;
            waiting.since.get_or_insert_with(Instant::now);
        }
    }

    /// A microVM has answered. An answer to what was asked before the fault tells nothing.
    pub fn answered(&self, id: &str) {
        let mut state = self.state();
        if let Some(Waiting { asked: true, since: Some(since) }) = state.waiting.get(id).copied() {
            state.waiting.remove(id);
            state.waited.push(since.elapsed());
        }
    }

    /// Nobody asks a microVM any more.
    pub fn left(&self, id: &str) {
        self.state().waiting.remove(id);
    }

    /// How many still wait, and the longest time that one has waited for its answer.
    pub fn waited(&self) -> (usize, Option<Duration>) {
        let state = self.state();
        (state.waiting.len(), state.waited.iter().max().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_answers_to_later_requests_count() {
        let trouble = Trouble::default();
        trouble.begin("partition host".to_owned(), &["host-1".to_owned()]);
        trouble.wait_for(vec!["a".to_owned(), "b".to_owned()], Since::Asked);
        trouble.answered("a");
        assert_eq!(trouble.waited(), (2, None), "it was asked before the fault");
        trouble.asked("a");
        trouble.answered("a");
        assert!(matches!(trouble.waited(), (1, Some(_))));
        trouble.left("b");
        assert!(matches!(trouble.waited(), (0, Some(_))));
        assert!(!trouble.is_healthy("host-1") && trouble.is_healthy("host-2"));
        trouble.wait_for(vec!["c".to_owned()], Since::Now);
        trouble.answered("c");
        assert_eq!(trouble.waited(), (1, None), "it was asked before the loss");
        trouble.asked("c");
        trouble.answered("c");
        assert!(matches!(trouble.waited(), (0, Some(_))));
        trouble.end();
        assert!(trouble.is_healthy("host-1"));
        trouble.begin_upkeep("upgrade hosts".to_owned());
        assert!(trouble.is_upkeep());
        trouble.end();
        assert!(!trouble.is_upkeep());
        assert_eq!(trouble.now(), "no fault was on");
    }
}
