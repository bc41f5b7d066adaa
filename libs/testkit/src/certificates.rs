//! A certificate authority of a test's own, and the certificates of every process.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rpc::{Role, TlsIdentity};
use settings::TlsSettings;

/// Writes "ca.pem", and "<name>.pem" and "<name>.key" for each role and for each
/// of `servers`: a name with its DNS names or addresses.
pub fn write(directory: &Path, servers: &[(&str, &[&str])]) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(directory.join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(params, key);
    let roles = Role::ALL.map(|role| (role.to_string(), vec![role.dns_name()]));
    let servers = servers.iter().map(|(file, names)| {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        ((*file).to_owned(), names)
    });
    for (file, names) in roles.into_iter().chain(servers) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(names).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(directory.join(format!("{file}.pem")), certificate.pem()).unwrap();
        std::fs::write(directory.join(format!("{file}.key")), key.serialize_pem()).unwrap();
    }
}

/// A server's certificate for some names, then the one of its authority, which issued nothing else; and the server's key: all
/// in PEM. It is valid from the first day of a year to the first day of another.
#[must_use]
pub fn chain(names: &[&str], years: Range<i32>) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
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
