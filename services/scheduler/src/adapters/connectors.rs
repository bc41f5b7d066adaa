//! Connectors as bytes in etcd.
//!
//! ```text
//! connectors/<id>            the connector: tags, client tokens, times
//! connectors/<id>/<version>  one version of it
//! ```
//!
//! Both are written in one transaction; a version alone may have half the size that
//! a record may have, and there may be dozens of them. Fields are only ever added; a `format`
//! this code does not know is refused, never guessed at.

use std::collections::BTreeMap;

use api::connector::v1::{NetworkConnectorConfiguration, NetworkConnectorState as WireState};
use model::state::ConnectorState;
use prost::Message;
use prost_types::Timestamp;
use records::{Expect, Versioned, Write};

use super::microvms::CodecError;
use crate::domain::connector::{Connector, Content, Life, Version};
use crate::domain::idempotency::TokenUse;

pub const PREFIX: &str = "connectors/";
const FORMAT: u32 = 1;

#[derive(Clone, PartialEq, Message)]
struct StoredConnector {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "4")]
    state_reason: String,
    #[prost(message, optional, tag = "5")]
    update: Option<StoredUpdate>,
    #[prost(btree_map = "string, string", tag = "6")]
    tags: BTreeMap<String, String>,
    #[prost(bytes = "vec", tag = "7")]
    created_with: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    updated_with: Vec<Vec<u8>>,
    #[prost(message, optional, tag = "9")]
    create_time: Option<Timestamp>,
    #[prost(message, optional, tag = "10")]
    delete_time: Option<Timestamp>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredUpdate {
    #[prost(string, tag = "2")]
    reason: String,
}

#[derive(Clone, PartialEq, Message)]
struct StoredVersion {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(message, optional, tag = "2")]
    configuration: Option<NetworkConnectorConfiguration>,
    #[prost(string, tag = "3")]
    operator_role: String,
    #[prost(message, optional, tag = "5")]
    time: Option<Timestamp>,
    #[prost(message, optional, tag = "6")]
    delete_time: Option<Timestamp>,
}

pub fn key(connector: &Connector) -> String {
    format!("{PREFIX}{}", connector.id)
}

/// The writes that bring etcd from one state of a connector to the next, the connector's own key first.
/// `before` is what etcd holds and its revision; `after` is absent when the connector goes.
pub fn writes(before: Option<(&Connector, i64)>, after: Option<&Connector>) -> Vec<Write> {
    let expect = before.map_or(Expect::Absent, |(_, revision)| Expect::Revision(revision));
    let (old, none) = (before.map(|(connector, _)| connector), BTreeMap::new());
    let versions = (old.map_or(&none, |old| &old.versions), after.map_or(&none, |after| &after.versions));
    let mut writes = Vec::new();
    match (old, after) {
        (_, Some(after)) => {
            writes.push(Write::Put { key: key(after), value: encode(after), expect, lease: None })
        }
        (Some(old), None) => writes.push(Write::Delete { key: key(old), expect }),
        (None, None) => {}
    }
    let Some(owner) = after.or(old) else {
        return writes;
    };
    // The connector's own key guards them: whoever changes a version writes it too.
    for (number, version) in versions.1 {
        if versions.0.get(number) != Some(version) {
            writes.push(Write::Put {
                key: format!("{}/{number}", key(owner)),
                value: encode_version(version),
                expect: Expect::Any,
                lease: None,
            });
        }
    }
    for number in versions.0.keys().filter(|number| !versions.1.contains_key(number)) {
        writes.push(Write::Delete { key: format!("{}/{number}", key(owner)), expect: Expect::Any });
    }
    writes
}

/// Connectors with their revisions, from a listing of their keys. What cannot be
/// read is left out and named in an error line: a newer scheduler may know it.
pub fn decode(entries: &[(String, Versioned)]) -> Vec<(Connector, i64)> {
    let mut versions: BTreeMap<&str, BTreeMap<u64, Version>> = BTreeMap::new();
    let mut heads = Vec::new();
    for (key, value) in entries {
        let path = key.strip_prefix(PREFIX).unwrap_or(key);
        let Some((id, number)) = path.split_once('/') else {
            heads.push((path, value));
            continue;
        };
        match (number.parse(), decode_version(&value.value)) {
            (Ok(number), Ok(version)) => drop(versions.entry(id).or_default().insert(number, version)),
            _ => tracing::error!(key, "a connector's version cannot be read and is left alone"),
        }
    }
    let connectors = heads.into_iter().filter_map(|(id, value)| {
        let found = versions.remove(id).unwrap_or_default();
        match decode_head(id, &value.value, found) {
            Ok(connector) => Some((connector, value.revision)),
            Err(error) => {
                tracing::error!(id, %error, "a connector cannot be read and is left alone");
                None
            }
        }
    });
    connectors.collect()
}

fn encode(connector: &Connector) -> Vec<u8> {
    let digests = |used: &TokenUse| [used.token, used.parameters].concat();
    StoredConnector {
        format: FORMAT,
        name: connector.name.to_string(),
        state_reason: connector.state_reason.clone(),
        update: connector.update_reason.clone().map(|reason| StoredUpdate { reason }),
        tags: connector.tags.clone(),
        created_with: digests(&connector.created_with),
        updated_with: connector.updated_with.iter().map(digests).collect(),
        create_time: Some(api::timestamp(connector.life.made)),
        delete_time: connector.life.deleted.map(api::timestamp),
    }
    .encode_to_vec()
}

fn encode_version(version: &Version) -> Vec<u8> {
    StoredVersion {
        format: FORMAT,
        configuration: Some(version.content.configuration.clone()),
        operator_role: version.content.operator_role.clone(),
        time: Some(api::timestamp(version.life.made)),
        delete_time: version.life.deleted.map(api::timestamp),
    }
    .encode_to_vec()
}

fn decode_head(id: &str, bytes: &[u8], versions: BTreeMap<u64, Version>) -> Result<Connector, CodecError> {
    let stored = StoredConnector::decode(bytes).map_err(malformed)?;
    if stored.format != FORMAT {
        return Err(CodecError::Format(stored.format));
    }
    if versions.is_empty() {
        return Err(CodecError::Malformed("no version of it can be read".to_owned()));
    }
    Ok(Connector {
        id: id.parse()?,
        name: stored.name.parse()?,
        life: life(stored.create_time, stored.delete_time)?,
        state_reason: stored.state_reason,
        update_reason: stored.update.map(|update| update.reason),
        tags: stored.tags,
        versions,
        created_with: token_use(&stored.created_with)?,
        updated_with: stored
            .updated_with
            .iter()
            .map(|digests| token_use(digests))
            .collect::<Result<_, _>>()?,
    })
}

fn decode_version(bytes: &[u8]) -> Result<Version, CodecError> {
    let stored = StoredVersion::decode(bytes).map_err(malformed)?;
    if stored.format != FORMAT {
        return Err(CodecError::Format(stored.format));
    }
    Ok(Version {
        content: Content {
            configuration: stored.configuration.unwrap_or_default(),
            operator_role: stored.operator_role,
        },
        life: life(stored.time, stored.delete_time)?,
    })
}

fn token_use(digests: &[u8]) -> Result<TokenUse, CodecError> {
    let halves = digests.split_at_checked(32).and_then(|(token, parameters)| {
        Some(TokenUse { token: token.try_into().ok()?, parameters: parameters.try_into().ok()? })
    });
    halves.ok_or_else(|| malformed("a token is not two digests"))
}

fn life(made: Option<Timestamp>, deleted: Option<Timestamp>) -> Result<Life, CodecError> {
    let made = made.ok_or_else(|| malformed("a time is missing"))?;
    Ok(Life { made: api::system_time(&made)?, deleted: deleted.as_ref().map(api::system_time).transpose()? })
}

fn malformed(detail: impl std::fmt::Display) -> CodecError {
    CodecError::Malformed(detail.to_string())
}

pub fn wire_state(state: ConnectorState) -> WireState {
    match state {
        ConnectorState::Pending => WireState::Pending,
        ConnectorState::Active => WireState::Active,
        ConnectorState::Deleting | ConnectorState::Deleted => WireState::Deleting,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::connector::Change;
    use crate::domain::connector::tests::{later, sample};

    /// Applies writes to what a listing would show.
    fn apply(entries: &mut BTreeMap<String, Versioned>, writes: Vec<Write>, revision: i64) {
        for write in writes {
            match write {
                Write::Put { key, value, .. } => drop(entries.insert(key, Versioned { value, revision })),
                Write::Delete { key, .. } => drop(entries.remove(&key)),
                Write::Absent { key } => assert!(!entries.contains_key(&key)),
            }
        }
    }

    fn listed(entries: &BTreeMap<String, Versioned>) -> Vec<(Connector, i64)> {
        let entries: Vec<_> = entries.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        decode(&entries)
    }

    #[test]
    fn every_state_of_a_life_is_read_back() {
        let mut entries = BTreeMap::new();
        let mut now = sample();
        now.tags.insert("k".into(), "v".into());
        apply(&mut entries, writes(None, Some(&now)), 1);
        let role = |role: &str| Change { operator_role: Some(role.into()), ..Change::default() };
        type Event = Box<dyn Fn(&mut Connector)>;
        let events: [Event; 4] = [
            Box::new(move |c| c.update(&role("x"), TokenUse::of("a", b"a"), 9, later(1)).unwrap()),
            Box::new(|c| c.delete(Some(1), later(2)).unwrap()),
            Box::new(|c| *c = c.clone().without_remains(later(3)).unwrap()),
            Box::new(|c| c.delete(None, later(3)).unwrap()),
        ];
        for (number, event) in events.iter().enumerate() {
            let revision = listed(&entries)[0].1;
            assert_eq!(listed(&entries), [(now.clone(), revision)], "before event {number}");
            let before = now.clone();
            event(&mut now);
            let changes = writes(Some((&before, revision)), Some(&now));
            assert!(matches!(&changes[0], Write::Put { key, expect, .. }
                if *key == format!("connectors/{}", now.id) && *expect == Expect::Revision(revision)));
            apply(&mut entries, changes, revision + 1);
        }
        assert_eq!(listed(&entries)[0].0, now);
        assert_eq!(now.clone().without_remains(later(4)), None);
        apply(&mut entries, writes(Some((&now, 7)), None), 8);
        assert!(entries.is_empty(), "{entries:?}");
    }

    #[test]
    fn what_is_no_connector_is_left_alone() {
        let entry = |value: &[u8]| Versioned { value: value.to_vec(), revision: 1 };
        let mut entries = BTreeMap::new();
        apply(&mut entries, writes(None, Some(&sample())), 1);
        for (key, value) in [
            ("connectors/nc-2", &b"\xff"[..]),
            ("connectors/nc-3", b""),
            ("connectors/nc-1/x", b""),
            ("connectors/nc-4/1", b"\xff"),
        ] {
            entries.insert(key.to_owned(), entry(value));
        }
        assert_eq!(listed(&entries), [(sample(), 1)]);
        entries.remove("connectors/nc-1/1");
        assert_eq!(listed(&entries), [], "a connector without versions is none");
    }
}
