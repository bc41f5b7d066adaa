//! etcd as a [`Backend`].

use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, DeleteOptions, EventType, GetOptions, KeyValue,
    LeaseKeepAliveStream, LeaseKeeper, PutOptions, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse,
    WatchOptions, WatchResponse, WatchStream,
};
use futures::future::BoxFuture;

use crate::backend::{
    Backend, Change, Changes, Condition, Keeper, News, Outcome, Page, Pair, Range, Step, Transaction,
};
use crate::options::{Options, tls_options};
use crate::{Error, Result, StoreSize};

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval of, and patience with, HTTP/2 pings: a dead peer is noticed.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(2));
/// Largest message taken from etcd; a page of values at their bound fits.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Connects when first used and again whenever it must.
pub(crate) struct Etcd(Client);

impl Etcd {
    pub(crate) async fn connect(options: &Options) -> Result<Self> {
        if options.endpoints.is_empty() {
            return Err(Error::Settings { detail: "no endpoints".to_owned() });
        }
        let mut connect = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if let Some(tls) = &options.tls {
            connect = connect.with_tls(tls_options(tls).await?);
        }
        let client = Client::connect(&options.endpoints, Some(connect))
            .await
            .map_err(|error| Error::Settings { detail: error.to_string() })?;
        Ok(Self(client))
    }

    fn kv(&self) -> etcd_client::KvClient {
        self.0.kv_client().max_decoding_message_size(MESSAGE_BYTES_MAX)
    }
}

impl Backend for Etcd {
    fn get(&self, key: Vec<u8>) -> BoxFuture<'_, Result<Option<Pair>>> {
        Box::pin(async move {
            let mut response = self.kv().get(key, None).await.map_err(Error::from_etcd)?;
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
            let mut page = self.kv().get(start, Some(options)).await.map_err(Error::from_etcd)?;
            let revision = page.header().map_or(0, |header| header.revision());
            let (pairs, more) = (page.take_kvs(), page.more());
            Ok(Page { pairs: pairs.into_iter().map(pair).collect(), more, revision })
        })
    }

    fn count(&self, (start, end): Range) -> BoxFuture<'_, Result<i64>> {
        Box::pin(async move {
            let options = GetOptions::new().with_range(end).with_count_only();
            let response = self.kv().get(start, Some(options)).await.map_err(Error::from_etcd)?;
            Ok(response.count())
        })
    }

    fn transact(&self, transaction: Transaction) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async move {
            let Transaction { conditions, steps, reads, values } = transaction;
            let read = |key: Vec<u8>| {
                let keys_only = (!values).then(|| GetOptions::new().with_keys_only());
                TxnOp::get(key, keys_only)
            };
            let txn = Txn::new()
                .when(conditions.into_iter().map(compare).collect::<Vec<_>>())
                .and_then(steps.into_iter().map(operation).collect::<Vec<_>>())
                .or_else(reads.into_iter().map(read).collect::<Vec<_>>());
            let response = self.kv().txn(txn).await.map_err(Error::from_etcd)?;
            if response.succeeded() {
                return Ok(Outcome::Done(response.header().map_or(0, |header| header.revision())));
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
            let status = self.0.maintenance_client().status().await.map_err(Error::from_etcd)?;
            Ok(StoreSize {
                used_bytes: u64::try_from(status.raft_used_db_size()).unwrap_or(0),
                revision: status.header().map_or(0, etcd_client::ResponseHeader::revision),
                alarms: status.errors().to_vec(),
            })
        })
    }

    fn compact(&self, revision: i64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.kv().compact(revision, None).await.map(drop).map_err(Error::from_etcd) })
    }

    fn grant(&self, seconds: i64) -> BoxFuture<'_, Result<i64>> {
        Box::pin(async move {
            let granted = self.0.lease_client().grant(seconds, None).await;
            Ok(granted.map_err(Error::from_etcd)?.id())
        })
    }

    fn revoke(&self, lease: i64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.0.lease_client().revoke(lease).await.map(drop).map_err(Error::from_etcd) })
    }

    fn keep_alive(&self, lease: i64) -> BoxFuture<'_, Result<Box<dyn Keeper>>> {
        Box::pin(async move {
            let (keeper, answers) =
                self.0.lease_client().keep_alive(lease).await.map_err(Error::from_etcd)?;
            Ok(Box::new(Keepalives { keeper, answers }) as Box<dyn Keeper>)
        })
    }

    fn watch(&self, (start, end): Range, from: i64) -> BoxFuture<'_, Result<Box<dyn Changes>>> {
        Box::pin(async move {
            let options =
                WatchOptions::new().with_range(end).with_start_revision(from).with_progress_notify();
            let mut client = self.0.watch_client().max_decoding_message_size(MESSAGE_BYTES_MAX);
            let stream = client.watch(start, Some(options)).await.map_err(Error::from_etcd)?;
            Ok(Box::new(stream) as Box<dyn Changes>)
        })
    }
}

struct Keepalives {
    keeper: LeaseKeeper,
    answers: LeaseKeepAliveStream,
}

impl Keeper for Keepalives {
    fn renew(&mut self) -> BoxFuture<'_, Result<i64>> {
        Box::pin(async move {
            self.keeper.keep_alive().await.map_err(Error::from_etcd)?;
            match self.answers.message().await.map_err(Error::from_etcd)? {
                Some(answer) => Ok(answer.ttl()),
                None => Err(Error::Unavailable { determinate: false, detail: "it hung up".to_owned() }),
            }
        })
    }
}

impl Changes for WatchStream {
    fn next(&mut self) -> BoxFuture<'_, Option<News>> {
        Box::pin(async move { self.message().await.ok().flatten().map(|response| news(&response)) })
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
