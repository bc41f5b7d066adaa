//! The fleet's own certificate authority: one CA, one certificate per role, and one per host, kept between runs, renewed
//! before they end. Keys are P-256, mode 0600, owned by the user that needs them. A certificate's common name is its user
//! in etcd. [`super::rotation`] puts another CA in the place of this one.
//!
//! The certificates of the endpoints and of the AWS-compatible API are not a role's: they carry the names
//! that clients dial only, so that what faces the public proves nothing inside the fleet.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::HostId;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData as _,
};
use rpc::{Identity, Role};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use time::OffsetDateTime;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::files;
use super::plan::{Plan, users};
use crate::error::CliError;

const DAY: Duration = Duration::from_secs(86_400);
/// Common name of a CA before the UUID that tells it from earlier ones.
const CA_NAME: &str = "Torpor fleet ";
const UUID_LENGTH: usize = 36;
const CA_DAYS: u32 = 3650;
const LEAF_DAYS: u32 = 397;
/// A certificate that ends sooner than this is renewed by the next `torpor up`.
const RENEW_BEFORE_DAYS: u32 = 60;
pub const ENDPOINTS: &str = "endpoints";
pub const API: &str = "api";
/// The certificate with which `torpor` gives rights in etcd.
pub const ETCD_ROOT: &str = "etcd-root";

/// What a certificate is to say, and whose its key is.
pub struct Leaf {
    /// Of its files.
    pub name: String,
    common_name: String,
    dns: Vec<String>,
    client: bool,
    owner: Option<u32>,
}

/// Makes what is missing or ends soon. Nothing of the fleet runs yet: a rotation that was broken off is finished.
pub fn ensure(plan: &Plan) -> Result<(), CliError> {
    let directory = plan.path("ca");
    files::directory(&directory, 0o711, None)?;
    super::rotation::finish_at_rest(&directory)?;
    let ca = ensure_ca(&directory, OffsetDateTime::now_utc())?;
    let mut hosts = issued_hosts(&directory)?;
    hosts.extend((1..=plan.hosts).map(Plan::host_id));
    for leaf in leaves(&plan.domain, &hosts) {
        ensure_leaf(&directory, &leaf, &ca)?;
    }
    // Of versions whose hosts shared a certificate: it names no host, and nobody takes it.
    for end in ["pem", "key"] {
        let _ = std::fs::remove_file(directory.join(format!("{}.{end}", Role::HostAgent)));
    }
    super::roots::write(&ca_file(plan))
}

/// Makes the certificate of a host that may be anywhere, if there is none that can be used.
pub fn issue(directory: &Path, host: &HostId) -> Result<(), CliError> {
    let ca = ensure_ca(directory, OffsetDateTime::now_utc())?;
    ensure_leaf(directory, &host_leaf(host.as_str()), &ca)
}

/// A client's certificate for which nobody has a use, to see who takes it.
pub fn trial_leaf(name: &str) -> Leaf {
    Leaf {
        name: name.to_owned(),
        common_name: name.to_owned(),
        dns: vec![name.to_owned()],
        client: true,
        owner: None,
    }
}

/// Whether a certificate is as it should be, and of this CA.
pub fn is_made(directory: &Path, leaf: &Leaf, ca: &Ca) -> bool {
    let current = CertificateDer::from_pem_file(directory.join(format!("{}.pem", leaf.name)));
    directory.join(format!("{}.key", leaf.name)).is_file()
        && current.is_ok_and(|current| fits(&current, leaf, ca))
}

/// The name of the files of a host's certificate.
pub fn of_host(id: &str) -> String {
    format!("{}.{id}", Role::HostAgent)
}

/// The hosts that have a certificate.
pub fn issued_hosts(directory: &Path) -> Result<BTreeSet<String>, CliError> {
    let mut hosts = BTreeSet::new();
    for entry in std::fs::read_dir(directory).map_err(|error| files::named(directory, &error))? {
        let name = entry?.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix(&of_host(""))?.strip_suffix(".pem"));
        hosts.extend(id.filter(|id| id.parse::<HostId>().is_ok()).map(str::to_owned));
    }
    Ok(hosts)
}

pub fn ca_file(plan: &Plan) -> PathBuf {
    plan.path("ca/ca.pem")
}

pub fn pair(plan: &Plan, name: &str) -> (PathBuf, PathBuf) {
    (plan.path(&format!("ca/{name}.pem")), plan.path(&format!("ca/{name}.key")))
}

/// Every certificate of a fleet whose endpoints are under `domain`.
pub fn leaves(domain: &str, hosts: &BTreeSet<String>) -> Vec<Leaf> {
    let owner = |role| match role {
        Role::Etcd => Some(users::ETCD),
        Role::Scheduler => Some(users::SCHEDULER),
        Role::EdgeProxy => Some(users::EDGE_PROXY),
        Role::ImageBuilder | Role::HostAgent | Role::Admin => None,
    };
    let roles = Role::ALL.into_iter().filter(|role| *role != Role::HostAgent);
    let mut leaves: Vec<Leaf> =
        roles.map(|role| internal(role.name().to_owned(), &role.into(), owner(role))).collect();
    leaves.extend(hosts.iter().map(|id| host_leaf(id)));
    leaves.push(Leaf {
        name: ETCD_ROOT.to_owned(),
        common_name: records::ROOT_USER.to_owned(),
        // No role: it opens no service.
        dns: vec![format!("root.{}", Role::Etcd.dns_name())],
        client: true,
        owner: None,
    });
    let public = |name: &str, dns: Vec<String>| Leaf {
        name: name.to_owned(),
        common_name: dns[0].clone(),
        dns,
        client: false,
        owner: Some(users::EDGE_PROXY),
    };
    let loopback = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let endpoints = [format!("*.{domain}"), domain.to_owned()];
    leaves.push(public(ENDPOINTS, endpoints.into_iter().chain(loopback.clone()).collect()));
    leaves.push(public(API, loopback.to_vec()));
    leaves
}

/// A certificate for mutual TLS in the fleet. The services read who somebody is from the first names.
fn internal(name: String, identity: &Identity, owner: Option<u32>) -> Leaf {
    let mut dns = identity.dns_names();
    dns.extend(["localhost", "127.0.0.1"].map(str::to_owned));
    Leaf { name, common_name: identity.dns_name(), dns, client: true, owner }
}

fn host_leaf(id: &str) -> Leaf {
    internal(of_host(id), &Identity::of_host(id), None)
}

/// The CA, with what signs for it and what it proves.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub certificate: CertificateDer<'static>,
}

fn ensure_ca(directory: &Path, now: OffsetDateTime) -> Result<Ca, CliError> {
    ca_in(&directory.join("ca.pem"), &directory.join("ca.key"), now)
}

/// The CA in two files, which is made when there is none that is ours and good for long enough.
pub fn ca_in(certificate: &Path, key: &Path, now: OffsetDateTime) -> Result<Ca, CliError> {
    if let Some(ca) =
        read_ca(certificate, key, now)?.filter(|ca| is_ca_still_in(&ca.certificate, RENEW_BEFORE_DAYS))
    {
        return Ok(ca);
    }
    // A name of its own: certificates of an older CA are told apart by it.
    let params = ca_params(&uuid::Uuid::new_v4().to_string(), now)?;
    let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(unusable)?;
    let signed = params.self_signed(&pair).map_err(unusable)?;
    // The key first: a certificate without its key would be taken for a CA.
    files::write_private(key, pair.serialize_pem().as_bytes(), None)?;
    // Dying here leaves the new key beside an older certificate or none: the
    // check above finds that they do not fit, and both are made anew.
    files::write_public(certificate, signed.pem().as_bytes())?;
    Ok(Ca { issuer: Issuer::new(params, pair), certificate: signed.der().clone() })
}

/// The CA in two files; `None` when there is none, or none of ours.
pub fn read_ca(certificate: &Path, key: &Path, now: OffsetDateTime) -> Result<Option<Ca>, CliError> {
    let (Ok(certificate), Ok(key)) =
        (CertificateDer::from_pem_file(certificate), std::fs::read_to_string(key))
    else {
        return Ok(None);
    };
    let key = KeyPair::from_pem(&key).map_err(unusable)?;
    let Some(name) = ca_name(&certificate, &key) else { return Ok(None) };
    Ok(Some(Ca { issuer: Issuer::new(ca_params(&name, now)?, key), certificate }))
}

fn ca_params(name: &str, now: OffsetDateTime) -> Result<CertificateParams, CliError> {
    let mut params = CertificateParams::new(Vec::<String>::new()).map_err(unusable)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::OrganizationName, "Torpor");
    params.distinguished_name.push(DnType::CommonName, format!("{CA_NAME}{name}"));
    (params.not_before, params.not_after) = validity(now, CA_DAYS);
    Ok(params)
}

/// The UUID in the name of a CA of ours; `None` when the certificate is another's or of another key.
fn ca_name(certificate: &CertificateDer<'_>, key: &KeyPair) -> Option<String> {
    let anchor = anchor_from_trusted_cert(certificate).ok()?;
    // The anchor has the content of the key's DER without the header.
    if !key.subject_public_key_info().ends_with(&anchor.subject_public_key_info) {
        return None;
    }
    let subject = String::from_utf8_lossy(&anchor.subject);
    let name = subject.split_once(CA_NAME)?.1.get(..UUID_LENGTH)?;
    uuid::Uuid::parse_str(name).ok().map(|_| name.to_owned())
}

/// True when a certificate is a CA's that is good now and in so many days. The
/// validity is checked first; then a CA is refused as what it is, not a leaf.
fn is_ca_still_in(certificate: &CertificateDer<'_>, days: u32) -> bool {
    let Ok(anchor) = anchor_from_trusted_cert(certificate) else { return false };
    [0, days]
        .into_iter()
        .all(|days| matches!(verify(certificate, &anchor, days), Err(webpki::Error::CaUsedAsEndEntity)))
}

/// Verifies a server's certificate against a CA, as if it were so many days later.
fn verify(
    certificate: &CertificateDer<'_>,
    anchor: &TrustAnchor<'_>,
    days: u32,
) -> Result<(), webpki::Error> {
    let at = UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs()) + DAY * days);
    EndEntityCert::try_from(certificate)?
        .verify_for_usage(
            &[webpki::aws_lc_rs::ECDSA_P256_SHA256],
            std::slice::from_ref(anchor),
            &[],
            at,
            KeyUsage::server_auth(),
            None,
            None,
        )
        .map(|_| ())
}

/// Makes a certificate that is not there, or is not as it should be, or ends soon.
pub fn ensure_leaf(directory: &Path, leaf: &Leaf, ca: &Ca) -> Result<(), CliError> {
    let certificate = directory.join(format!("{}.pem", leaf.name));
    let key = directory.join(format!("{}.key", leaf.name));
    if is_made(directory, leaf, ca) {
        return Ok(());
    }
    let mut params = CertificateParams::new(leaf.dns.clone()).map_err(unusable)?;
    params.distinguished_name.push(DnType::CommonName, leaf.common_name.clone());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    if leaf.client {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    }
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) = validity(OffsetDateTime::now_utc(), LEAF_DAYS);
    let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(unusable)?;
    let signed = params.signed_by(&pair, &ca.issuer).map_err(unusable)?;
    // Dying between the two leaves the old certificate, which is still not as it should be: both are made anew. A service
    // that reads the pair in between finds that it does not fit, keeps what it has and looks again.
    files::write_private(&key, pair.serialize_pem().as_bytes(), leaf.owner)?;
    files::write_public(&certificate, signed.pem().as_bytes())?;
    Ok(())
}

/// True when a certificate can go on being used: issued by this CA, for these names, and for long enough.
fn fits(certificate: &CertificateDer<'_>, leaf: &Leaf, ca: &Ca) -> bool {
    let (Ok(parsed), Ok(anchor)) =
        (EndEntityCert::try_from(certificate), anchor_from_trusted_cert(&ca.certificate))
    else {
        return false;
    };
    let (addresses, names): (Vec<&String>, Vec<&String>) =
        leaf.dns.iter().partition(|name| name.parse::<std::net::IpAddr>().is_ok());
    let good_for = |address: &String| {
        ServerName::try_from(address.as_str())
            .is_ok_and(|name| parsed.verify_is_valid_for_subject_name(&name).is_ok())
    };
    parsed.valid_dns_names().eq(names)
        && addresses.into_iter().all(good_for)
        && verify(certificate, &anchor, RENEW_BEFORE_DAYS).is_ok()
}

fn validity(now: OffsetDateTime, days: u32) -> (OffsetDateTime, OffsetDateTime) {
    // A day back, for clocks that are a little behind.
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

    fn names(certificate: &Path) -> Vec<String> {
        let der = CertificateDer::from_pem_file(certificate).unwrap();
        let parsed = EndEntityCert::try_from(&der).unwrap();
        parsed.valid_dns_names().map(str::to_owned).collect()
    }

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
    fn a_ca_is_kept_by_its_name_and_key_and_made_anew_before_it_ends() {
        let directory = tempfile::tempdir().unwrap();
        let read = || std::fs::read_to_string(directory.path().join("ca.pem")).unwrap();
        let now = OffsetDateTime::now_utc();
        let days = |days: u32| DAY * days;
        // One that ends in a month.
        ensure_ca(directory.path(), now - days(CA_DAYS - 30)).unwrap();
        let old = read();
        let ca = ensure_ca(directory.path(), now).unwrap();
        assert_ne!(read(), old, "made anew");
        let kept = read();
        let again = ensure_ca(directory.path(), now).unwrap();
        assert_eq!(read(), kept);
        let leaf = &leaves("example.test", &BTreeSet::new())[0];
        ensure_leaf(directory.path(), leaf, &again).unwrap();
        let der = CertificateDer::from_pem_file(directory.path().join(format!("{}.pem", leaf.name))).unwrap();
        assert!(fits(&der, leaf, &ca), "a CA that is read signs as the one that was made");
        // Another key beside the certificate.
        let stray = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        std::fs::write(directory.path().join("ca.key"), stray.serialize_pem()).unwrap();
        ensure_ca(directory.path(), now).unwrap();
        assert_ne!(read(), kept, "made anew");
    }

    #[test]
    fn a_role_can_be_read_by_the_rpc_library_and_the_endpoints_have_none() {
        let directory = tempfile::tempdir().unwrap();
        let plan = plan_in(directory.path());
        ensure(&plan).unwrap();
        let roles = Role::ALL.into_iter().filter(|role| *role != Role::HostAgent);
        let identities = roles.map(|role| (role.name().to_owned(), Identity::from(role)));
        for (name, identity) in identities.chain([(of_host("host-1"), Identity::of_host("host-1"))]) {
            let (certificate, key) = pair(&plan, &name);
            rpc::TlsIdentity::load(&ca_file(&plan), &certificate, &key).expect("usable");
            let der = CertificateDer::from_pem_file(&certificate).unwrap();
            assert_eq!(rpc::Facts::of(&der).unwrap().common_name, identity.dns_name());
            assert_eq!(Identity::in_chain(&[der]), Some(identity));
        }
        let der = CertificateDer::from_pem_file(pair(&plan, ETCD_ROOT).0).unwrap();
        assert_eq!(rpc::Facts::of(&der).unwrap().common_name, "root");
        assert_eq!(Identity::in_chain(&[der]), None, "it opens no service");
        let names = names(&pair(&plan, ENDPOINTS).0);
        assert!(names.contains(&"*.microvms.localhost".to_owned()), "{names:?}");
        assert!(!names.iter().any(|name| name.contains("torpor.internal")), "{names:?}");
    }

    #[test]
    fn the_api_is_known_by_its_loopback_names_and_has_no_role() {
        let directory = tempfile::tempdir().unwrap();
        let plan = plan_in(directory.path());
        ensure(&plan).unwrap();
        let (certificate, key) = pair(&plan, API);
        let text = std::fs::read_to_string(&certificate).unwrap();
        assert_eq!(names(&certificate), ["localhost"]);
        let der = CertificateDer::from_pem_file(&certificate).unwrap();
        let parsed = EndEntityCert::try_from(&der).unwrap();
        for address in ["127.0.0.1", "::1"] {
            let name = ServerName::try_from(address).unwrap();
            parsed.verify_is_valid_for_subject_name(&name).expect(address);
        }
        let ca = CertificateDer::from_pem_file(ca_file(&plan)).unwrap();
        let anchor = anchor_from_trusted_cert(&ca).unwrap();
        verify(&der, &anchor, 0).expect("a server's");
        let as_client = parsed.verify_for_usage(
            &[webpki::aws_lc_rs::ECDSA_P256_SHA256],
            std::slice::from_ref(&anchor),
            &[],
            UnixTime::now(),
            KeyUsage::client_auth(),
            None,
            None,
        );
        assert!(as_client.is_err(), "no client's");
        use std::os::unix::fs::MetadataExt as _;
        let metadata = std::fs::metadata(key).unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o777), (users::EDGE_PROXY, 0o600));
        ensure(&plan).unwrap();
        assert_eq!(std::fs::read_to_string(certificate).unwrap(), text, "kept between runs");
    }
}
