//! Own domains in etcd, `domains/<name>`: written here, watched by the edges.
//! Their private keys pass through and are never kept in memory.

use api::domain::v1::StoredDomain;
use model::DomainName;
use prost::Message as _;
use records::Versioned;

pub const PREFIX: &str = "domains/";

/// A domain without its certificates and key, and the revision etcd holds it at.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub stored: StoredDomain,
    pub revision: i64,
}

pub fn key(name: &DomainName) -> String {
    format!("{PREFIX}{name}")
}

pub fn encode(stored: &StoredDomain) -> Vec<u8> {
    stored.encode_to_vec()
}

/// A domain from its key and bytes, without its certificates and key; `None` when they are not one.
pub fn decode(key: &str, found: &Versioned) -> Option<(DomainName, Entry)> {
    let name: DomainName = key.strip_prefix(PREFIX)?.parse().ok()?;
    let stored = StoredDomain::decode(found.value.as_slice()).ok()?;
    let domain = stored.domain.as_ref()?;
    let whole = domain.name == name.as_str() && domain.target.is_some();
    whole.then(|| (name, Entry { stored: public(stored), revision: found.revision }))
}

/// What of a domain is no secret.
pub fn public(stored: StoredDomain) -> StoredDomain {
    StoredDomain { certificates: Vec::new(), private_key: Vec::new(), ..stored }
}

#[cfg(test)]
mod tests {
    use api::domain::v1::Domain;
    use api::domain::v1::domain::Target;

    use super::*;

    #[test]
    fn a_record_is_read_without_its_secrets() {
        let stored = |name: &str, target| StoredDomain {
            domain: Some(Domain { name: name.to_owned(), target, ..Domain::default() }),
            certificates: vec![vec![1]],
            private_key: vec![2],
            ..StoredDomain::default()
        };
        let image = Some(Target::ImageName("app".to_owned()));
        let read =
            |key: &str, stored: &StoredDomain| decode(key, &Versioned { value: encode(stored), revision: 7 });
        let (name, entry) = read("domains/*.a.example", &stored("*.a.example", image.clone())).unwrap();
        assert_eq!((key(&name).as_str(), entry.revision), ("domains/*.a.example", 7));
        assert!(entry.stored.certificates.is_empty() && entry.stored.private_key.is_empty());
        for (key, stored) in [
            ("domains/b.example", stored("*.a.example", image.clone())),
            ("domains/*.a.example", stored("*.a.example", None)),
            ("domains/A", stored("A", image)),
            ("domains/*.a.example", StoredDomain::default()),
        ] {
            assert!(read(key, &stored).is_none(), "{key}");
        }
        let shown = format!("{:?}", stored("*.a.example", None));
        assert!(!shown.contains("private_key"), "{shown}");
    }
}
