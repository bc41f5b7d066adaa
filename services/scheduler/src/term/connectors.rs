//! Network connectors: created, changed and deleted one at a time, durable
//! first, then visible; settled a moment later, by the next leader if need be.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use api::connector::v1::NetworkProtocol;
use model::limits::TAGS_MAX;
use model::{ConnectorArn, ConnectorName, ConnectorResource, Violations};
use uuid::Uuid;

use super::durable::Committed;
use super::{BACKOFF_FIRST, Term, pause};
use crate::adapters::connectors as codec;
use crate::domain::connector::{Change, Connector, Content, Illegal};
use crate::domain::connectors::{Connectors, Entry};
use crate::domain::egress;
use crate::domain::idempotency::{TokenUse, Verdict, judge};
use crate::refusal::Refusal;

/// Most calls that wait to change a connector.
const WAITING_MAX: usize = 64;

/// A connector as a caller names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectorRef {
    /// Its id or name.
    pub key: ConnectorName,
    /// One version of it.
    pub version: Option<u64>,
}

impl ConnectorRef {
    /// The account's connector that an ARN names; `None` for one of the platform.
    #[must_use]
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
    /// Its name.
    pub name: ConnectorName,
    /// What it is made of.
    pub content: Content,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// The caller's token and the digest of the request.
    pub token: TokenUse,
}

/// The connectors of a term.
#[derive(Debug, Default)]
pub struct Shelf {
    all: Mutex<Connectors>,
    /// Changes are rare: one at a time, so that names stay unique.
    turn: tokio::sync::Mutex<()>,
    waiting: AtomicUsize,
}

impl Shelf {
    /// What etcd listed.
    #[must_use]
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
    /// A connector.
    ///
    /// # Errors
    /// [`Refusal::ConnectorNotFound`].
    pub fn connector(&self, named: &ConnectorRef) -> Result<Arc<Entry>, Refusal> {
        let found = self.connectors.all().find(&named.key);
        let has = |entry: &Arc<Entry>| {
            let version = named.version;
            version.is_none_or(|number| entry.connector.versions.contains_key(&number))
        };
        found.filter(has).ok_or_else(|| Refusal::ConnectorNotFound(self.connector_arn(named).to_string()))
    }

    /// The ARN of a connector as a caller named it.
    #[must_use]
    pub fn connector_arn(&self, named: &ConnectorRef) -> ConnectorArn {
        let settings = self.settings();
        ConnectorArn::customer(&settings.region, &settings.account, named.key.clone(), named.version)
    }

    /// Creates a connector; it is PENDING and durable when this returns. With a
    /// token that was used for the same request, returns that connector.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is left behind.
    pub async fn create_connector(self: &Arc<Self>, asked: NewConnector) -> Result<Arc<Entry>, Refusal> {
        let term = Arc::clone(self);
        self.detached(async move {
            let _turn = term.connectors.turn().await?;
            if let Some(earlier) = term.connectors.all().by_token(&asked.token.token) {
                return match judge(Some(&earlier.connector.created_with), &asked.token) {
                    Verdict::Replay => Ok(earlier),
                    Verdict::New | Verdict::Conflict => Err(Refusal::TokenConflict),
                };
            }
            let (taken, count) = {
                let all = term.connectors.all();
                (all.is_taken(&asked.name), all.len())
            };
            if taken {
                return Err(Refusal::ConnectorExists(asked.name));
            }
            let limit = term.settings().quotas.connectors_max;
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
                Connector::new((id, asked.name), asked.content, asked.tags, asked.token, SystemTime::now());
            term.keep(None, connector).await
        })
        .await
    }

    /// Changes a connector, which makes a new version unless nothing differs.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is changed then.
    pub async fn update_connector(
        self: &Arc<Self>,
        named: ConnectorRef,
        change: Change,
        used: TokenUse,
    ) -> Result<Arc<Entry>, Refusal> {
        let limit = self.settings().quotas.connector_versions_max;
        self.change_connector(named, move |connector| {
            connector.update(&change, used, limit, SystemTime::now()).map_err(Problem::Illegal)?;
            checked(&connector.tags, &connector.newest().1.content)
        })
        .await
    }

    /// Begins the deletion of a connector, or of the one version that is named.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is changed then.
    pub async fn delete_connector(self: &Arc<Self>, named: ConnectorRef) -> Result<Arc<Entry>, Refusal> {
        let version = named.version;
        self.change_connector(named, move |connector| connector.delete(version).map_err(Problem::Illegal))
            .await
    }

    /// Sets and removes tags of a connector.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is changed then.
    pub async fn tag_connector(
        self: &Arc<Self>,
        named: ConnectorRef,
        set: BTreeMap<String, String>,
        remove: Vec<String>,
    ) -> Result<Arc<Entry>, Refusal> {
        self.change_connector(named, move |connector| {
            connector.tags.extend(set);
            for key in &remove {
                connector.tags.remove(key);
            }
            checked(&connector.tags, &connector.newest().1.content)
        })
        .await
    }

    /// Settles what an earlier leader began.
    pub(crate) fn settle_unsettled(self: &Arc<Self>) {
        let all: Vec<Arc<Entry>> = self.connectors.all().iter().cloned().collect();
        for entry in all {
            self.settle_later(&entry);
        }
    }

    async fn change_connector(
        self: &Arc<Self>,
        named: ConnectorRef,
        change: impl FnOnce(&mut Connector) -> Result<(), Problem> + Send + 'static,
    ) -> Result<Arc<Entry>, Refusal> {
        let term = Arc::clone(self);
        self.detached(async move {
            let _turn = term.connectors.turn().await?;
            let before = term.connector(&named)?;
            let mut after = before.connector.clone();
            change(&mut after).map_err(|problem| problem.refusal(&term.connector_arn(&named), &before))?;
            if after == before.connector {
                return Ok(before);
            }
            term.keep(Some(&before), after).await
        })
        .await
    }

    /// Makes a connector durable, then visible. The turn must be held.
    async fn keep(
        self: &Arc<Self>,
        before: Option<&Arc<Entry>>,
        after: Connector,
    ) -> Result<Arc<Entry>, Refusal> {
        let old = before.map(|entry| (&entry.connector, entry.revision));
        // Dying before this line changes nothing; after it, the next leader finds
        // what was begun and settles it.
        match self.commit(codec::writes(old, Some(&after))).await? {
            Committed::At(revision) => {
                log_change(old.map(|(connector, _)| connector), &after);
                let entry = self.connectors.all().put(Entry { connector: after, revision });
                self.settle_later(&entry);
                Ok(entry)
            }
            Committed::Differs => Err(self.follow_other(&after).await),
        }
    }

    fn settle_later(self: &Arc<Self>, entry: &Arc<Entry>) {
        if !entry.connector.is_unsettled() {
            return;
        }
        let (term, id, revision) = (Arc::clone(self), entry.connector.id.clone(), entry.revision);
        self.spawn(async move {
            tokio::time::sleep(Duration::from_millis(term.settings().connector_settle_ms)).await;
            let mut backoff = BACKOFF_FIRST;
            while let Err(refusal) = term.settle(&id, revision).await {
                if term.is_over() {
                    return;
                }
                tracing::warn!(connector = %id, %refusal, "not settled yet");
                pause(&mut backoff).await;
            }
        });
    }

    /// Settles a connector, unless it was written again since: whoever wrote it
    /// settles it.
    async fn settle(self: &Arc<Self>, id: &ConnectorName, revision: i64) -> Result<(), Refusal> {
        let _turn = self.connectors.turn.lock().await;
        let found = self.connectors.all().find(id);
        let Some(before) = found.filter(|entry| entry.revision == revision) else {
            return Ok(());
        };
        let mut after = before.connector.clone();
        if after.settle() {
            return self.keep(Some(&before), after).await.map(drop);
        }
        let writes = codec::writes(Some((&before.connector, revision)), None);
        match self.commit(writes).await? {
            Committed::At(_) => {
                log_change(Some(&before.connector), &after);
                self.connectors.all().remove(&before.connector);
                Ok(())
            }
            Committed::Differs => Err(self.follow_other(&after).await),
        }
    }

    /// Somebody else wrote the connector: etcd is right.
    async fn follow_other(&self, ours: &Connector) -> Refusal {
        tracing::warn!(connector = %ours.id, "the connector was changed by somebody else; following it");
        let listed = match self.context.store.list(&codec::key(ours)).await {
            Ok((listed, _)) => listed,
            Err(error) => return super::write::refused(error),
        };
        let mut all = self.connectors.all();
        all.remove(ours);
        for (connector, revision) in codec::decode(&listed) {
            all.put(Entry { connector, revision });
        }
        Refusal::Store("the network connector was changed by somebody else".to_owned())
    }
}

/// Why a change of a connector is refused.
enum Problem {
    Illegal(Illegal),
    Invalid(Violations),
}

impl Problem {
    fn refusal(self, arn: &ConnectorArn, entry: &Entry) -> Refusal {
        let illegal = match self {
            Self::Invalid(violations) => return Refusal::Invalid(violations),
            Self::Illegal(illegal) => illegal,
        };
        let text = format!("The network connector {arn} {illegal}.");
        match illegal {
            Illegal::TokenConflict => Refusal::TokenConflict,
            Illegal::NoVersion(_) => Refusal::ConnectorNotFound(arn.to_string()),
            Illegal::TooManyVersions(limit) => Refusal::Quota { quota: "connector_versions", limit, text },
            Illegal::ComputeType => Refusal::sentence("configuration.associatedComputeResourceTypes", text),
            Illegal::State(_) | Illegal::Updating | Illegal::Newest(_) => {
                Refusal::ConnectorState { arn: arn.to_string(), state: entry.connector.state.name(), text }
            }
        }
    }
}

/// Whether tags and content go together.
fn checked(tags: &BTreeMap<String, String>, content: &Content) -> Result<(), Problem> {
    let mut violations = Violations::default();
    violations.check(tags.len() <= TAGS_MAX, "tags", format!("must have at most {TAGS_MAX} entries"));
    let protocol: NetworkProtocol = content.configuration.network_protocol();
    egress::check(tags, protocol, &mut violations);
    violations.finish().map_err(Problem::Invalid)
}

/// The one line per state change.
fn log_change(before: Option<&Connector>, after: &Connector) {
    tracing::info!(
        connector = %after.id,
        name = %after.name,
        from = before.map_or("", |before| before.state.name()),
        to = after.state.name(),
        version = after.versions.last_key_value().map_or(0, |(number, _)| *number),
        "network connector changed"
    );
}
