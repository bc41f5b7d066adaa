//! Own domains, followed in etcd: their certificates, and which microVM a name stands for.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use api::domain::v1::StoredDomain;
use api::domain::v1::domain::Target;
use model::DomainName;
use model::domains::{endpoint_label, is_within};
use model::limits::DOMAINS_MAX;
use prost::Message as _;
use records::{Entries, Mirror, Store};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use uuid::Uuid;

/// Prefix of the domains in etcd; the name follows.
const PREFIX: &str = "domains/";

type ByName = HashMap<String, Arc<OwnDomain>>;

/// One domain, read once per change of its record.
#[derive(Debug)]
struct OwnDomain {
    certificate: Arc<CertifiedKey>,
    leads_to: LeadsTo,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum LeadsTo {
    /// The microVM with this endpoint label.
    Microvm(Uuid),
    /// The image's microVM with the label that the name begins with.
    Image(Arc<str>),
}

/// The microVM that a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// First label of the microVM's endpoint.
    pub label: Uuid,
    /// Image that the microVM must be of; absent when any will do.
    pub image: Option<Arc<str>>,
}

/// The own domains as they are now. Clones share them.
#[derive(Debug, Clone)]
pub struct Domains {
    mirror: Mirror<ByName>,
    /// Domain of the fleet's own endpoints, no name of which is looked for.
    fleet: Arc<str>,
}

impl Domains {
    /// Follows the domains in etcd. `fleet` is the domain of the fleet's endpoints.
    pub fn follow(store: &Store, fleet: &str) -> Self {
        rpc::install_crypto_provider();
        let mirror = Mirror::follow(store, PREFIX, entries(fleet.to_owned()), |all| {
            tracing::info!(domains = all.len(), "own domains changed");
            Some(by_name(all))
        });
        Self { mirror, fleet: fleet.into() }
    }

    /// Waits for the first listing, a bounded time.
    pub async fn listed(&self) {
        let _ = self.mirror.get().await;
    }

    /// The certificate for a name that TLS calls; `None` for names of the fleet and unknown ones.
    pub fn certificate(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let (domain, _) = self.find(name)?;
        Some(domain.certificate.clone())
    }

    /// Where a host name without a port leads; `None` for names of the fleet and unknown ones.
    pub fn destination(&self, name: &str) -> Option<Destination> {
        let (domain, label) = self.find(name)?;
        match &domain.leads_to {
            LeadsTo::Microvm(label) => Some(Destination { label: *label, image: None }),
            LeadsTo::Image(image) => Some(Destination { label: label?, image: Some(image.clone()) }),
        }
    }

    /// The domain of a name, and the endpoint label that the name begins with, when it is a wildcard's. One look-up: a name
    /// that begins with such a label is a wildcard's, any other is its own.
    fn find(&self, name: &str) -> Option<(Arc<OwnDomain>, Option<Uuid>)> {
        if is_within(name, &self.fleet) {
            return None;
        }
        let all = self.mirror.now().filter(|all| !all.is_empty())?;
        let name = name.to_ascii_lowercase();
        match endpoint_label(&name) {
            Some((label, rest)) => Some((all.get(&DomainName::text_of_wildcard(rest))?.clone(), Some(label))),
            None => Some((all.get(&name)?.clone(), None)),
        }
    }
}

fn by_name(entries: &BTreeMap<String, Arc<OwnDomain>>) -> ByName {
    let name = |key: &str| key.strip_prefix(PREFIX).unwrap_or(key).to_owned();
    entries.iter().map(|(key, domain)| (name(key), domain.clone())).collect()
}

fn entries(fleet: String) -> Entries<Arc<OwnDomain>> {
    Entries::new(DOMAINS_MAX, move |key, value| {
        let domain = read(key, value, &fleet);
        domain
            .inspect_err(|fault| tracing::error!(key, fault, "an own domain is left out"))
            .ok()
            .map(Arc::new)
    })
}

/// The domain of an entry, or why it is not served. Says nothing secret: no words of decoders, which may quote the key.
fn read(key: &str, value: &[u8], fleet: &str) -> Result<OwnDomain, &'static str> {
    let stored = StoredDomain::decode(value).map_err(|_| "not an own domain")?;
    let domain = stored.domain.unwrap_or_default();
    if key.strip_prefix(PREFIX) != Some(domain.name.as_str()) {
        return Err("stored under another name");
    }
    let name: DomainName = domain.name.parse().map_err(|_| "not the name of a domain")?;
    if name.shadows(fleet) {
        return Err("in the fleet's own domain");
    }
    let leads_to = match domain.target {
        Some(Target::MicrovmId(_)) if name.wildcard().is_none() => {
            LeadsTo::Microvm(stored.endpoint_label.parse().map_err(|_| "without its microVM's label")?)
        }
        Some(Target::ImageName(image)) if name.wildcard().is_some() => LeadsTo::Image(image.into()),
        _ => return Err("not bound to what its name is for"),
    };
    let key = PrivateKeyDer::try_from(stored.private_key).map_err(|_| "its private key is none")?;
    let chain: Vec<_> = stored.certificates.into_iter().map(CertificateDer::from).collect();
    let certificate = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
        .map_err(|_| "its certificate and key are of no use")?;
    Ok(OwnDomain { certificate: Arc::new(certificate), leads_to })
}

#[cfg(test)]
mod tests {
    use api::domain::v1::Domain;
    use records::{Event, Versioned};
    use rustls::pki_types::pem::PemObject as _;
    use testkit::certificates;
    use tokio::sync::watch;

    use super::*;

    const FLEET: &str = "microvms.test";
    const LABEL: &str = "0b6e5e1e-1111-4222-8333-000000000001";

    fn stored(directory: &tempfile::TempDir, name: &str, target: Target) -> StoredDomain {
        let file = |end: &str| directory.path().join(format!("own.{end}"));
        StoredDomain {
            domain: Some(Domain { name: name.to_owned(), target: Some(target), ..Domain::default() }),
            endpoint_label: LABEL.to_owned(),
            image_id: String::new(),
            certificates: vec![CertificateDer::from_pem_file(file("pem")).unwrap().to_vec()],
            private_key: PrivateKeyDer::from_pem_file(file("key")).unwrap().secret_der().to_vec(),
        }
    }

    fn files() -> tempfile::TempDir {
        rpc::install_crypto_provider();
        let directory = tempfile::tempdir().unwrap();
        certificates::write(directory.path(), &[("own", &["app.test.example"])]);
        directory
    }

    fn microvm() -> Target {
        Target::MicrovmId(format!("microvm-{LABEL}"))
    }

    #[test]
    fn names_lead_to_their_microvms() {
        let directory = files();
        let mut all = entries(FLEET.to_owned());
        let mut put = |name: &str, target| {
            let value = stored(&directory, name, target).encode_to_vec();
            all.apply(Event::Put(format!("{PREFIX}{name}"), Versioned { value, revision: 1 }));
        };
        put("app.test.example", microvm());
        put("*.apps.example.com", Target::ImageName("app".to_owned()));
        let (_sender, current) = watch::channel(Some(Arc::new(by_name(all.all()))));
        let domains = Domains { mirror: Mirror::of(current), fleet: FLEET.into() };
        let label = LABEL.parse().unwrap();
        let of_microvm = Some(Destination { label, image: None });
        let of_image = Some(Destination { label, image: Some("app".into()) });
        for (name, leads_to) in [
            ("app.test.example".to_owned(), &of_microvm),
            ("APP.Test.Example".to_owned(), &of_microvm),
            (format!("{LABEL}.apps.example.com"), &of_image),
            (format!("{}.apps.example.com", LABEL.to_uppercase()), &of_image),
            ("apps.example.com".to_owned(), &None),
            ("x.apps.example.com".to_owned(), &None),
            ("*.apps.example.com".to_owned(), &None),
            (format!("{LABEL}.app.test.example"), &None),
            (format!("{LABEL}.{FLEET}"), &None),
            (FLEET.to_owned(), &None),
            (String::new(), &None),
        ] {
            let found = domains.destination(&name);
            // A wildcard's own text is no host name; nothing is behind it.
            assert_eq!(&found, leads_to, "{name}");
            let shown = domains.certificate(&name).is_some();
            assert_eq!(shown, leads_to.is_some() || name.starts_with('*'), "{name}");
        }
    }

    #[test]
    fn what_cannot_be_served_is_left_out() {
        let directory = files();
        let image = || Target::ImageName("app".to_owned());
        let good = stored(&directory, "app.test.example", microvm());
        let changed = |change: fn(&mut StoredDomain)| {
            let mut stored = good.clone();
            change(&mut stored);
            stored
        };
        read("domains/app.test.example", &good.encode_to_vec(), FLEET).unwrap();
        for (name, stored, fault) in [
            ("b.example.com", good.clone(), "another name"),
            (
                "app.microvms.test",
                stored(&directory, "app.microvms.test", microvm()),
                "the fleet's own domain",
            ),
            ("*.test", stored(&directory, "*.test", image()), "not the name"),
            ("a.example", stored(&directory, "a.example", image()), "not bound"),
            ("*.a.example", stored(&directory, "*.a.example", microvm()), "not bound"),
            ("app.test.example", changed(|stored| stored.endpoint_label.clear()), "label"),
            ("app.test.example", changed(|stored| stored.private_key.clear()), "private key"),
            ("app.test.example", changed(|stored| stored.certificates.clear()), "of no use"),
        ] {
            let said = read(&format!("{PREFIX}{name}"), &stored.encode_to_vec(), FLEET).unwrap_err();
            assert!(said.contains(fault), "{name}: {said}");
        }
        assert_eq!(read("domains/x", b"\xff", FLEET).unwrap_err(), "not an own domain");
    }
}
