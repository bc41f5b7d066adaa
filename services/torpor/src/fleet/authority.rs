//! The fleet's own certificate authority: one CA, one certificate per role,
//! kept between runs, renewed before they end. Keys are P-256, mode 0600, owned
//! by the user that needs them.
//!
//! The certificates of the endpoints and of the AWS-compatible API are not a
//! role's: they carry the names that clients dial only, so that what faces the
//! public proves nothing inside the fleet.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData as _,
};
use rpc::Role;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, GeneralName, SubjectPublicKeyInfo, X509Certificate};

use super::files;
use super::plan::{Plan, users};
use crate::error::CliError;

const DAY: Duration = Duration::from_secs(86_400);
const CA_DAYS: u32 = 3650;
const LEAF_DAYS: u32 = 397;
/// A certificate that ends sooner than this is renewed by the next `torpor up`.
const RENEW_BEFORE_DAYS: u32 = 60;
/// File name of the endpoints' certificate.
pub const ENDPOINTS: &str = "endpoints";
/// File name of the API's certificate.
pub const API: &str = "api";

struct Leaf {
    name: &'static str,
    dns: Vec<String>,
    client: bool,
    owner: Option<u32>,
}

/// Makes what is missing or ends soon.
pub fn ensure(plan: &Plan) -> Result<(), CliError> {
    let directory = plan.path("ca");
    files::directory(&directory, 0o711, None)?;
    let issuer = ensure_ca(&directory)?;
    for leaf in leaves(&plan.domain) {
        ensure_leaf(&directory, &leaf, &issuer)?;
    }
    Ok(())
}

/// The CA certificate of a fleet.
pub fn ca_file(plan: &Plan) -> PathBuf {
    plan.path("ca/ca.pem")
}

/// Certificate and key files of a name.
pub fn pair(plan: &Plan, name: &str) -> (PathBuf, PathBuf) {
    (plan.path(&format!("ca/{name}.pem")), plan.path(&format!("ca/{name}.key")))
}

fn leaves(domain: &str) -> Vec<Leaf> {
    let owner = |role| match role {
        Role::Etcd => Some(users::ETCD),
        Role::Scheduler => Some(users::SCHEDULER),
        Role::EdgeProxy => Some(users::EDGE_PROXY),
        Role::ImageBuilder | Role::HostAgent | Role::Admin => None,
    };
    let mut leaves: Vec<Leaf> = Role::ALL
        .into_iter()
        // The first name is the role; the services read no other.
        .map(|role| Leaf {
            name: role.name(),
            dns: vec![role.dns_name(), "localhost".to_owned(), "127.0.0.1".to_owned()],
            client: true,
            owner: owner(role),
        })
        .collect();
    leaves.push(Leaf {
        name: ENDPOINTS,
        dns: vec![format!("*.{domain}"), domain.to_owned(), "localhost".to_owned(), "127.0.0.1".to_owned()],
        client: false,
        owner: Some(users::EDGE_PROXY),
    });
    leaves.push(Leaf {
        name: API,
        dns: ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec(),
        client: false,
        owner: Some(users::EDGE_PROXY),
    });
    leaves
}

fn ensure_ca(directory: &Path) -> Result<Issuer<'static, KeyPair>, CliError> {
    let (certificate, key) = (directory.join("ca.pem"), directory.join("ca.key"));
    if let (Ok(pem), Ok(key_pem)) = (std::fs::read_to_string(&certificate), std::fs::read_to_string(&key)) {
        let key = KeyPair::from_pem(&key_pem).map_err(unusable)?;
        if good_for(&pem).is_some_and(|left| left > DAY * RENEW_BEFORE_DAYS) && signed_by(&pem, &key) {
            return Issuer::from_ca_cert_pem(&pem, key).map_err(unusable);
        }
    }
    let mut params = CertificateParams::new(Vec::<String>::new()).map_err(unusable)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::OrganizationName, "Torpor");
    // A name of its own: certificates of an older CA are told apart by it.
    params.distinguished_name.push(DnType::CommonName, format!("Torpor fleet {}", uuid::Uuid::new_v4()));
    (params.not_before, params.not_after) = validity(CA_DAYS);
    let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(unusable)?;
    let signed = params.self_signed(&pair).map_err(unusable)?;
    // The key first: a certificate without its key would be taken for a CA.
    files::write_private(&key, pair.serialize_pem().as_bytes(), None)?;
    // Dying here leaves the new key beside an older certificate or none: the
    // check above finds that it did not sign it, and both are made anew.
    files::write_public(&certificate, signed.pem().as_bytes())?;
    Ok(Issuer::new(params, pair))
}

fn ensure_leaf(directory: &Path, leaf: &Leaf, issuer: &Issuer<'_, KeyPair>) -> Result<(), CliError> {
    let certificate = directory.join(format!("{}.pem", leaf.name));
    let key = directory.join(format!("{}.key", leaf.name));
    let current = std::fs::read_to_string(&certificate).unwrap_or_default();
    if key.is_file() && fits(&current, leaf, issuer) {
        return Ok(());
    }
    let mut params = CertificateParams::new(leaf.dns.clone()).map_err(unusable)?;
    params.distinguished_name.push(DnType::CommonName, leaf.dns[0].clone());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    if leaf.client {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    }
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) = validity(LEAF_DAYS);
    let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(unusable)?;
    let signed = params.signed_by(&pair, issuer).map_err(unusable)?;
    // Dying between the two removes leaves no certificate: both are made anew.
    let _ = std::fs::remove_file(&certificate);
    files::write_private(&key, pair.serialize_pem().as_bytes(), leaf.owner)?;
    files::write_public(&certificate, signed.pem().as_bytes())?;
    Ok(())
}

/// True when a certificate can go on being used: issued by this CA, for these
/// names, and for long enough.
fn fits(pem: &str, leaf: &Leaf, issuer: &Issuer<'_, KeyPair>) -> bool {
    if good_for(pem).is_none_or(|left| left < DAY * RENEW_BEFORE_DAYS) {
        return false;
    }
    let Some(der) = der(pem) else { return false };
    let Ok((_, parsed)) = X509Certificate::from_der(&der) else {
        return false;
    };
    let mut found = 0;
    if let Ok(Some(names)) = parsed.subject_alternative_name() {
        for name in &names.value.general_names {
            match name {
                GeneralName::DNSName(dns) if leaf.dns.iter().any(|wanted| wanted == dns) => found += 1,
                GeneralName::IPAddress(_) => found += 1,
                _ => return false,
            }
        }
    }
    // By the key we hold now: covers a CA that was made anew.
    found == leaf.dns.len() && signed_by(pem, issuer.key())
}

/// True when a key signed a certificate.
fn signed_by(pem: &str, key: &KeyPair) -> bool {
    let Some(der) = der(pem) else { return false };
    let Ok((_, parsed)) = X509Certificate::from_der(&der) else {
        return false;
    };
    SubjectPublicKeyInfo::from_der(&key.subject_public_key_info())
        .is_ok_and(|(_, key)| parsed.verify_signature(Some(&key)).is_ok())
}

fn der(pem: &str) -> Option<Vec<u8>> {
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
    Some(block.contents)
}

/// How long a certificate is still good; `None` when it is unreadable or over.
fn good_for(pem: &str) -> Option<Duration> {
    let der = der(pem)?;
    let (_, parsed) = X509Certificate::from_der(&der).ok()?;
    parsed.validity().time_to_expiration()?.try_into().ok()
}

fn validity(days: u32) -> (OffsetDateTime, OffsetDateTime) {
    // A day back, for clocks that are a little behind.
    let now = OffsetDateTime::now_utc();
    (now - DAY, now + DAY * days)
}

fn unusable(error: rcgen::Error) -> CliError {
    CliError::failed(format!("cannot make the fleet's certificates: {error}"))
        .next("a damaged ca directory can be deleted while the fleet is down; it is made anew")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::plan::tests::plan;

    fn plan_in(directory: &Path) -> Plan {
        Plan { data_dir: directory.to_owned(), ..plan(&[]) }
    }

    #[test]
    fn certificates_are_kept_and_made_anew_when_they_no_longer_fit() {
        let directory = tempfile::tempdir().unwrap();
        let mut plan = plan_in(directory.path());
        let read = |name: &str| std::fs::read_to_string(directory.path().join("ca").join(name)).unwrap();
        ensure(&plan).unwrap();
        let (scheduler, endpoints) = (read("scheduler.pem"), read("endpoints.pem"));
        ensure(&plan).unwrap();
        assert_eq!(read("scheduler.pem"), scheduler, "kept between runs");
        plan.domain = "example.test".to_owned();
        ensure(&plan).unwrap();
        assert_ne!(read("endpoints.pem"), endpoints, "other names");
        assert_eq!(read("scheduler.pem"), scheduler);
        std::fs::remove_file(directory.path().join("ca/ca.pem")).unwrap();
        ensure(&plan).unwrap();
        assert_ne!(read("scheduler.pem"), scheduler, "another CA");
    }

    #[test]
    fn a_role_can_be_read_by_the_rpc_library_and_the_endpoints_have_none() {
        let directory = tempfile::tempdir().unwrap();
        let plan = plan_in(directory.path());
        ensure(&plan).unwrap();
        for role in Role::ALL {
            let (certificate, key) = pair(&plan, role.name());
            rpc::TlsIdentity::load(&ca_file(&plan), &certificate, &key).expect("usable");
        }
        let text = std::fs::read_to_string(pair(&plan, ENDPOINTS).0).unwrap();
        let der = der(&text).unwrap();
        let (_, parsed) = X509Certificate::from_der(&der).unwrap();
        let names = format!("{:?}", parsed.subject_alternative_name().unwrap().unwrap().value);
        assert!(names.contains("*.microvms.localhost") && !names.contains("torpor.internal"), "{names}");
    }

    #[test]
    fn the_api_is_known_by_its_loopback_names_and_has_no_role() {
        let directory = tempfile::tempdir().unwrap();
        let plan = plan_in(directory.path());
        ensure(&plan).unwrap();
        let (certificate, key) = pair(&plan, API);
        let text = std::fs::read_to_string(&certificate).unwrap();
        let der = der(&text).unwrap();
        let (_, parsed) = X509Certificate::from_der(&der).unwrap();
        let names = parsed.subject_alternative_name().unwrap().unwrap().value;
        let v6: &[u8] = &std::net::Ipv6Addr::LOCALHOST.octets();
        assert_eq!(
            names.general_names,
            [
                GeneralName::DNSName("localhost"),
                GeneralName::IPAddress(&[127, 0, 0, 1]),
                GeneralName::IPAddress(v6),
            ]
        );
        let usage = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && !usage.client_auth);
        use std::os::unix::fs::MetadataExt as _;
        let metadata = std::fs::metadata(key).unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o777), (users::EDGE_PROXY, 0o600));
        ensure(&plan).unwrap();
        assert_eq!(std::fs::read_to_string(certificate).unwrap(), text, "kept between runs");
    }
}
