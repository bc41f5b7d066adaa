//! Who sent a request: the claim in its head, the key that it names, its body,
//! and whether the key's holder signed all of it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_model::{ErrorClass, Operation, Rejection};
use http::Version;
use http::header::EXPECT;
use http::request::Parts;
use hyper::body::Incoming;
use sigv4::{Payload, UnverifiedSignature};

use crate::aws::arn::clip;
use crate::aws::body::{Held, NoBody};
use crate::aws::failures;
use crate::aws::handler::{Api, Seen};
use crate::aws::keys::{AccessKey, NoKey};

/// When to try again while the edge is short of memory or of keys.
const AGAIN: Duration = Duration::from_secs(1);
/// Longest key id in an audit record, in bytes.
const AUDIT_ID_MAX: usize = 128;

/// A request whose signature is good.
#[derive(Debug)]
pub(super) struct Admitted<'a> {
    /// Who signed it.
    pub(super) key: Arc<AccessKey>,
    /// Its body.
    pub(super) body: Held<'a>,
}

impl Api {
    /// Lets a request in, or says why not.
    pub(super) async fn admit(
        &self,
        parts: &Parts,
        body: Incoming,
        now: SystemTime,
        seen: &mut Seen,
    ) -> Result<Admitted<'_>, Rejection> {
        let (claim, key) = match self.claim(parts, now, seen).await {
            Ok(claimed) => claimed,
            Err(rejection) => {
                self.discard(parts, body).await;
                return Err(rejection);
            }
        };
        let body = self.bodies.read(body).await;
        let body = body.map_err(|fault| self.unreadable(fault, seen))?;
        self.verifier
            .verify(&claim, &key.secret, Payload::Bytes(&body.bytes), now)
            .map_err(|error| unsigned(&error))?;
        seen.key = Some(key.clone());
        if key.expired(now) {
            let message = "The security token included in the request is expired";
            return Err(Rejection::new(ErrorClass::ExpiredToken, message));
        }
        Ok(Admitted { key, body })
    }

    /// Takes in a body that nobody wants, unless its sender waits to be asked for
    /// it.
    pub(super) async fn discard(&self, parts: &Parts, body: Incoming) {
        if !parts.headers.contains_key(EXPECT) {
            self.bodies.discard(body).await;
        }
    }

    /// Everything about the signature that the head of a request tells, and the
    /// key that it names.
    async fn claim<'a>(
        &self,
        parts: &'a Parts,
        now: SystemTime,
        seen: &mut Seen,
    ) -> Result<(UnverifiedSignature<'a>, Arc<AccessKey>), Rejection> {
        let authority = parts.uri.authority().filter(|_| parts.version == Version::HTTP_2);
        let claim = sigv4::parse(sigv4::Request {
            method: parts.method.as_str(),
            authority: authority.map(http::uri::Authority::as_str),
            raw_path: parts.uri.path(),
            raw_query: parts.uri.query().unwrap_or_default(),
            headers: &parts.headers,
        });
        let claim = claim.map_err(|error| unsigned(&error))?;
        clip(claim.access_key_id(), AUDIT_ID_MAX).clone_into(&mut seen.access_key_id);
        self.verifier.check(&claim, now).map_err(|error| unsigned(&error))?;
        // There are no temporary credentials here.
        if claim.security_token().is_some() {
            return Err(unsigned(&sigv4::Error::UnrecognizedClient));
        }
        match self.keys.find(claim.access_key_id()).await {
            Ok(key) => Ok((claim, key)),
            Err(NoKey::Unknown) => Err(unsigned(&sigv4::Error::UnrecognizedClient)),
            Err(NoKey::NotReady) => {
                let class = seen.operation.map_or(ErrorClass::InternalServer, Operation::internal);
                let rejection = Rejection::new(class, "The access keys are not known yet.");
                Err(rejection.retry_after(AGAIN.as_secs()))
            }
        }
    }

    fn unreadable(&self, fault: NoBody, seen: &Seen) -> Rejection {
        let serialization = |message| Rejection::new(ErrorClass::Serialization, message);
        match fault {
            NoBody::TooLarge => {
                let limit = self.limits.body_bytes_max;
                let message = format!("The request body must be at most {limit} bytes");
                Rejection::new(ErrorClass::RequestTooLarge, message)
            }
            NoBody::TooSlow => serialization("The request body did not arrive in time"),
            NoBody::Broken => serialization("The request body could not be read"),
            NoBody::TooMany => match seen.operation {
                Some(operation) => failures::throttled(operation, AGAIN),
                None => Rejection::silent(ErrorClass::Throttling).retry_after(AGAIN.as_secs()),
            },
        }
    }
}

/// A fault of the signature.
fn unsigned(error: &sigv4::Error) -> Rejection {
    let class = match error {
        sigv4::Error::MissingAuthenticationToken => ErrorClass::MissingAuthenticationToken,
        sigv4::Error::IncompleteSignature(_) => ErrorClass::IncompleteSignature,
        sigv4::Error::UnrecognizedClient => ErrorClass::UnrecognizedClient,
        _ => ErrorClass::InvalidSignature,
    };
    Rejection::new(class, error.to_string())
}
