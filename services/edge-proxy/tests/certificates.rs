//! A CA of the test's own, and the certificates of every process.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rpc::{Role, TlsIdentity};

/// Writes "<name>.pem" and "<name>.key" for each name and its DNS names or
/// addresses, and for each role.
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

/// The identity of a role.
pub fn identity(directory: &Path, role: Role) -> Arc<TlsIdentity> {
    let file = |kind: &str| directory.join(format!("{role}.{kind}"));
    TlsIdentity::load(&directory.join("ca.pem"), &file("pem"), &file("key")).unwrap()
}
