//! Own domains: bound, changed and removed one at a time, durable first, then visible. What a domain is bound to takes it
//! along: a sweep removes the domains of microVMs that have ended and of images that are gone, so that nobody's later
//! microVM or image is reached under them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::domain::v1::domain::Target as WireTarget;
use api::domain::v1::{Domain, StoredDomain};
use model::{DomainName, ImageName, MicrovmId};
use records::{Committed, Expect, Versioned, Write};

use super::Term;
use crate::adapters::certificates::Certificate;
use crate::adapters::domains::{self as codec, Entry};
use crate::refusal::Refusal;

/// What a domain is to be bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Microvm(MicrovmId),
    Image(ImageName),
}

/// A domain as asked for, checked field by field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDomain {
    pub name: DomainName,
    pub target: Target,
    pub certificate: Certificate,
}

/// Every domain without its secrets, as etcd said last.
#[derive(Debug, Default)]
pub struct DomainStore {
    all: Mutex<BTreeMap<DomainName, Arc<Entry>>>,
    /// Changes are rare: one at a time, so that the limit is one.
    turn: tokio::sync::Mutex<()>,
}

impl DomainStore {
    pub fn load(entries: &[(String, Versioned)]) -> Self {
        let decoded = entries.iter().filter_map(|(key, found)| {
            let decoded = codec::decode(key, found);
            if decoded.is_none() {
                tracing::error!(key, "an own domain cannot be read and is left alone");
            }
            decoded
        });
        let all = decoded.map(|(name, entry)| (name, Arc::new(entry))).collect();
        Self { all: Mutex::new(all), ..Self::default() }
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<DomainName, Arc<Entry>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Term {
    /// The account's domains by name.
    pub fn domains(&self) -> Vec<Domain> {
        let account = &self.config().account;
        let all = self.domains.all();
        let domains = all.values().filter_map(|entry| entry.stored.domain.as_ref());
        domains.filter(|domain| domain.account_id == *account).cloned().collect()
    }

    /// One of the account's domains. Another's is as unknown as one that does not exist.
    pub fn domain(&self, name: &DomainName) -> Result<Domain, Refusal> {
        self.own_domain(name).and_then(|entry| entry.stored.domain.clone().ok_or_else(|| not_found(name)))
    }

    /// Binds a name; it is durable when this returns.
    pub async fn create_domain(self: &Arc<Self>, asked: NewDomain) -> Result<Domain, Refusal> {
        let term = Arc::clone(self);
        self.detached(async move {
            let _turn = term.domains.turn.lock().await;
            if term.domains.all().contains_key(&asked.name) {
                return Err(Refusal::DomainExists(asked.name));
            }
            let limit = term.config().quotas.domains_max;
            if term.domains().len() >= limit {
                return Err(Refusal::Quota {
                    quota: "domains",
                    limit,
                    text: format!("The limit of {limit} own domains is reached for this account."),
                });
            }
            // When what it is bound to goes between this look and the write, the next sweep removes it.
            let (target, endpoint_label, image_id) = term.bound(asked.target)?;
            let now = api::timestamp(term.wall());
            let domain = Domain {
                name: asked.name.to_string(),
                account_id: term.config().account.clone(),
                target: Some(target),
                create_time: Some(now),
                ..Domain::default()
            };
            let bound = StoredDomain { domain: Some(domain), endpoint_label, image_id, ..Default::default() };
            term.commit_domain(asked.name, bound, asked.certificate, Expect::Absent).await
        })
        .await
    }

    /// Replaces the certificate of a domain; it stays bound as it is.
    pub async fn update_domain(
        self: &Arc<Self>,
        name: DomainName,
        certificate: Certificate,
    ) -> Result<Domain, Refusal> {
        let term = Arc::clone(self);
        self.detached(async move {
            let _turn = term.domains.turn.lock().await;
            let before = term.own_domain(&name)?;
            let expect = Expect::Revision(before.revision);
            term.commit_domain(name, before.stored.clone(), certificate, expect).await
        })
        .await
    }

    pub async fn delete_domain(self: &Arc<Self>, name: DomainName) -> Result<(), Refusal> {
        let term = Arc::clone(self);
        self.detached(async move {
            let _turn = term.domains.turn.lock().await;
            let before = term.own_domain(&name)?;
            term.remove_domain(&name, &before, "asked for").await
        })
        .await
    }

    /// Removes the domains of what is gone. When that fails, or the leader dies before it, the next sweep or the next leader
    /// does it.
    pub(crate) async fn remove_dangling_domains(&self) {
        // A change under way goes first; the next sweep is soon.
        let Ok(_turn) = self.domains.turn.try_lock() else {
            return;
        };
        let all: Vec<(DomainName, Arc<Entry>)> =
            self.domains.all().iter().map(|(name, entry)| (name.clone(), Arc::clone(entry))).collect();
        for (name, entry) in all.into_iter().filter(|(_, entry)| self.is_dangling(&entry.stored)) {
            if let Err(refusal) = self.remove_domain(&name, &entry, "what it was bound to is gone").await {
                tracing::warn!(domain = %name, %refusal, "not removed yet");
            }
        }
    }

    fn is_dangling(&self, stored: &StoredDomain) -> bool {
        match stored.domain.as_ref().and_then(|domain| domain.target.as_ref()) {
            Some(WireTarget::MicrovmId(id)) => id.parse::<MicrovmId>().is_ok_and(|id| {
                let memory = self.memory();
                match memory.get(&id) {
                    Some(handle) => handle.current().has_ended(),
                    // A record that cannot be read may be one of a microVM that lives.
                    None => !memory.unreadable.contains(&id),
                }
            }),
            Some(WireTarget::ImageName(name)) => name
                .parse::<ImageName>()
                .is_ok_and(|name| self.catalog().image_id(&name).is_none_or(|id| id != stored.image_id)),
            None => false,
        }
    }

    /// What a domain is bound to: on the wire, the label of a microVM's endpoint, an image's UUID.
    fn bound(&self, target: Target) -> Result<(WireTarget, String, String), Refusal> {
        match target {
            Target::Microvm(id) => {
                let microvm = self.handle(&id)?.current();
                if microvm.has_ended() {
                    return Err(Refusal::Terminated(id));
                }
                let label = microvm.spec.endpoint_label.clone();
                Ok((WireTarget::MicrovmId(id.to_string()), label, String::new()))
            }
            Target::Image(name) => match self.catalog().usable_image_id(&name) {
                Some(id) => Ok((WireTarget::ImageName(name.to_string()), String::new(), id.to_owned())),
                None => Err(Refusal::ImageNotFound(name)),
            },
        }
    }

    fn own_domain(&self, name: &DomainName) -> Result<Arc<Entry>, Refusal> {
        let found = self.domains.all().get(name).cloned();
        let is_own = |entry: &Arc<Entry>| {
            entry.stored.domain.as_ref().is_some_and(|domain| domain.account_id == self.config().account)
        };
        found.filter(is_own).ok_or_else(|| not_found(name))
    }

    /// Makes a domain with its certificate durable, then visible. The turn must be held.
    async fn commit_domain(
        &self,
        name: DomainName,
        bound: StoredDomain,
        certificate: Certificate,
        expect: Expect,
    ) -> Result<Domain, Refusal> {
        let domain = Domain {
            certificate_expire_time: Some(api::timestamp(certificate.expires)),
            certificate_sha256: certificate.sha256,
            update_time: Some(api::timestamp(self.wall())),
            ..bound.domain.unwrap_or_default()
        };
        let stored = StoredDomain {
            domain: Some(domain.clone()),
            certificates: certificate.chain,
            private_key: certificate.key,
            ..bound
        };
        let write = Write::Put { key: codec::key(&name), value: codec::encode(&stored), expect, lease: None };
        match self.commit(vec![write]).await? {
            Committed::At(revision) => {
                tracing::info!(domain = %name, sha256 = domain.certificate_sha256, "own domain has a certificate");
                let entry = Entry { stored: codec::public(stored), revision };
                self.domains.all().insert(name, Arc::new(entry));
                Ok(domain)
            }
            // Bound by somebody else, or there is something at the key that cannot be read.
            Committed::Differs(_) if expect == Expect::Absent => Err(Refusal::DomainExists(name)),
            Committed::Differs(found) => Err(self.follow_domain(&name, found)),
        }
    }

    async fn remove_domain(&self, name: &DomainName, before: &Entry, why: &str) -> Result<(), Refusal> {
        let write = Write::Delete { key: codec::key(name), expect: Expect::Revision(before.revision) };
        match self.commit(vec![write]).await? {
            Committed::At(_) => {
                tracing::info!(domain = %name, why, "own domain removed");
                self.domains.all().remove(name);
                Ok(())
            }
            Committed::Differs(found) => Err(self.follow_domain(name, found)),
        }
    }

    /// Somebody else wrote the domain: etcd is right.
    fn follow_domain(&self, name: &DomainName, found: Option<Versioned>) -> Refusal {
        tracing::warn!(domain = %name, "the own domain was changed by somebody else; following it");
        let theirs = found.and_then(|found| codec::decode(&codec::key(name), &found));
        let mut all = self.domains.all();
        match theirs {
            Some((name, entry)) => drop(all.insert(name, Arc::new(entry))),
            None => drop(all.remove(name)),
        }
        Refusal::Store("the own domain was changed by somebody else".to_owned())
    }
}

fn not_found(name: &DomainName) -> Refusal {
    Refusal::DomainNotFound(name.clone())
}
