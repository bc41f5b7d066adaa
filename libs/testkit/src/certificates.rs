//! A certificate authority of a test's own, and the certificates of every process.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rpc::{Identity, Role, TlsIdentity};
use settings::TlsSettings;

/// Writes "ca.pem" and "ca.key", and "<name>.pem" and "<name>.key" for each role and for each
/// of `servers`: a name with its DNS names or addresses.
pub fn write(directory: &Path, servers: &[(&str, &[&str])]) {
    let key = KeyPair::generate().unwrap();
    std::fs::write(directory.join("ca.pem"), authority().self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(directory.join("ca.key"), key.serialize_pem()).unwrap();
    for role in Role::ALL {
        issue(directory, role.name(), &Identity::from(role).dns_names());
    }
    for (file, names) in servers {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        issue(directory, file, &names);
    }
}

fn authority() -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

/// Writes "<file>.pem" and "<file>.key", issued by the authority in the directory. The last name is the common name, too.
pub fn issue(directory: &Path, file: &str, names: &[String]) {
    let authority_key = std::fs::read_to_string(directory.join("ca.key")).unwrap();
    let issuer = Issuer::new(authority(), KeyPair::from_pem(&authority_key).unwrap());
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, names.last().unwrap().as_str());
    let certificate = params.signed_by(&key, &issuer).unwrap();
    // Whole at once: who reads them again must not find half of one.
    for (end, text) in [("key", key.serialize_pem()), ("pem", certificate.pem())] {
        let new = directory.join(format!("{file}.{end}.new"));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, directory.join(format!("{file}.{end}"))).unwrap();
    }
}

/// A server's certificate for some names, then the one of its authority, which issued nothing else; and the server's key: all
/// in PEM. It is valid from the first day of a year to the first day of another.
#[must_use]
pub fn chain(names: &[&str], years: Range<i32>) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = authority();
    let authority = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    (params.not_before, params.not_after) =
        (date_time_ymd(years.start, 1, 1), date_time_ymd(years.end, 1, 1));
    let certificate = params.signed_by(&key, &issuer).unwrap();
    (certificate.pem() + &authority, key.serialize_pem())
}

/// The files that [`write`] made for a role or server.
#[must_use]
pub fn files(directory: &Path, name: &str) -> TlsSettings {
    let file = |end: &str| directory.join(format!("{name}.{end}"));
    TlsSettings { ca: directory.join("ca.pem"), cert: file("pem"), key: file("key") }
}

/// The identity of a role.
#[must_use]
pub fn identity(directory: &Path, role: Role) -> Arc<TlsIdentity> {
    let files = files(directory, &role.to_string());
    TlsIdentity::load(&files.ca, &files.cert, &files.key).unwrap()
}

/// The files of a host's own certificate, which is made when it is not there.
#[must_use]
pub fn host_files(directory: &Path, id: &str) -> TlsSettings {
    let name = format!("host-agent-of-{id}");
    let files = files(directory, &name);
    if !files.cert.exists() {
        issue(directory, &name, &Identity::of_host(id).dns_names());
    }
    files
}

/// The identity of a host.
#[must_use]
pub fn host(directory: &Path, id: &str) -> Arc<TlsIdentity> {
    let files = host_files(directory, id);
    TlsIdentity::load(&files.ca, &files.cert, &files.key).unwrap()
}
