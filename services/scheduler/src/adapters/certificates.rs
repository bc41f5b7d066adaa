//! Certificate chains with their keys, as owners of domains hand them over: read from PEM and checked, so that an edge
//! that is given one can serve it. Who signed it is the clients' business.

use std::fmt;
use std::time::{Duration, SystemTime};

use ::aws_lc_rs::digest::{SHA256, digest};
use model::DomainName;
use model::limits::{DOMAIN_CERTIFICATES_MAX, DOMAIN_CHAIN_BYTES_MAX, DOMAIN_KEY_BYTES_MAX};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Most names of a certificate that an error shows.
const NAMES_SHOWN_MAX: usize = 5;

/// A chain and the key of its first certificate, in DER.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    pub chain: Vec<Vec<u8>>,
    pub key: Vec<u8>,
    pub expires: SystemTime,
    /// Fingerprint of the first certificate, hex.
    pub sha256: String,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("sha256", &self.sha256).finish_non_exhaustive()
    }
}

/// What is wrong with a certificate or its key. Nothing of the key is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    Chain(String),
    Key(String),
}

/// Reads a chain and its key for a name that they are to serve.
pub fn read(chain: &str, key: &str, name: &DomainName, now: SystemTime) -> Result<Certificate, Fault> {
    let certificates = certificates(chain)?;
    let key = private_key(key)?;
    let Some(own) = certificates.first() else {
        return Err(Fault::Chain("must hold a certificate in PEM".to_owned()));
    };
    let expires = validity(own, now)?;
    covers(own, name)?;
    hangs_together(&certificates, now)?;
    let made = CertifiedKey::from_der(certificates.clone(), key.clone_key(), &aws_lc_rs::default_provider());
    made.map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            Fault::Key("is not the key of the first certificate".to_owned())
        }
        _ => Fault::Key("must be an RSA, ECDSA or Ed25519 key of a kind that TLS uses".to_owned()),
    })?;
    Ok(Certificate {
        chain: certificates.iter().map(|certificate| certificate.to_vec()).collect(),
        key: key.secret_der().to_vec(),
        expires,
        sha256: fingerprint(own),
    })
}

fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let wrong = |message: String| Err(Fault::Chain(message));
    if text.len() > DOMAIN_CHAIN_BYTES_MAX {
        return wrong(format!("must be at most {DOMAIN_CHAIN_BYTES_MAX} bytes"));
    }
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let Ok(found) = found else { return wrong("is not PEM".to_owned()) };
    if !(1..=DOMAIN_CERTIFICATES_MAX).contains(&found.len()) {
        return wrong(format!("must hold 1 to {DOMAIN_CERTIFICATES_MAX} certificates in PEM"));
    }
    let unreadable = found.iter().position(|certificate| parsed(certificate).is_none());
    match unreadable {
        Some(index) => wrong(format!("holds something as certificate {} that is none", index + 1)),
        None => Ok(found),
    }
}

fn private_key(text: &str) -> Result<PrivateKeyDer<'static>, Fault> {
    if text.len() > DOMAIN_KEY_BYTES_MAX {
        return Err(Fault::Key(format!("must be at most {DOMAIN_KEY_BYTES_MAX} bytes")));
    }
    // Without the parser's words: they may quote the key.
    PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| {
        Fault::Key("must be a private key in PEM (PKCS #8, PKCS #1 or SEC 1), not encrypted".to_owned())
    })
}

fn parsed<'a>(certificate: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    match X509Certificate::from_der(certificate) {
        Ok(([], parsed)) => Some(parsed),
        _ => None,
    }
}

/// When the certificate expires; an error when it is not valid now.
fn validity(certificate: &CertificateDer<'_>, now: SystemTime) -> Result<SystemTime, Fault> {
    let wrong = |message: String| Err(Fault::Chain(message));
    let Some(parsed) = parsed(certificate) else { return wrong("is not X.509".to_owned()) };
    let validity = parsed.validity();
    let at = |seconds: i64| {
        let since = u64::try_from(seconds).unwrap_or(0);
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(since)).unwrap_or(SystemTime::UNIX_EPOCH)
    };
    let (begins, expires) = (at(validity.not_before.timestamp()), at(validity.not_after.timestamp()));
    if now < begins {
        return wrong(format!("is not valid before {}", validity.not_before));
    }
    if now > expires {
        return wrong(format!("expired on {}", validity.not_after));
    }
    Ok(expires)
}

fn covers(certificate: &CertificateDer<'_>, name: &DomainName) -> Result<(), Fault> {
    let wrong = |message: String| Err(Fault::Chain(message));
    let end = match EndEntityCert::try_from(certificate) {
        Ok(end) => end,
        Err(error) => return wrong(format!("cannot be a server's: {error}")),
    };
    let covered = ServerName::try_from(name.sample())
        .is_ok_and(|sample| end.verify_is_valid_for_subject_name(&sample).is_ok());
    if covered {
        return Ok(());
    }
    let mut names = end.valid_dns_names();
    let shown: Vec<&str> = names.by_ref().take(NAMES_SHOWN_MAX).collect();
    let more = if names.next().is_some() { ", …" } else { "" };
    wrong(match shown.as_slice() {
        [] => format!("is not for {name}: it has no DNS names"),
        _ => format!("is not for {name} but for {}{more}", shown.join(", ")),
    })
}

/// Each certificate must lead to the last one, or clients would not get further than it.
fn hangs_together(chain: &[CertificateDer<'_>], now: SystemTime) -> Result<(), Fault> {
    let [own, between @ .., last] = chain else { return Ok(()) };
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let verified = anchor_from_trusted_cert(last).and_then(|anchor| {
        EndEntityCert::try_from(own)?
            .verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &[anchor],
                between,
                UnixTime::since_unix_epoch(since),
                KeyUsage::server_auth(),
                None,
                None,
            )
            .map(drop)
    });
    verified.map_err(|error| {
        Fault::Chain(format!(
            "must lead from the server's certificate to the one that is last in it: {error}"
        ))
    })
}

fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    let digest = digest(&SHA256, certificate);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use testkit::certificates::chain;

    use super::*;

    const YEAR: u64 = 365 * 24 * 3600;

    /// The middle of 2030, roughly.
    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(60 * YEAR + YEAR / 2)
    }

    fn said(chain: &str, key: &str, name: &str) -> String {
        match read(chain, key, &name.parse().unwrap(), now()) {
            Ok(_) => String::new(),
            Err(Fault::Chain(message)) => format!("chain {message}"),
            Err(Fault::Key(message)) => format!("key {message}"),
        }
    }

    #[test]
    fn a_good_certificate_is_read() {
        let (pem, key) = chain(&["app.example.com", "*.apps.example.com"], 2030..2031);
        for name in ["app.example.com", "*.apps.example.com"] {
            let read = read(&pem, &key, &name.parse().unwrap(), now()).unwrap();
            assert_eq!((read.chain.len(), read.sha256.len()), (2, 64));
            let left = read.expires.duration_since(now()).unwrap();
            assert!((YEAR / 3..YEAR).contains(&left.as_secs()), "{left:?}");
            let shown = format!("{read:?}");
            assert_eq!(shown, format!("Certificate {{ sha256: {:?}, .. }}", read.sha256));
        }
        // The server's own alone will do: clients may know who issued it.
        let end = pem.find("-----END CERTIFICATE-----").unwrap() + "-----END CERTIFICATE-----\n".len();
        assert_eq!(said(&pem[..end], &key, "app.example.com"), "");
    }

    #[test]
    fn what_is_wrong_is_said() {
        let name = "app.example.com";
        let (pem, key) = chain(&[name], 2030..2031);
        let (other, other_key) = chain(&[name], 2030..2031);
        let begin = pem.rfind("-----BEGIN CERTIFICATE-----").unwrap();
        let (own, authority) = pem.split_at(begin);
        let others_authority = &other[other.rfind("-----BEGIN CERTIFICATE-----").unwrap()..];
        let none = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let expired = chain(&[name], 2028..2030);
        let early = chain(&[name], 2031..2032);
        let six: Vec<String> = (1..=6).map(|number| format!("{number}.example.com")).collect();
        let foreign = chain(&six.iter().map(String::as_str).collect::<Vec<_>>(), 2030..2031);
        for (chain, key, fault) in [
            ("", &*key, "chain must hold 1 to 10 certificates"),
            (&*own.repeat(11), &*key, "chain must hold 1 to 10 certificates"),
            (&*" ".repeat(65_537), &*key, "chain must be at most 65536 bytes"),
            (&*key, &*key, "chain must hold 1 to 10 certificates"),
            (&*format!("{own}{none}"), &*key, "chain holds something as certificate 2 that is none"),
            (&*expired.0, &*expired.1, "chain expired on "),
            (&*early.0, &*early.1, "chain is not valid before "),
            (
                &*foreign.0,
                &*foreign.1,
                "chain is not for app.example.com but for 1.example.com, 2.example.com, 3.example.com, 4.example.com, \
                 5.example.com, …",
            ),
            (&*format!("{own}{others_authority}"), &*key, "chain must lead from the server's certificate"),
            (&*format!("{authority}{own}"), &*key, "chain "),
            (&*pem, &*other_key, "key is not the key of the first certificate"),
            (&*pem, "", "key must be a private key in PEM"),
            (&*pem, &*pem, "key must be a private key in PEM"),
            (&*pem, &*" ".repeat(16_385), "key must be at most 16384 bytes"),
        ] {
            let said = said(chain, key, name);
            assert!(said.starts_with(fault) && !fault.is_empty(), "{said} for {fault}");
            assert!(!said.contains(key.trim()) || key.trim().is_empty(), "{said}");
        }
        // One name is not covered by another's wildcard, nor a wildcard by one of its names.
        let (pem, key) = chain(&["*.example.com"], 2030..2031);
        assert_eq!(said(&pem, &key, name), "");
        assert!(said(&pem, &key, "a.b.example.com").starts_with("chain is not for a.b.example.com"));
        assert!(said(&pem, &key, "*.apps.example.com").starts_with("chain is not for *.apps.example.com"));
        let (pem, key) = chain(&["x.apps.example.com"], 2030..2031);
        assert!(said(&pem, &key, "*.apps.example.com").starts_with("chain is not for"));
    }
}
