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
    /// MicroVMs whose first answer is waited for, and since when.
    waiting: HashSet<String>,
    since: Option<Instant>,
    waited: HashMap<String, Duration>,
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
    pub fn wait_for(&self, ids: Vec<String>) {
        let mut state = self.state();
        state.waiting = ids.into_iter().collect();
        state.since = Some(Instant::now());
        state.waited.clear();
    }

    /// A microVM has answered a request that was sent at `started`.
    pub fn answered(&self, id: &str, started: Instant) {
        let mut state = self.state();
        let Some(since) = state.since.filter(|since| started >= *since) else { return };
        if state.waiting.remove(id) {
            state.waited.insert(id.to_owned(), since.elapsed());
        }
    }

    /// How many still wait, and the longest time that one has waited for its answer.
    pub fn waited(&self) -> (usize, Option<Duration>) {
        let state = self.state();
        (state.waiting.len(), state.waited.values().max().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_answers_to_later_requests_count() {
        let trouble = Trouble::default();
        let before = Instant::now();
        trouble.begin("partition host".to_owned(), &["host-1".to_owned()]);
        trouble.wait_for(vec!["a".to_owned(), "b".to_owned()]);
        trouble.answered("a", before);
        assert_eq!(trouble.waited(), (2, None), "it was sent before the fault");
        trouble.answered("a", Instant::now());
        assert!(matches!(trouble.waited(), (1, Some(_))));
        assert!(!trouble.is_healthy("host-1") && trouble.is_healthy("host-2"));
        trouble.end();
        assert!(trouble.is_healthy("host-1"));
        assert_eq!(trouble.now(), "no fault was on");
    }
}
