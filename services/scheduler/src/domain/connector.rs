//! A customer's network connector: its versions, its tags, where it is in life.
//!
//! ```text
//! connector  PENDING -> ACTIVE -> DELETING -> gone
//! version    PENDING -> ACTIVE -> DELETING -> gone    immutable but for this
//! ```
//!
//! A connector is a policy that launches read, so nothing has to be made or torn down: each state follows
//! from the record's times and the time now. Only what has been DELETING for a while is removed, by whoever
//! leads then. What launches read is in [`super::egress`].

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime};

use api::connector::v1::{NetworkConnectorConfiguration, NetworkProtocol};
use model::limits::TAGS_MAX;
use model::state::ConnectorState;
use model::{ConnectorName, Violations};

use super::egress;
use super::idempotency::{TokenDecision, TokenUse, decide};

/// How long what was made is PENDING, and what was deleted at least DELETING.
pub const SETTLE: Duration = Duration::from_millis(300);
/// State reason until a connector is first changed.
pub const REASON_CREATED: &str = "Initial creation";
/// What an update that changes nothing says.
pub const REASON_NO_CHANGE: &str = "No configuration changes detected";
/// Client tokens of updates that are remembered, newest last.
const UPDATE_TOKENS_MAX: usize = 16;

#[derive(Debug, Clone, PartialEq)]
pub struct Content {
    pub configuration: NetworkConnectorConfiguration,
    /// ARN of the role the service would act as.
    pub operator_role: String,
}

/// When something was made, and when its deletion began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    pub made: SystemTime,
    pub deleted: Option<SystemTime>,
}

impl Life {
    fn of(made: SystemTime) -> Self {
        Self { made, deleted: None }
    }

    /// Where it is at `now`.
    pub fn state(self, now: SystemTime) -> ConnectorState {
        match self.deleted {
            Some(_) => ConnectorState::Deleting,
            None if now < self.made + SETTLE => ConnectorState::Pending,
            None => ConnectorState::Active,
        }
    }

    fn is_over(self, now: SystemTime) -> bool {
        self.deleted.is_some_and(|deleted| deleted + SETTLE <= now)
    }

    fn delete(&mut self, now: SystemTime) -> Result<(), Refusal> {
        match self.state(now) {
            ConnectorState::Active => self.deleted = Some(now),
            ConnectorState::Deleting | ConnectorState::Deleted => {}
            ConnectorState::Pending => return Err(Refusal::State(ConnectorState::Pending)),
        }
        Ok(())
    }
}

/// One version; never changed but for its deletion.
#[derive(Debug, Clone, PartialEq)]
pub struct Version {
    pub content: Content,
    pub life: Life,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Connector {
    /// Id, "nc-<uuid>".
    pub id: ConnectorName,
    pub name: ConnectorName,
    pub life: Life,
    /// Why its state is as it is; may be empty.
    pub state_reason: String,
    /// What there is to say of its latest update; absent when there was none.
    pub update_reason: Option<String>,
    pub tags: BTreeMap<String, String>,
    /// Versions by number; never empty.
    pub versions: BTreeMap<u64, Version>,
    /// The client token it was created with.
    pub created_with: TokenUse,
    /// Client tokens of its latest updates.
    pub updated_with: VecDeque<TokenUse>,
}

/// What an update asks for; absent parts stay as they are.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Change {
    pub configuration: Option<NetworkConnectorConfiguration>,
    pub operator_role: Option<String>,
}

/// Why a connector cannot be changed as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("is {0} and cannot be changed now")]
    State(ConnectorState),
    #[error("is being updated and cannot be changed now")]
    Updating,
    #[error("has no newer version than {0}; delete the connector to remove it")]
    Newest(u64),
    #[error("has no version {0}")]
    NoVersion(u64),
    #[error("has reached its limit of {0} versions; delete older ones first")]
    TooManyVersions(usize),
    #[error("cannot change its AssociatedComputeResourceTypes")]
    ComputeType,
    #[error("was updated before with the same client token and other parameters")]
    TokenConflict,
    #[error("{0}")]
    Invalid(Violations),
}

impl Connector {
    pub fn new(
        (id, name): (ConnectorName, ConnectorName),
        content: Content,
        tags: BTreeMap<String, String>,
        created_with: TokenUse,
        now: SystemTime,
    ) -> Self {
        let life = Life::of(now);
        Self {
            id,
            name,
            life,
            state_reason: REASON_CREATED.to_owned(),
            update_reason: None,
            tags,
            versions: BTreeMap::from([(1, Version { content, life })]),
            created_with,
            updated_with: VecDeque::new(),
        }
    }

    /// Number and content of its newest version.
    pub fn newest(&self) -> (u64, &Version) {
        let (number, version) =
            self.versions.last_key_value().expect("a connector has a version from its creation on");
        (*number, version)
    }

    /// The newest version that launches may use.
    pub fn usable(&self, now: SystemTime) -> Option<(u64, &Version)> {
        let active = |(_, version): &(&u64, &Version)| version.life.state(now) == ConnectorState::Active;
        let found = self.versions.iter().rev().find(active);
        found.map(|(number, version)| (*number, version))
    }

    /// The version a launch uses that names this one, or none; else the state that forbids it.
    pub fn to_launch(&self, version: Option<u64>, now: SystemTime) -> Result<&Version, ConnectorState> {
        let state = self.life.state(now);
        if state != ConnectorState::Active {
            return Err(state);
        }
        let found = match version {
            Some(number) => self.versions.get(&number),
            None => self.usable(now).map(|(_, version)| version),
        };
        let found = found.ok_or(ConnectorState::Deleted)?;
        match found.life.state(now) {
            ConnectorState::Active => Ok(found),
            state => Err(state),
        }
    }

    /// Whether its latest update is still under way.
    pub fn is_updating(&self, now: SystemTime) -> bool {
        self.update_reason.is_some() && self.newest().1.life.state(now) == ConnectorState::Pending
    }

    /// Whether its deletion, or that of a version, is over.
    pub fn has_remains(&self, now: SystemTime) -> bool {
        self.life.is_over(now) || self.versions.values().any(|version| version.life.is_over(now))
    }

    /// What is left of it once deletions that are over are carried out.
    pub fn without_remains(mut self, now: SystemTime) -> Option<Self> {
        if self.life.is_over(now) {
            return None;
        }
        self.versions.retain(|_, version| !version.life.is_over(now));
        Some(self)
    }

    /// Changes it: a new version, unless nothing differs. The same token with the
    /// same parameters changes nothing.
    pub fn update(
        &mut self,
        change: &Change,
        used: TokenUse,
        versions_max: usize,
        now: SystemTime,
    ) -> Result<(), Refusal> {
        let earlier = self.updated_with.iter().find(|earlier| earlier.token == used.token);
        match decide(earlier, &used) {
            TokenDecision::Replay => return Ok(()),
            TokenDecision::Conflict => return Err(Refusal::TokenConflict),
            TokenDecision::New => {}
        }
        let state = self.life.state(now);
        if state != ConnectorState::Active {
            return Err(Refusal::State(state));
        }
        if self.is_updating(now) {
            return Err(Refusal::Updating);
        }
        let (newest, current) = self.newest();
        let content = merged(&current.content, change);
        if content.configuration.associated_compute_resource_types
            != current.content.configuration.associated_compute_resource_types
        {
            return Err(Refusal::ComputeType);
        }
        if content == current.content {
            self.update_reason = Some(REASON_NO_CHANGE.to_owned());
        } else {
            if self.versions.len() >= versions_max {
                return Err(Refusal::TooManyVersions(versions_max));
            }
            self.versions.insert(newest + 1, Version { content, life: Life::of(now) });
            self.state_reason.clear();
            self.update_reason = Some(String::new());
        }
        if self.updated_with.len() == UPDATE_TOKENS_MAX {
            self.updated_with.pop_front();
        }
        self.updated_with.push_back(used);
        self.check_tags()
    }

    pub fn tag(&mut self, set: BTreeMap<String, String>, remove: &[String]) -> Result<(), Refusal> {
        self.tags.extend(set);
        for key in remove {
            self.tags.remove(key);
        }
        self.check_tags()
    }

    /// Whether its tags and its newest version go together.
    fn check_tags(&self) -> Result<(), Refusal> {
        let mut violations = Violations::default();
        let count = self.tags.len();
        violations.check(count <= TAGS_MAX, "tags", format!("must have at most {TAGS_MAX} entries"));
        let protocol: NetworkProtocol = self.newest().1.content.configuration.network_protocol();
        egress::check(&self.tags, protocol, &mut violations);
        violations.finish().map_err(Refusal::Invalid)
    }

    /// Begins its deletion, or that of one version. Repeating it changes nothing.
    pub fn delete(&mut self, version: Option<u64>, now: SystemTime) -> Result<(), Refusal> {
        let Some(number) = version else {
            self.life.delete(now)?;
            self.state_reason.clear();
            return Ok(());
        };
        let newest = self.newest().0;
        let version = self.versions.get_mut(&number).ok_or(Refusal::NoVersion(number))?;
        if number == newest {
            return Err(Refusal::Newest(number));
        }
        version.life.delete(now)
    }
}

/// The content after a change. A configuration replaces the old one; members
/// that cannot be empty stay when they are left out.
fn merged(current: &Content, change: &Change) -> Content {
    let mut content = current.clone();
    if let Some(given) = &change.configuration {
        let before = std::mem::replace(&mut content.configuration, given.clone());
        let now = &mut content.configuration;
        if now.subnet_ids.is_empty() {
            now.subnet_ids = before.subnet_ids;
        }
        if now.network_protocol == 0 {
            now.network_protocol = before.network_protocol;
        }
        if now.associated_compute_resource_types.is_empty() {
            now.associated_compute_resource_types = before.associated_compute_resource_types;
        }
        if now.elastic_ip_type == 0 {
            now.elastic_ip_type = before.elastic_ip_type;
        }
    }
    if let Some(role) = &change.operator_role {
        content.operator_role.clone_from(role);
    }
    content
}

#[cfg(test)]
pub(crate) mod tests;
