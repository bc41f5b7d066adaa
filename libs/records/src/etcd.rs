//! etcd as a [`Backend`]: one of its members at a time, and another one when that is silent ([`Members`]).

use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, EventType, GetOptions, KeyValue, KvClient,
    LeaseKeepAliveStream, LeaseKeeper, PutOptions, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse,
    WatchOptions, WatchResponse, WatchStream,
};
use futures::future::BoxFuture;

use crate::backend::{
    Backend, CALL_TIMEOUT, Change, Changes, Condition, Keeper, News, Outcome, Page, Pair, Range, Step,
    Transaction,
};
use crate::lease::is_gone;
use crate::members::{Again, Member, Members, bounded, within};
use crate::{Error, Result, StoreSize};

/// Largest message taken from etcd; a page of values at their bound fits.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Connects when first used and again whenever it must.
pub(crate) struct Etcd(pub Members);

fn kv(client: &Client) -> KvClient {
    client.kv_client().max_decoding_message_size(MESSAGE_BYTES_MAX)
}

impl Backend for Etcd {
    fn get(&self, key: Vec<u8>) -> BoxFuture<'_, Result<Option<Pair>>> {
        Box::pin(async move {
            let get = |client: &Client| {
                let (mut kv, key) = (kv(client), key.clone());
                async move { kv.get(key, None).await }
            };
            let mut response = self.0.ask("get", Again::Always, get).await?;
            Ok(response.take_kvs().into_iter().next().map(pair))
        })
    }

    fn page(&self, (start, end): Range, limit: i64, at: i64) -> BoxFuture<'_, Result<Page>> {
        Box::pin(async move {
            let options = GetOptions::new()
                .with_range(end)
                .with_limit(limit)
                .with_sort(SortTarget::Key, SortOrder::Ascend)
                .with_revision(at);
            let get = |client: &Client| {
                let (mut kv, start, options) = (kv(client), start.clone(), options.clone());
                async move { kv.get(start, Some(options)).await }
            };
            let mut page = self.0.ask("list", Again::Always, get).await?;
            let revision = page.header().map_or(0, |header| header.revision());
            let (pairs, more) = (page.take_kvs(), page.more());
            Ok(Page { pairs: pairs.into_iter().map(pair).collect(), more, revision })
        })
    }

    fn count(&self, (start, end): Range) -> BoxFuture<'_, Result<i64>> {
        Box::pin(async move {
            let options = GetOptions::new().with_range(end).with_count_only();
            let get = |client: &Client| {
                let (mut kv, start, options) = (kv(client), start.clone(), options.clone());
                async move { kv.get(start, Some(options)).await }
            };
            Ok(self.0.ask("count", Again::Always, get).await?.count())
        })
    }

    fn transact(&self, transaction: Transaction) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async move {
            let Transaction { conditions, steps, reads, values, repeatable } = transaction;
            let read = |key: Vec<u8>| {
                let keys_only = (!values).then(|| GetOptions::new().with_keys_only());
                TxnOp::get(key, keys_only)
            };
            let txn = Txn::new()
                .when(conditions.into_iter().map(compare).collect::<Vec<_>>())
                .and_then(steps.into_iter().map(operation).collect::<Vec<_>>())
                .or_else(reads.into_iter().map(read).collect::<Vec<_>>());
            let commit = |client: &Client| {
                let (mut kv, txn) = (kv(client), txn.clone());
                async move { kv.txn(txn).await }
            };
            let again = if repeatable { Again::Always } else { Again::IfNotSent };
            let (response, several) = self.0.ask_several("transaction", again, commit).await?;
            if response.succeeded() {
                return Ok(Outcome::Done(response.header().map_or(0, |header| header.revision())));
            }
            if several {
                // Perhaps because another member has done it, whose answer was not waited for.
                let detail = "asked of two members, and refused by one".to_owned();
                return Err(Error::Unavailable { determinate: false, detail });
            }
            let found = response.op_responses().into_iter().map(|response| match response {
                TxnOpResponse::Get(mut get) => get.take_kvs().into_iter().next().map(pair),
                _ => None,
            });
            Ok(Outcome::Refused(found.collect()))
        })
    }

    fn size(&self) -> BoxFuture<'_, Result<StoreSize>> {
        Box::pin(async move {
            let ask = |client: &Client| {
                let mut maintenance = client.maintenance_client();
                async move { maintenance.status().await }
            };
            let status = self.0.ask("status", Again::Always, ask).await?;
            Ok(StoreSize {
                used_bytes: u64::try_from(status.raft_used_db_size()).unwrap_or(0),
                revision: status.header().map_or(0, etcd_client::ResponseHeader::revision),
                alarms: status.errors().to_vec(),
            })
        })
    }

    fn compact(&self, revision: i64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let compact = |client: &Client| {
                let mut kv = kv(client);
                async move { kv.compact(revision, None).await }
            };
            self.0.ask("compaction", Again::IfNotSent, compact).await.map(drop)
        })
    }

    fn grant(&self, seconds: i64) -> BoxFuture<'_, Result<i64>> {
        Box::pin(async move {
            let grant = |client: &Client| {
                let mut client = client.lease_client();
                async move { client.grant(seconds, None).await }
            };
            Ok(self.0.ask("lease", Again::Always, grant).await?.id())
        })
    }

    fn revoke(&self, lease: i64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let revoke = |client: &Client| {
                let mut client = client.lease_client();
                async move { client.revoke(lease).await }
            };
            self.0.ask("revoke", Again::Always, revoke).await.map(drop)
        })
    }

    fn keep_alive(&self, lease: i64, interval: Duration) -> BoxFuture<'_, Result<Box<dyn Keeper>>> {
        Box::pin(async move {
            // A member that is silent is left in time for another one, if there is one, to be asked before the deadline.
            let patience = match self.0.are_several() {
                true => CALL_TIMEOUT.min(interval),
                false => CALL_TIMEOUT,
            };
            let asked = Asked { member: self.0.current(), members: self.0.clone() };
            let mut client = asked.member.lease_client();
            match within("keepalive", patience, client.keep_alive(lease)).await {
                Ok((keeper, answers)) => {
                    Ok(Box::new(Keepalives { keeper, answers, patience, asked }) as Box<dyn Keeper>)
                }
                Err(error) if is_gone(&error) => Err(error),
                Err(error) => Err(asked.leave(error)),
            }
        })
    }

    fn watch(&self, (start, end): Range, from: i64) -> BoxFuture<'_, Result<Box<dyn Changes>>> {
        Box::pin(async move {
            let options =
                WatchOptions::new().with_range(end).with_start_revision(from).with_progress_notify();
            let asked = Asked { member: self.0.current(), members: self.0.clone() };
            let mut client = asked.member.watch_client().max_decoding_message_size(MESSAGE_BYTES_MAX);
            match bounded("watch", client.watch(start, Some(options))).await {
                Ok(stream) => Ok(Box::new(Watching { stream, asked }) as Box<dyn Changes>),
                Err(error) => Err(asked.leave(error)),
            }
        })
    }
}

/// The member that a stream comes from. It is kept as long as the stream: a connection that no client uses ends.
struct Asked {
    member: Member,
    members: Members,
}

impl Asked {
    /// Has the next member asked from now on.
    fn leave<T>(&self, why: T) -> T {
        self.members.leave(&self.member);
        why
    }
}

struct Keepalives {
    keeper: LeaseKeeper,
    answers: LeaseKeepAliveStream,
    /// Longest wait for one answer.
    patience: Duration,
    asked: Asked,
}

impl Keeper for Keepalives {
    fn renew(&mut self) -> BoxFuture<'_, Result<i64>> {
        Box::pin(async move {
            let answer = async {
                self.keeper.keep_alive().await?;
                self.answers.message().await
            };
            match within("keepalive", self.patience, answer).await {
                Ok(Some(answer)) => Ok(answer.ttl()),
                Ok(None) => {
                    let detail = "it hung up".to_owned();
                    Err(self.asked.leave(Error::Unavailable { determinate: false, detail }))
                }
                Err(error) => Err(self.asked.leave(error)),
            }
        })
    }
}

struct Watching {
    stream: WatchStream,
    asked: Asked,
}

impl Changes for Watching {
    fn next(&mut self) -> BoxFuture<'_, Option<News>> {
        Box::pin(async move {
            match self.stream.message().await {
                Ok(Some(response)) => Some(news(&response)),
                Ok(None) | Err(_) => self.asked.leave(None),
            }
        })
    }
}

fn news(response: &WatchResponse) -> News {
    let change = |event: &etcd_client::Event| {
        let kv = event.kv()?;
        Some(match event.event_type() {
            EventType::Put => Change::Put(pair(kv.clone())),
            EventType::Delete => Change::Delete(kv.key().to_vec()),
        })
    };
    News {
        changes: response.events().iter().filter_map(change).collect(),
        revision: response.header().map_or(0, |header| header.revision()),
        created: response.created(),
        lost: response.canceled() || response.compact_revision() > 0,
    }
}

fn pair(pair: KeyValue) -> Pair {
    let (created, modified) = (pair.create_revision(), pair.mod_revision());
    let (key, value) = pair.into_key_value();
    Pair { key, value, created, modified }
}

fn compare(condition: Condition) -> Compare {
    match condition {
        Condition::Created { key, at } => Compare::create_revision(key, CompareOp::Equal, at),
        Condition::Modified { key, at } => Compare::mod_revision(key, CompareOp::Equal, at),
    }
}

fn operation(step: Step) -> TxnOp {
    match step {
        Step::Put { key, value, lease } => {
            TxnOp::put(key, value, lease.map(|id| PutOptions::new().with_lease(id)))
        }
        Step::Delete { key } => TxnOp::delete(key, None::<DeleteOptions>),
    }
}
