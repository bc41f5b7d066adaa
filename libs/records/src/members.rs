//! The members of etcd's cluster, of which one is asked at a time.
//!
//! All calls go to the same member until it does not answer; then all of them go to the next. So the loss of a member is
//! felt by the calls that it had, and by no later ones. A call that was never sent is made again at the next member. One that does
//! no harm when it is made twice does not wait for a member that is silent: after [`HEDGE_AFTER`] the next one is asked as well.

use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions};
use futures::future::{Either, select};
use futures::{FutureExt as _, TryFutureExt as _};
use reload::Reloaded;

use crate::backend::{self, CALL_TIMEOUT};
use crate::options::{Options, TlsFiles};
use crate::{Error, Result};

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long one member is waited for alone. A cluster on good disks answers in a few milliseconds; one that is slow gets each call
/// twice, and no more.
const HEDGE_AFTER: Duration = Duration::from_millis(200);
/// Interval of, and patience with, HTTP/2 pings: a dead peer is noticed.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(2));

/// Clones share the connections and the member that is asked.
#[derive(Clone)]
pub(crate) struct Members {
    /// A client of each, with the certificate and the CA that the files hold.
    clients: Arc<Reloaded<Vec<Client>>>,
    count: usize,
    current: Arc<AtomicUsize>,
}

/// One of them.
pub(crate) struct Member {
    clients: Arc<Vec<Client>>,
    place: usize,
}

impl Deref for Member {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.clients[self.place]
    }
}

/// Whether a call may be made at another member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// It does no harm when it is made twice.
    Always,
    /// It is made at another member only when it certainly did not reach this one.
    IfNotSent,
}

impl Members {
    /// Prepares a connection to each; does not wait for any of them.
    pub fn new(options: &Options) -> Result<Self> {
        let count = options.endpoints.len();
        if count == 0 {
            return Err(Error::Settings { detail: "no endpoints".to_owned() });
        }
        let files = options.tls.as_ref().map(TlsFiles::paths).unwrap_or_default();
        let options = options.clone();
        let clients = Reloaded::load(files, move || connect(&options))?;
        Ok(Self { clients: Arc::new(clients), count, current: Arc::default() })
    }

    /// The member that is asked now.
    pub fn current(&self) -> Member {
        Member { clients: self.clients.current(), place: self.current.load(Ordering::Relaxed) % self.count }
    }

    pub fn are_several(&self) -> bool {
        self.count > 1
    }

    /// To be called when a member did not answer: the next one is asked from now on, unless another call has found out before.
    pub fn leave(&self, member: &Member) {
        let next = (member.place + 1) % self.count;
        let _ = self.current.compare_exchange(member.place, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Makes a call, each attempt within [`CALL_TIMEOUT`].
    pub async fn ask<T, A>(&self, what: &str, again: Again, call: impl Fn(&Client) -> A) -> Result<T>
    where
        A: Future<Output = std::result::Result<T, etcd_client::Error>>,
    {
        self.ask_several(what, again, call).await.map(|(answer, _)| answer)
    }

    /// The same. With the answer comes whether another member may have done what was asked for, too.
    pub async fn ask_several<T, A>(
        &self,
        what: &str,
        again: Again,
        call: impl Fn(&Client) -> A,
    ) -> Result<(T, bool)>
    where
        A: Future<Output = std::result::Result<T, etcd_client::Error>>,
    {
        let mut attempts = self.count;
        let mut several = false;
        loop {
            let member = self.current();
            let answer = match again {
                Again::Always => self.hedged(what, &member, &call, &mut several).await,
                Again::IfNotSent => bounded(what, call(&member)).await,
            };
            attempts -= 1;
            match answer {
                Err(error) if error.is_unavailable() => {
                    self.leave(&member);
                    if attempts == 0 || (again == Again::IfNotSent && !error.is_determinate()) {
                        return Err(error);
                    }
                    several |= !error.is_determinate();
                    tracing::debug!(%error, what, "asking another member of etcd");
                }
                other => return other.map(|answer| (answer, several)),
            }
        }
    }

    /// Asks a member, and the next one as well when that is silent for a while. Whichever answers first is gone by, and asked from
    /// now on; the other call is given up.
    async fn hedged<T, A>(
        &self,
        what: &str,
        member: &Member,
        call: &impl Fn(&Client) -> A,
        several: &mut bool,
    ) -> Result<T>
    where
        A: Future<Output = std::result::Result<T, etcd_client::Error>>,
    {
        let mut first = Box::pin(bounded(what, call(member)));
        if !self.are_several() {
            return first.await;
        }
        if let Ok(answer) = tokio::time::timeout(HEDGE_AFTER, &mut first).await {
            return answer;
        }
        let next = Member { clients: Arc::clone(&member.clients), place: (member.place + 1) % self.count };
        *several = true;
        let second = Box::pin(bounded(what, call(&next)));
        let (answer, by_next) = match select(first, second).await {
            Either::Left((Err(error), second)) if error.is_unavailable() => (second.await, true),
            Either::Right((Err(error), first)) if error.is_unavailable() => (first.await, false),
            Either::Left((answer, _)) => (answer, false),
            Either::Right((answer, _)) => (answer, true),
        };
        if by_next && answer.is_ok() {
            tracing::debug!(what, "another member of etcd answered first");
            self.leave(member);
        }
        answer
    }
}

/// Clients that connect when they are first used.
fn connect(options: &Options) -> Result<Vec<Client>> {
    let mut connect = ConnectOptions::new()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1)
        .with_keep_alive_while_idle(true)
        .with_require_leader(true);
    if let Some(tls) = &options.tls {
        connect = connect.with_tls(tls.read()?);
    }
    let unusable = |detail| Error::Settings { detail };
    let client = |endpoint: &String| {
        // Without a password it asks nobody anything, so there is nothing to wait for.
        let connected = Client::connect([endpoint], Some(connect.clone())).now_or_never();
        let client = connected.ok_or_else(|| unusable("the client has to wait for something".to_owned()))?;
        client.map_err(|error| unusable(error.to_string()))
    };
    options.endpoints.iter().map(client).collect()
}

/// Waits for an answer of etcd.
pub(crate) async fn within<T>(
    what: &str,
    timeout: Duration,
    call: impl Future<Output = std::result::Result<T, etcd_client::Error>>,
) -> Result<T> {
    backend::within(what, timeout, call.map_err(Error::from_etcd)).await
}

/// Waits for an answer of etcd at most [`CALL_TIMEOUT`].
pub(crate) async fn bounded<T>(
    what: &str,
    call: impl Future<Output = std::result::Result<T, etcd_client::Error>>,
) -> Result<T> {
    within(what, CALL_TIMEOUT, call).await
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use settings::EtcdSettings;
    use tokio::time::Instant;

    use super::*;

    /// Members that nobody connects to.
    fn members(count: usize) -> Members {
        let endpoints = (1..=count).map(|port| format!("http://127.0.0.1:{port}")).collect();
        let settings = EtcdSettings { endpoints, ..EtcdSettings::default() };
        Members::new(&Options::from(&settings)).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_member_is_not_waited_for_where_asking_twice_does_no_harm() {
        for (count, again, expected, elapsed) in [
            (2, Again::Always, Some(true), HEDGE_AFTER),
            // Of a change that must not be made twice nothing is known when its member says nothing.
            (2, Again::IfNotSent, None, CALL_TIMEOUT),
            (1, Again::Always, None, CALL_TIMEOUT),
        ] {
            let (members, calls) = (members(count), AtomicUsize::new(0));
            let started = Instant::now();
            let answer = members.ask_several("test", again, |_| {
                let first = calls.fetch_add(1, Ordering::Relaxed) == 0;
                async move { if first { pending().await } else { ready(Ok(())).await } }
            });
            let answer = answer.await.ok().map(|((), several)| several);
            assert_eq!((answer, started.elapsed()), (expected, elapsed), "{count} {again:?}");
            assert_eq!(members.current().place, if count == 1 { 0 } else { 1 }, "it is left");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_member_that_answers_first_all_the_same_is_kept() {
        let (members, calls) = (members(3), AtomicUsize::new(0));
        let answer = members.ask_several("test", Again::Always, |_| {
            let first = calls.fetch_add(1, Ordering::Relaxed) == 0;
            let takes = if first { HEDGE_AFTER * 2 } else { HEDGE_AFTER * 3 };
            async move {
                tokio::time::sleep(takes).await;
                Ok(first)
            }
        });
        assert_eq!(answer.await.unwrap(), (true, true));
        assert_eq!((members.current().place, calls.into_inner()), (0, 2));
    }
}
