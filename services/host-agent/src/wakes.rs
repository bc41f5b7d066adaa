//! How many microVMs this host wakes at a time, and whose turn is next.
//!
//! A wake is work for processors and disks. A hundred at once would each take a hundred times as long, and all of them could
//! come too late for their callers. So beyond `limits.wakes_at_once` microVMs queue: first come, first served among those of
//! one image, while the images take turns. An image whose users all come back at once so waits behind itself.
//!
//! A microVM has one place in the queue, however many callers wait for it; it leaves the queue with the last of them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio_util::sync::CancellationToken;

/// Whose turn it is to be woken. Held by the host and shared by all who wake.
pub struct Wakes {
    at_once: usize,
    waiting_max: usize,
    state: Mutex<State>,
}

/// A microVM's turn to be woken, or its place in the queue, for as long as one of its callers holds it.
pub struct Turn {
    wakes: Arc<Wakes>,
    microvm: Arc<str>,
    /// Since when it had to wait; `None` when its turn came at once.
    waited_since: Option<Instant>,
}

/// The queue is as long as it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{waiting} microVMs wait to be woken on this host already (limits.wakes_waiting)")]
pub struct QueueFull {
    waiting: usize,
}

#[derive(Default)]
struct State {
    under_way: usize,
    /// By microVM: those being woken, and those that queue.
    places: HashMap<Arc<str>, Place>,
    queue: Queue,
}

struct Place {
    image: Arc<str>,
    callers: usize,
    /// Cancelled when its turn has come.
    come: CancellationToken,
}

/// Lines of microVMs, one per image, that are served in turn.
#[derive(Default)]
struct Queue {
    lines: HashMap<Arc<str>, VecDeque<Arc<str>>>,
    /// Images that have a line, the one to be served next first.
    order: VecDeque<Arc<str>>,
    waiting: usize,
}

impl Wakes {
    /// At most `at_once` wakes at a time, and `waiting_max` microVMs that wait for one.
    pub fn new(at_once: usize, waiting_max: usize) -> Arc<Self> {
        Arc::new(Self { at_once, waiting_max, state: Mutex::default() })
    }

    /// Waits for the microVM's turn. A caller that goes away while it waits leaves the queue.
    ///
    /// # Errors
    /// When the queue is full.
    pub async fn turn(self: &Arc<Self>, microvm: &str, image: &str) -> Result<Turn, QueueFull> {
        let (mut turn, come) = self.place(microvm, image)?;
        if !come.is_cancelled() {
            turn.waited_since = Some(Instant::now());
            come.cancelled().await;
        }
        Ok(turn)
    }

    /// MicroVMs that wait for their turn.
    pub fn waiting(&self) -> usize {
        self.state().queue.waiting
    }

    /// The microVM's place, shared with its other callers, and what is cancelled when its turn comes.
    fn place(self: &Arc<Self>, microvm: &str, image: &str) -> Result<(Turn, CancellationToken), QueueFull> {
        let mut state = self.state();
        let microvm = match state.places.get_key_value(microvm) {
            Some((known, _)) => Arc::clone(known),
            None => {
                let waiting = state.queue.waiting;
                if state.under_way >= self.at_once && waiting >= self.waiting_max {
                    return Err(QueueFull { waiting });
                }
                let (microvm, image) = (Arc::<str>::from(microvm), Arc::<str>::from(image));
                state.queue.push(&image, &microvm);
                let place = Place { image, callers: 0, come: CancellationToken::new() };
                state.places.insert(Arc::clone(&microvm), place);
                state.serve(self.at_once);
                microvm
            }
        };
        let place = state.places.get_mut(&microvm).expect("it was found or made above");
        place.callers += 1;
        let come = place.come.clone();
        Ok((Turn { wakes: Arc::clone(self), microvm, waited_since: None }, come))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// Since when it had to wait; `None` when its turn came at once.
    pub fn waited_since(&self) -> Option<Instant> {
        self.waited_since
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.wakes.state();
        let Some(place) = state.places.get_mut(&self.microvm) else { return };
        place.callers -= 1;
        if place.callers > 0 {
            return;
        }
        let (image, had_its_turn) = (Arc::clone(&place.image), place.come.is_cancelled());
        state.places.remove(&self.microvm);
        if had_its_turn {
            state.under_way -= 1;
            state.serve(self.wakes.at_once);
        } else {
            state.queue.remove(&image, &self.microvm);
        }
    }
}

impl State {
    /// Lets those at the front have their turn, as many as may.
    fn serve(&mut self, at_once: usize) {
        while self.under_way < at_once
            && let Some(microvm) = self.queue.pop()
        {
            self.under_way += 1;
            self.places[&microvm].come.cancel();
        }
    }
}

impl Queue {
    fn push(&mut self, image: &Arc<str>, microvm: &Arc<str>) {
        let line = self.lines.entry(Arc::clone(image)).or_default();
        if line.is_empty() {
            self.order.push_back(Arc::clone(image));
        }
        line.push_back(Arc::clone(microvm));
        self.waiting += 1;
    }

    /// The first of the line whose turn it is; the line goes to the end of the order.
    fn pop(&mut self) -> Option<Arc<str>> {
        let image = self.order.pop_front()?;
        let line = self.lines.get_mut(&image)?;
        let microvm = line.pop_front()?;
        self.waiting -= 1;
        if line.is_empty() {
            self.lines.remove(&image);
        } else {
            self.order.push_back(image);
        }
        Some(microvm)
    }

    fn remove(&mut self, image: &Arc<str>, microvm: &Arc<str>) {
        let Some(line) = self.lines.get_mut(image) else { return };
        let before = line.len();
        line.retain(|waiting| waiting != microvm);
        self.waiting -= before - line.len();
        if line.is_empty() {
            self.lines.remove(image);
            self.order.retain(|other| other != image);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::future::join_all;
    use tokio::task::JoinHandle;

    use super::*;

    const RESTORE: Duration = Duration::from_millis(150);

    /// Callers of one queue, and the order in which their microVMs were woken.
    struct Callers {
        wakes: Arc<Wakes>,
        woken: Arc<Mutex<Vec<String>>>,
    }

    impl Callers {
        fn new(at_once: usize, waiting_max: usize) -> Self {
            Self { wakes: Wakes::new(at_once, waiting_max), woken: Arc::default() }
        }

        /// A caller that takes its place in the queue before this returns.
        async fn call(&self, image: &str, number: usize) -> JoinHandle<Result<(), QueueFull>> {
            let (wakes, woken) = (Arc::clone(&self.wakes), Arc::clone(&self.woken));
            let (image, microvm) = (image.to_owned(), format!("{image}-{number}"));
            let called = tokio::spawn(async move {
                let turn = wakes.turn(&microvm, &image).await?;
                tokio::time::sleep(RESTORE).await;
                woken.lock().unwrap().push(microvm);
                drop(turn);
                Ok(())
            });
            tokio::task::yield_now().await;
            called
        }

        fn woken(&self) -> Vec<String> {
            self.woken.lock().unwrap().clone()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn two_hundred_at_once_are_all_woken_and_a_crowd_waits_behind_itself() {
        let callers = Callers::new(16, 200);
        let began = tokio::time::Instant::now();
        let mut calls = Vec::new();
        for number in 0..190 {
            calls.push(callers.call("crowd", number).await);
        }
        for number in 0..10 {
            calls.push(callers.call("few", number).await);
        }
        assert_eq!(callers.wakes.waiting(), 184);
        for call in join_all(calls).await {
            call.unwrap().unwrap();
        }
        // 200 wakes, 16 at a time: 13 rounds.
        assert_eq!(began.elapsed(), RESTORE * 13);
        let woken = callers.woken();
        assert_eq!(woken.len(), 200);
        let of = |image: &str| woken.iter().filter(|one| one.starts_with(image)).cloned().collect::<Vec<_>>();
        // First come, first served within an image.
        for (image, count) in [("crowd", 190), ("few", 10)] {
            assert_eq!(of(image), (0..count).map(|number| format!("{image}-{number}")).collect::<Vec<_>>());
        }
        // Every second turn after the first round was one of the few's, until there were no more.
        let last = woken.iter().rposition(|one| one.starts_with("few")).unwrap();
        assert_eq!(last, 16 + 2 * 10 - 1);
        assert_eq!((callers.wakes.waiting(), callers.wakes.state().places.len()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_goes_away_leaves_the_queue() {
        let callers = Callers::new(1, 10);
        let first = callers.call("app", 0).await;
        let (left, stays) = (callers.call("app", 1).await, callers.call("app", 2).await);
        left.abort();
        assert!(left.await.unwrap_err().is_cancelled());
        assert_eq!(callers.wakes.waiting(), 1);
        // Its line goes with the last one in it.
        let alone = callers.call("other", 0).await;
        alone.abort();
        let _ = alone.await;
        first.await.unwrap().unwrap();
        stays.await.unwrap().unwrap();
        assert_eq!(callers.woken(), ["app-0", "app-2"]);
        assert!(callers.wakes.state().queue.lines.is_empty() && callers.wakes.state().queue.order.is_empty());
        // A turn that nobody takes goes to the next.
        let turn = callers.wakes.turn("app-0", "app").await.unwrap();
        assert_eq!(turn.waited_since(), None);
        let (gone, next) = (callers.call("app", 3).await, callers.call("app", 4).await);
        drop(turn);
        gone.abort();
        next.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn callers_of_one_microvm_share_its_place() {
        let wakes = Wakes::new(1, 10);
        let first = wakes.turn("a", "app").await.unwrap();
        let again = wakes.turn("a", "app").await.unwrap();
        let wait = |microvm: &'static str| {
            let wakes = Arc::clone(&wakes);
            async move { wakes.turn(microvm, "app").await.unwrap() }
        };
        let (mut b, mut same, mut c) = (Box::pin(wait("b")), Box::pin(wait("b")), Box::pin(wait("c")));
        for waiting in [&mut b, &mut same, &mut c] {
            assert!(futures::poll!(waiting).is_pending());
        }
        assert_eq!(wakes.waiting(), 2);
        // The other caller of "b" keeps its place before "c".
        drop(b);
        drop(first);
        assert!(futures::poll!(&mut same).is_pending());
        drop(again);
        let turn = same.await;
        assert!(turn.waited_since().is_some());
        assert!(futures::poll!(&mut c).is_pending());
        drop(turn);
        drop(c.await);
        assert_eq!(wakes.state().under_way, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_refuses_and_says_which_limit() {
        let wakes = Wakes::new(1, 1);
        let turn = wakes.turn("a", "app").await.unwrap();
        let mut queued = Box::pin(wakes.turn("b", "app"));
        assert!(futures::poll!(&mut queued).is_pending());
        let refused = wakes.turn("c", "other").await.map(drop).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "1 microVMs wait to be woken on this host already (limits.wakes_waiting)"
        );
        // Another caller of one that has a place adds nothing.
        let mut same = Box::pin(wakes.turn("b", "app"));
        assert!(futures::poll!(&mut same).is_pending());
        drop(turn);
        drop(queued.await.unwrap());
        drop(same.await.unwrap());
        drop(wakes.turn("c", "other").await.unwrap());
    }
}
