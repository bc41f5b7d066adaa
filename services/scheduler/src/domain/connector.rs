//! A customer's network connector: its versions, its tags, where it is in life.
//!
//! ```text
//! connector  PENDING -> ACTIVE -> DELETING -> gone
//! version    PENDING -> ACTIVE -> DELETING -> gone    immutable but for this
//! update     under way -> done
//! ```
//!
//! A connector is a policy that launches read, so nothing has to be made or
//! torn down: what was begun is settled a moment later. What launches read is
//! in [`super::egress`].

use std::collections::{BTreeMap, VecDeque};
use std::time::SystemTime;

use api::connector::v1::NetworkConnectorConfiguration;
use model::ConnectorName;
use model::state::{ConnectorEvent, ConnectorState};

use super::idempotency::{TokenUse, Verdict, judge};

/// State reason until a connector is first changed.
pub const REASON_CREATED: &str = "Initial creation";
/// What an update that changes nothing says.
pub const REASON_NO_CHANGE: &str = "No configuration changes detected";
/// Client tokens of updates that are remembered, newest last.
const UPDATE_TOKENS_MAX: usize = 16;

/// What a version is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Content {
    /// Subnets, groups, protocol and the rest.
    pub configuration: NetworkConnectorConfiguration,
    /// ARN of the role the service would act as.
    pub operator_role: String,
}

/// One version.
#[derive(Debug, Clone, PartialEq)]
pub struct Version {
    /// What it is made of; never changed.
    pub content: Content,
    /// Where it is in its life.
    pub state: ConnectorState,
    /// When it was made.
    pub time: SystemTime,
}

/// How the latest update went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// Whether it is done.
    pub done: bool,
    /// What there is to say; may be empty.
    pub reason: String,
}

/// A connector.
#[derive(Debug, Clone, PartialEq)]
pub struct Connector {
    /// Id, "nc-<uuid>".
    pub id: ConnectorName,
    /// Name, unique in the account.
    pub name: ConnectorName,
    /// Where it is in its life.
    pub state: ConnectorState,
    /// Why; may be empty.
    pub state_reason: String,
    /// Its latest update; absent when there was none.
    pub update: Option<Update>,
    /// Tags.
    pub tags: BTreeMap<String, String>,
    /// Versions by number; never empty.
    pub versions: BTreeMap<u64, Version>,
    /// The client token it was created with.
    pub created_with: TokenUse,
    /// Client tokens of its latest updates.
    pub updated_with: VecDeque<TokenUse>,
    /// When it was created.
    pub create_time: SystemTime,
}

/// What an update asks for; absent parts stay as they are.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Change {
    /// The new configuration.
    pub configuration: Option<NetworkConnectorConfiguration>,
    /// The new role.
    pub operator_role: Option<String>,
}

/// Why a connector cannot be changed as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Illegal {
    /// Its state forbids it.
    #[error("is {0} and cannot be changed now")]
    State(ConnectorState),
    /// An update is under way.
    #[error("is being updated and cannot be changed now")]
    Updating,
    /// The newest version goes only with its connector.
    #[error("has no newer version than {0}; delete the connector to remove it")]
    Newest(u64),
    /// It has no such version.
    #[error("has no version {0}")]
    NoVersion(u64),
    /// It has as many versions as it may.
    #[error("has reached its limit of {0} versions; delete older ones first")]
    TooManyVersions(usize),
    /// What it is used for is fixed.
    #[error("cannot change its AssociatedComputeResourceTypes")]
    ComputeType,
    /// The client token was used for another update.
    #[error("was updated before with the same client token and other parameters")]
    TokenConflict,
}

impl Connector {
    /// A new connector, PENDING.
    #[must_use]
    pub fn new(
        (id, name): (ConnectorName, ConnectorName),
        content: Content,
        tags: BTreeMap<String, String>,
        created_with: TokenUse,
        now: SystemTime,
    ) -> Self {
        let first = Version { content, state: ConnectorState::Pending, time: now };
        Self {
            id,
            name,
            state: ConnectorState::Pending,
            state_reason: REASON_CREATED.to_owned(),
            update: None,
            tags,
            versions: BTreeMap::from([(1, first)]),
            created_with,
            updated_with: VecDeque::new(),
            create_time: now,
        }
    }

    /// Number and content of its newest version.
    #[must_use]
    pub fn newest(&self) -> (u64, &Version) {
        let (number, version) =
            self.versions.last_key_value().expect("a connector has a version from its creation on");
        (*number, version)
    }

    /// The newest version that launches may use.
    #[must_use]
    pub fn usable(&self) -> Option<(u64, &Version)> {
        let active = |(_, version): &(&u64, &Version)| version.state == ConnectorState::Active;
        let found = self.versions.iter().rev().find(active);
        found.map(|(number, version)| (*number, version))
    }

    /// Whether something that was begun is still to be settled.
    #[must_use]
    pub fn is_unsettled(&self) -> bool {
        self.state != ConnectorState::Active
            || self.update.as_ref().is_some_and(|update| !update.done)
            || self.versions.values().any(|version| version.state != ConnectorState::Active)
    }

    /// Settles what was begun. False when the connector is gone with that.
    #[must_use]
    pub fn settle(&mut self) -> bool {
        self.state = settled(self.state);
        if let Some(update) = &mut self.update {
            update.done = true;
        }
        self.versions.retain(|_, version| {
            version.state = settled(version.state);
            version.state != ConnectorState::Deleted
        });
        self.state != ConnectorState::Deleted
    }

    /// Changes it: a new version, unless nothing differs. The same token with the
    /// same parameters changes nothing.
    ///
    /// # Errors
    /// [`Illegal`]; nothing is changed then.
    pub fn update(
        &mut self,
        change: &Change,
        used: TokenUse,
        versions_max: usize,
        now: SystemTime,
    ) -> Result<(), Illegal> {
        let earlier = self.updated_with.iter().find(|earlier| earlier.token == used.token);
        match judge(earlier, &used) {
            Verdict::Replay => return Ok(()),
            Verdict::Conflict => return Err(Illegal::TokenConflict),
            Verdict::New => {}
        }
        if self.state != ConnectorState::Active {
            return Err(Illegal::State(self.state));
        }
        if self.update.as_ref().is_some_and(|update| !update.done) {
            return Err(Illegal::Updating);
        }
        let (newest, current) = self.newest();
        let content = merged(&current.content, change);
        if content.configuration.associated_compute_resource_types
            != current.content.configuration.associated_compute_resource_types
        {
            return Err(Illegal::ComputeType);
        }
        if content == current.content {
            self.update = Some(Update { done: true, reason: REASON_NO_CHANGE.to_owned() });
        } else {
            if self.versions.len() >= versions_max {
                return Err(Illegal::TooManyVersions(versions_max));
            }
            let version = Version { content, state: ConnectorState::Pending, time: now };
            self.versions.insert(newest + 1, version);
            self.state_reason.clear();
            self.update = Some(Update { done: false, reason: String::new() });
        }
        if self.updated_with.len() == UPDATE_TOKENS_MAX {
            self.updated_with.pop_front();
        }
        self.updated_with.push_back(used);
        Ok(())
    }

    /// Begins its deletion, or that of one version. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`Illegal`]; nothing is changed then.
    pub fn delete(&mut self, version: Option<u64>) -> Result<(), Illegal> {
        let Some(number) = version else {
            let next = self.state.next(ConnectorEvent::DeleteBegan);
            self.state = next.map_err(|_| Illegal::State(self.state))?;
            self.state_reason.clear();
            return Ok(());
        };
        let newest = self.newest().0;
        let version = self.versions.get_mut(&number).ok_or(Illegal::NoVersion(number))?;
        if number == newest {
            return Err(Illegal::Newest(number));
        }
        let next = version.state.next(ConnectorEvent::DeleteBegan);
        version.state = next.map_err(|_| Illegal::State(version.state))?;
        Ok(())
    }
}

fn settled(state: ConnectorState) -> ConnectorState {
    let event = match state {
        ConnectorState::Pending => ConnectorEvent::Made,
        ConnectorState::Deleting => ConnectorEvent::DeleteDone,
        ConnectorState::Active | ConnectorState::Deleted => return state,
    };
    state.next(event).expect("the table has this event for this state")
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
