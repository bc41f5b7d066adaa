//! Network connectors: created, changed and deleted one at a time, durable first,
//! then visible; and what a launch may reach through those it names.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::connector::v1::ComputeResourceType;
use api::hostagent::v1::EgressPolicy;
use model::{ConnectorArn, ConnectorName, ConnectorResource};
use records::Committed;
use uuid::Uuid;

use super::Term;
use crate::adapters::connectors as codec;
use crate::domain::connector::{self, Change, Connector, Content};
use crate::domain::connectors::{Connectors, Entry};
use crate::domain::egress;
use crate::domain::idempotency::{TokenDecision, TokenUse, decide};
use crate::refusal::Refusal;

/// Most calls that wait to change a connector.
const WAITING_MAX: usize = 64;

/// A connector as a caller names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectorRef {
    pub key: ConnectorName,
    pub version: Option<u64>,
}

impl ConnectorRef {
    /// The account's connector that an ARN names; `None` for one of the platform.
    pub fn of(arn: &ConnectorArn) -> Option<Self> {
        match &arn.resource {
            ConnectorResource::Managed(_) => None,
            ConnectorResource::Customer { key, version, .. } => {
                Some(Self { key: key.clone(), version: *version })
            }
        }
    }
}

/// A connector as asked for, checked field by field.
#[derive(Debug, Clone)]
pub struct NewConnector {
    pub name: ConnectorName,
    pub content: Content,
    pub tags: BTreeMap<String, String>,
    pub token: TokenUse,
}

#[derive(Debug, Default)]
pub struct ConnectorStore {
    all: Mutex<Connectors>,
    /// Changes are rare: one at a time, so that names stay unique.
    turn: tokio::sync::Mutex<()>,
    waiting: AtomicUsize,
}

impl ConnectorStore {
    pub fn load(entries: &[(String, records::Versioned)]) -> Self {
        let mut all = Connectors::default();
        for (connector, revision) in codec::decode(entries) {
            all.put(Entry { connector, revision });
        }
        Self { all: Mutex::new(all), ..Self::default() }
    }

    /// The connectors; held for an instant.
    pub fn all(&self) -> MutexGuard<'_, Connectors> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn turn(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, Refusal> {
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed);
        let turn = if waiting < WAITING_MAX {
            Ok(self.turn.lock().await)
        } else {
            Err(Refusal::Busy("the network connectors".to_owned()))
        };
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        turn
    }
}

impl Term {
    pub fn connector(&self, named: &ConnectorRef) -> Result<Arc<Entry>, Refusal> {
        let found = self.connectors.all().find(&named.key);
        let has = |entry: &Arc<Entry>| {
            let version = named.version;
            version.is_none_or(|number| entry.connector.versions.contains_key(&number))
        };
        found.filter(has).ok_or_else(|| Refusal::ConnectorNotFound(self.connector_arn(named).to_string()))
    }

    /// The ARN of a connector as a caller named it.
    pub fn connector_arn(&self, named: &ConnectorRef) -> ConnectorArn {
        let config = self.config();
        ConnectorArn::customer(&config.region, &config.account, named.key.clone(), named.version)
    }

    /// Creates a connector; it is PENDING and durable when this returns. With a
    /// token that was used for the same request, returns that connector.
    pub async fn create_connector(self: &Arc<Self>, asked: NewConnector) -> Result<Arc<Entry>, Refusal> {
        let term = Arc::clone(self);
        self.detached(async move {
            let _turn = term.connectors.turn().await?;
            if let Some(earlier) = term.connectors.all().by_token(&asked.token.token) {
                return match decide(Some(&earlier.connector.created_with), &asked.token) {
                    TokenDecision::Replay => Ok(earlier),
                    TokenDecision::New | TokenDecision::Conflict => Err(Refusal::TokenConflict),
                };
            }
            let (taken, count) = {
                let all = term.connectors.all();
                (all.is_taken(&asked.name), all.count())
            };
            if taken {
                return Err(Refusal::ConnectorExists(asked.name));
            }
            let limit = term.config().quotas.connectors_max;
            if count >= limit {
                return Err(Refusal::Quota {
                    quota: "connectors",
                    limit,
                    text: format!("The limit of {limit} network connectors is reached for this account."),
                });
            }
            let id = format!("nc-{}", Uuid::new_v4()).parse();
            let id: ConnectorName =
                id.map_err(|error: model::IdError| Refusal::Internal(error.to_string()))?;
            let connector =
                Connector::new((id, asked.name), asked.content, asked.tags, asked.token, term.wall());
            term.commit_connector(None, connector).await
        })
        .await
    }

    /// Changes a connector, which makes a new version unless nothing differs.
    pub async fn update_connector(
        self: &Arc<Self>,
        named: ConnectorRef,
        change: Change,
        used: TokenUse,
    ) -> Result<Arc<Entry>, Refusal> {
        let limit = self.config().quotas.connector_versions_max;
        let now = self.wall();
        self.change_connector(named, move |connector| connector.update(&change, used, limit, now)).await
    }

    /// Begins the deletion of a connector, or of the one version that is named.
    pub async fn delete_connector(self: &Arc<Self>, named: ConnectorRef) -> Result<Arc<Entry>, Refusal> {
        let (version, now) = (named.version, self.wall());
        self.change_connector(named, move |connector| connector.delete(version, now)).await
    }

    /// Sets and removes tags of a connector.
    pub async fn tag_connector(
        self: &Arc<Self>,
        named: ConnectorRef,
        set: BTreeMap<String, String>,
        remove: Vec<String>,
    ) -> Result<Arc<Entry>, Refusal> {
        self.change_connector(named, move |connector| connector.tag(set, &remove)).await
    }

    async fn change_connector(
        self: &Arc<Self>,
        named: ConnectorRef,
        change: impl FnOnce(&mut Connector) -> Result<(), connector::Refusal> + Send + 'static,
    ) -> Result<Arc<Entry>, Refusal> {
        let term = Arc::clone(self);
        self.detached(async move {
            let _turn = term.connectors.turn().await?;
            let before = term.connector(&named)?;
            let mut after = before.connector.clone();
            change(&mut after).map_err(|refused| {
                let state = before.connector.life.state(term.wall()).name();
                refusal(refused, &term.connector_arn(&named), state)
            })?;
            if after == before.connector {
                return Ok(before);
            }
            term.commit_connector(Some(&before), after).await
        })
        .await
    }

    /// Makes a connector durable, then visible. The turn must be held.
    async fn commit_connector(
        &self,
        before: Option<&Arc<Entry>>,
        after: Connector,
    ) -> Result<Arc<Entry>, Refusal> {
        let old = before.map(|entry| (&entry.connector, entry.revision));
        match self.commit(codec::writes(old, Some(&after))).await? {
            Committed::At(revision) => {
                let what = if before.is_some() { "changed" } else { "created" };
                tracing::info!(connector = %after.id, name = %after.name, version = after.newest().0,
                    deleting = after.life.deleted.is_some(), "network connector {what}");
                Ok(self.connectors.all().put(Entry { connector: after, revision }))
            }
            Committed::Differs(_) => Err(self.reload_from_store(&after).await),
        }
    }

    /// Removes what has been DELETING for long enough. When that fails, or the leader dies before it, the
    /// next sweep or the next leader does it: the record says since when it is being deleted.
    pub(crate) async fn remove_deleted_connectors(&self) {
        // A change under way goes first; the next sweep is soon.
        let Ok(_turn) = self.connectors.turn.try_lock() else {
            return;
        };
        let now = self.wall();
        let all: Vec<Arc<Entry>> = self.connectors.all().iter().cloned().collect();
        for before in all.into_iter().filter(|entry| entry.connector.has_remains(now)) {
            let removed = match before.connector.clone().without_remains(now) {
                Some(after) => self.commit_connector(Some(&before), after).await.map(drop),
                None => self.remove_connector(&before).await,
            };
            if let Err(refusal) = removed {
                tracing::warn!(connector = %before.connector.id, %refusal, "not removed yet");
            }
        }
    }

    async fn remove_connector(&self, before: &Entry) -> Result<(), Refusal> {
        let connector = &before.connector;
        match self.commit(codec::writes(Some((connector, before.revision)), None)).await? {
            Committed::At(_) => {
                tracing::info!(connector = %connector.id, name = %connector.name, "network connector deleted");
                self.connectors.all().remove(connector);
                Ok(())
            }
            Committed::Differs(_) => Err(self.reload_from_store(connector).await),
        }
    }

    /// Somebody else wrote the connector: etcd is right.
    async fn reload_from_store(&self, ours: &Connector) -> Refusal {
        tracing::warn!(connector = %ours.id, "the connector was changed by somebody else; following it");
        let listed = match self.context.store.list(&codec::key(ours)).await {
            Ok((listed, _)) => listed,
            Err(error) => return error.into(),
        };
        let mut all = self.connectors.all();
        all.remove(ours);
        for (connector, revision) in codec::decode(&listed) {
            all.put(Entry { connector, revision });
        }
        Refusal::Store("the network connector was changed by somebody else".to_owned())
    }

    /// What the customer's connectors among these let out together; absent when none is among them.
    pub(crate) fn egress_policy(&self, connectors: &[ConnectorArn]) -> Result<Option<EgressPolicy>, Refusal> {
        let attached: Vec<ConnectorRef> = connectors.iter().filter_map(ConnectorRef::of).collect();
        if attached.is_empty() {
            return Ok(None);
        }
        let internet = attached.len() < connectors.len();
        let entries = attached.iter().map(|named| self.connector(named));
        let entries: Vec<Arc<Entry>> = entries.collect::<Result<_, _>>()?;
        let mut used = Vec::new();
        for (named, entry) in attached.iter().zip(&entries) {
            let arn = self.connector_arn(named);
            let version = entry.connector.to_launch(named.version, self.wall()).map_err(|state| {
                Refusal::ConnectorState {
                    text: format!("The network connector {arn} is {state}; it must be ACTIVE to be used."),
                    arn: arn.to_string(),
                    state: state.name(),
                }
            })?;
            let configuration = &version.content.configuration;
            let fits = configuration
                .associated_compute_resource_types()
                .any(|kind| kind == ComputeResourceType::MicroVm);
            if !fits {
                return Err(Refusal::sentence(
                    "egressNetworkConnectors",
                    format!("The network connector {arn} is not for compute resources of type MicroVm."),
                ));
            }
            used.push((&entry.connector.tags, configuration.network_protocol()));
        }
        Ok(Some(egress::policy(used.into_iter(), internet)))
    }
}

/// A connector's refusal as the caller's; `state` is the connector's.
fn refusal(refused: connector::Refusal, arn: &ConnectorArn, state: &'static str) -> Refusal {
    use connector::Refusal as R;
    let text = format!("The network connector {arn} {refused}.");
    match refused {
        R::Invalid(violations) => Refusal::Invalid(violations),
        R::TokenConflict => Refusal::TokenConflict,
        R::NoVersion(_) => Refusal::ConnectorNotFound(arn.to_string()),
        R::TooManyVersions(limit) => Refusal::Quota { quota: "connector_versions", limit, text },
        R::ComputeType => Refusal::sentence("configuration.associatedComputeResourceTypes", text),
        R::State(_) | R::Updating | R::Newest(_) => {
            Refusal::ConnectorState { arn: arn.to_string(), state, text }
        }
    }
}
