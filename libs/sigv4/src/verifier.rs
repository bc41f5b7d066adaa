//! The judgement: currency, scope, signature.

use crate::secret::SigningKey;
use crate::unverified::{Declared, UnverifiedSignature};
use crate::{ALGORITHM, Error, Secret, TERMINATOR, Timestamp, canonical};
use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};
use sha2::{Digest, Sha256};
use std::num::NonZeroUsize;
use std::time::{Duration, SystemTime};
use subtle::ConstantTimeEq;

/// How far clocks may be apart, either way.
pub const CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);

/// Signing keys kept: a few hundred bytes each. A key in
/// use needs one a day, and one for each day that its presigned requests are from.
pub const SIGNING_KEYS_MAX: usize = 4096;

/// A request's body.
#[derive(Debug, Clone, Copy)]
pub enum Payload<'a> {
    /// The body itself; empty where there was none.
    Bytes(&'a [u8]),
    /// Its SHA-256, for who read it in pieces.
    Sha256([u8; 32]),
}

/// Verifies for one region and service. Shared between threads; its only state
/// is a bounded cache of signing keys.
pub struct Verifier {
    region: String,
    service: String,
    keys: Mutex<LruCache<KeyName, SigningKey>>,
}

/// A secret's fingerprint and a day, so that a changed secret finds no old key.
type KeyName = ([u8; 32], [u8; 8]);

impl Verifier {
    /// Verifies what is signed for this region and service.
    pub fn new(region: impl Into<String>, service: impl Into<String>) -> Self {
        Self {
            region: region.into(),
            service: service.into(),
            keys: Mutex::new(LruCache::new(
                NonZeroUsize::new(SIGNING_KEYS_MAX).expect("the constant is not zero"),
            )),
        }
    }

    /// What can be said without the secret: that the signature is current, and that it is for this region and
    /// service. To be asked before the key is looked up, so that refusals come in AWS's order.
    ///
    /// # Errors
    /// `Expired`, `NotYetCurrent`, `Scope`.
    pub fn check(&self, unverified: &UnverifiedSignature<'_>, now: SystemTime) -> Result<(), Error> {
        let (signed_at, now) = (unverified.signed_at, Timestamp::from(now));
        if signed_at > now.after(CLOCK_SKEW) {
            return Err(Error::NotYetCurrent { signed_at, now, skew: CLOCK_SKEW });
        }
        let validity = unverified.expires.unwrap_or(CLOCK_SKEW);
        if signed_at < now.before(validity) {
            return Err(Error::Expired { signed_at, now, validity });
        }
        self.check_scope(unverified)
    }

    /// All of [`Self::check`], and then whether this secret made the signature over this request and payload.
    /// Takes the same time wherever signatures differ.
    ///
    /// # Errors
    /// Those of [`Self::check`], and `SignatureDoesNotMatch`.
    pub fn verify(
        &self,
        unverified: &UnverifiedSignature<'_>,
        secret: &Secret,
        payload: Payload<'_>,
        now: SystemTime,
    ) -> Result<(), Error> {
        self.check(unverified, now)?;
        let hash = match payload {
            _ if unverified.payload_unsigned() => None,
            Payload::Bytes(bytes) => Some(Sha256::digest(bytes).into()),
            Payload::Sha256(hash) => Some(hash),
        };
        let hash = match (&unverified.declared, hash) {
            (Declared::Hash(declared, text), Some(hash)) if *declared == hash => text.to_string(),
            (Declared::Hash(..), _) => return Err(Error::SignatureDoesNotMatch),
            (_, Some(hash)) => hex(&hash),
            (_, None) => "UNSIGNED-PAYLOAD".to_owned(),
        };
        let request = canonical::request(unverified, &hash).ok_or(Error::SignatureDoesNotMatch)?;
        let string_to_sign = format!(
            "{ALGORITHM}\n{}\n{}/{}/{}/{TERMINATOR}\n{}",
            unverified.signed_at,
            unverified.day,
            self.region,
            self.service,
            hex(&Sha256::digest(&request).into())
        );
        let expected = self.signing_key(secret, &unverified.day).sign(string_to_sign.as_bytes());
        match unverified.signature {
            Some(signature) if bool::from(expected.ct_eq(&signature)) => Ok(()),
            _ => Err(Error::SignatureDoesNotMatch),
        }
    }

    fn check_scope(&self, unverified: &UnverifiedSignature<'_>) -> Result<(), Error> {
        let mut wrong = Vec::new();
        if unverified.region != self.region {
            wrong.push("Credential should be scoped to a valid region.".to_owned());
        }
        if unverified.service != self.service {
            wrong.push(format!("Credential should be scoped to correct service: '{}'.", self.service));
        }
        if unverified.terminator != TERMINATOR {
            wrong.push(format!(
                "Credential should be scoped with a valid terminator: '{TERMINATOR}', not '{}'.",
                crate::unverified::clip(&unverified.terminator)
            ));
        }
        let day = unverified.signed_at.day();
        if unverified.day != day {
            wrong.push(format!(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '{}' != \
                 '{day}', from '{}'.",
                crate::unverified::clip(&unverified.day),
                unverified.signed_at
            ));
        }
        if wrong.is_empty() { Ok(()) } else { Err(Error::Scope(wrong.join(" "))) }
    }

    /// From the cache, or derived and kept: four HMACs saved.
    fn signing_key(&self, secret: &Secret, day: &str) -> SigningKey {
        let name = (
            *secret.fingerprint(),
            day.as_bytes().try_into().expect("the scope was checked: a day has eight digits"),
        );
        if let Some(key) = self.lock().get(&name) {
            return key.clone();
        }
        let key = secret.signing_key(day, &self.region, &self.service);
        self.lock().put(name, key.clone());
        key
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<KeyName, SigningKey>> {
        self.keys.lock()
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier")
            .field("region", &self.region)
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}

fn hex(bytes: &[u8; 32]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| DIGITS[usize::from(digit)] as char)
        .collect()
}
