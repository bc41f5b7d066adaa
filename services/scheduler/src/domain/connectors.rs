//! Every connector of the account in memory, with the indexes that calls need.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::SystemTime;

use model::ConnectorName;
use model::state::ConnectorState;

use super::connector::Connector;
use super::idempotency::Digest;

/// A connector and the revision etcd holds it at.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub connector: Connector,
    pub revision: i64,
}

/// Every connector, as etcd said last.
#[derive(Debug, Default)]
pub struct Connectors {
    by_name: BTreeMap<ConnectorName, Arc<Entry>>,
    names: HashMap<ConnectorName, ConnectorName>,
    tokens: HashMap<Digest, ConnectorName>,
}

impl Connectors {
    /// A connector by its id, or else by its name.
    pub fn find(&self, key: &ConnectorName) -> Option<Arc<Entry>> {
        let name = self.names.get(key).unwrap_or(key);
        self.by_name.get(name).cloned()
    }

    /// The connector that was created with a client token.
    pub fn by_token(&self, token: &Digest) -> Option<Arc<Entry>> {
        self.by_name.get(self.tokens.get(token)?).cloned()
    }

    /// Whether a name is taken, by a connector's name or id.
    pub fn is_taken(&self, name: &ConnectorName) -> bool {
        self.by_name.contains_key(name) || self.names.contains_key(name)
    }

    pub fn count(&self) -> usize {
        self.by_name.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.by_name.values()
    }

    /// One page by name, of those in a state if one is given, and whether more may follow.
    pub fn page(
        &self,
        after: Option<&ConnectorName>,
        state: Option<ConnectorState>,
        size: usize,
        now: SystemTime,
    ) -> (Vec<Arc<Entry>>, bool) {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let wanted = |entry: &&Arc<Entry>| state.is_none_or(|state| entry.connector.life.state(now) == state);
        let mut found = self
            .by_name
            .range::<ConnectorName, _>((from, Bound::Unbounded))
            .map(|(_, entry)| entry)
            .filter(wanted)
            .cloned();
        let page: Vec<_> = found.by_ref().take(size).collect();
        (page, found.next().is_some())
    }

    /// Takes in a connector in place of what it was.
    pub fn put(&mut self, entry: Entry) -> Arc<Entry> {
        let connector = &entry.connector;
        self.names.insert(connector.id.clone(), connector.name.clone());
        self.tokens.insert(connector.created_with.token, connector.name.clone());
        let entry = Arc::new(entry);
        self.by_name.insert(entry.connector.name.clone(), Arc::clone(&entry));
        entry
    }

    pub fn remove(&mut self, connector: &Connector) {
        self.by_name.remove(&connector.name);
        self.names.remove(&connector.id);
        self.tokens.remove(&connector.created_with.token);
    }
}

#[cfg(test)]
mod tests {
    use super::super::connector::tests::{later, sample};
    use super::super::idempotency::TokenUse;
    use super::*;

    fn connector(name: &str) -> Connector {
        let mut connector = sample();
        connector.id = format!("nc-{name}").parse().unwrap();
        connector.name = name.parse().unwrap();
        connector.created_with = TokenUse::of(name, b"");
        connector
    }

    fn key(text: &str) -> ConnectorName {
        text.parse().unwrap()
    }

    #[test]
    fn found_by_name_id_and_token_until_removed() {
        let mut all = Connectors::default();
        for name in ["b", "a", "c"] {
            all.put(Entry { connector: connector(name), revision: 1 });
        }
        let b = connector("b");
        for found in [all.find(&key("b")), all.find(&key("nc-b")), all.by_token(&b.created_with.token)] {
            assert_eq!(found.unwrap().connector, b);
        }
        assert!(all.is_taken(&key("b")) && all.is_taken(&key("nc-b")) && !all.is_taken(&key("d")));
        all.remove(&b);
        assert!(all.find(&key("b")).is_none() && all.find(&key("nc-b")).is_none());
        assert!(all.by_token(&b.created_with.token).is_none());
        assert_eq!(all.count(), 2);
    }

    #[test]
    fn pages_by_name() {
        let mut all = Connectors::default();
        for name in ["d", "b", "a", "c"] {
            let mut connector = connector(name);
            if name == "b" {
                connector.delete(None, later(1)).unwrap();
            }
            all.put(Entry { connector, revision: 1 });
        }
        let names = |page: &[Arc<Entry>]| -> Vec<String> {
            page.iter().map(|entry| entry.connector.name.to_string()).collect()
        };
        let (page, more) = all.page(None, None, 3, later(1));
        assert_eq!((names(&page), more), (vec!["a".into(), "b".into(), "c".into()], true));
        let (page, more) = all.page(Some(&key("c")), None, 3, later(1));
        assert_eq!((names(&page), more), (vec!["d".into()], false));
        let (page, more) = all.page(None, Some(ConnectorState::Active), 3, later(1));
        assert_eq!((names(&page), more), (vec!["a".into(), "c".into(), "d".into()], false));
        let (page, more) = all.page(Some(&key("bb")), Some(ConnectorState::Deleting), 3, later(1));
        assert_eq!((names(&page), more), (vec![], false));
    }
}
