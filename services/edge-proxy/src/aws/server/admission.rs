//! Who sent a request: the claim in its head, the key that it names, its body, and whether the key's holder signed all of it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_model::{ErrorClass, Operation, Rejection, sts};
use http::Version;
use http::header::EXPECT;
use http::request::Parts;
use hyper::body::Incoming;
use sigv4::{Payload, UnverifiedSignature, Verifier};

use super::body::{BodyError, Held};
use super::handler::Api;
use crate::aws::access_keys::{AccessKey, LookupError};
use crate::aws::account::clip;
use crate::aws::rejections;
use crate::domain::refusal::whole_seconds;
use crate::server::listener::Client;

/// When to try again while the edge is short of memory or of keys.
const AGAIN: Duration = Duration::from_secs(1);
/// Longest key id in an audit record, in bytes.
const AUDIT_ID_MAX: usize = 128;

/// A request whose head and body have been looked at, let in or not.
pub(super) struct Arrived {
    pub admission: Admission,
    pub body: Result<Held, Rejection>,
    /// False when something of its body may still be on its way.
    pub read: bool,
}

impl Arrived {
    /// What is left of a request that met a bug.
    pub fn bug() -> Self {
        let body = Err(Rejection::silent(ErrorClass::InternalServer));
        Self { admission: Admission::default(), body, read: false }
    }
}

/// What admission saw of a request, let in or not.
#[derive(Debug, Default)]
pub(super) struct Admission {
    /// As the request names it; empty when it names none.
    pub access_key_id: String,
    /// The key, once its holder is known to have signed.
    pub signer: Option<Arc<AccessKey>>,
}

impl Api {
    /// Checks who sent a request, and reads its body when its head is right. Whoever that is, it costs nobody else a wait.
    pub(super) async fn arrive(
        &self,
        client: &Client,
        parts: &Parts,
        body: Incoming,
        operation: Option<&Operation>,
        now: SystemTime,
    ) -> Arrived {
        let mut body = Some(body);
        let over = client.share.request(self.clock.instant()).err();
        let (admission, held) = match over {
            Some(after) => {
                let rejection = Rejection::silent(ErrorClass::Throttling);
                (Admission::default(), Err(rejection.retry_after(whole_seconds(after))))
            }
            None => self.admit(parts, &mut body, operation, now).await,
        };
        let read = match (&held, body) {
            (Ok(_), _) => true,
            // A sender that waits to be asked for its body sends none.
            (Err(_), _) if parts.headers.contains_key(EXPECT) => true,
            (Err(_), Some(body)) => self.bodies.discard(body).await,
            (Err(_), None) => false,
        };
        Arrived { admission, body: held, read }
    }

    /// Checks who sent a request; its body, or why it is not let in. Leaves a body that may still come.
    async fn admit(
        &self,
        parts: &Parts,
        body: &mut Option<Incoming>,
        operation: Option<&Operation>,
        now: SystemTime,
    ) -> (Admission, Result<Held, Rejection>) {
        let mut admission = Admission::default();
        let for_sts = sts::is_asked(parts.method.as_str(), parts.uri.path());
        let verifier = if for_sts { &self.sts_verifier } else { &self.verifier };
        // The head first: nobody's body is read whose head is wrong or names no key.
        let named = match read_head(parts) {
            Ok(claim) => {
                clip(claim.access_key_id(), AUDIT_ID_MAX).clone_into(&mut admission.access_key_id);
                self.named_key(verifier, &claim, operation, now).await.map(|key| (claim, key))
            }
            Err(rejection) => Err(rejection),
        };
        let (claim, key) = match named {
            Ok(named) => named,
            Err(rejection) => return (admission, Err(rejection)),
        };
        let body = match self.bodies.read(body, claim.access_key_id()).await {
            Ok(body) => body,
            Err(error) => return (admission, Err(self.unreadable(error, operation))),
        };
        if let Err(error) = verifier.verify(&claim, &key.secret, Payload::Bytes(&body.bytes), now) {
            return (admission, Err(unsigned(&error)));
        }
        // Only its holder is told that a key has expired.
        let expired = key.expired(now);
        admission.signer = Some(key);
        if expired {
            let message = "The security token included in the request is expired";
            return (admission, Err(Rejection::new(ErrorClass::ExpiredToken, message)));
        }
        (admission, Ok(body))
    }

    /// The key that a claim names, when everything is right about the claim that can be told without the body.
    async fn named_key(
        &self,
        verifier: &Verifier,
        claim: &UnverifiedSignature<'_>,
        operation: Option<&Operation>,
        now: SystemTime,
    ) -> Result<Arc<AccessKey>, Rejection> {
        verifier.check(claim, now).map_err(|error| unsigned(&error))?;
        // There are no temporary credentials here.
        if claim.security_token().is_some() {
            return Err(unsigned(&sigv4::Error::UnrecognizedClient));
        }
        self.access_keys.find(claim.access_key_id()).await.map_err(|error| match error {
            LookupError::Unknown => unsigned(&sigv4::Error::UnrecognizedClient),
            LookupError::NotReady => {
                let class = operation.map_or(ErrorClass::InternalServer, Operation::internal);
                let rejection = Rejection::new(class, "The access keys are not known yet.");
                rejection.retry_after(AGAIN.as_secs())
            }
        })
    }

    fn unreadable(&self, error: BodyError, operation: Option<&Operation>) -> Rejection {
        let serialization = |message| Rejection::new(ErrorClass::Serialization, message);
        match error {
            BodyError::TooLarge => {
                let limit = self.limits.body_bytes_max;
                let message = format!("The request body must be at most {limit} bytes");
                Rejection::new(ErrorClass::RequestTooLarge, message)
            }
            BodyError::TooSlow => serialization("The request body did not arrive in time"),
            BodyError::Broken => serialization("The request body could not be read"),
            BodyError::TooMany => match operation {
                Some(operation) => rejections::throttled(operation, AGAIN),
                None => Rejection::silent(ErrorClass::Throttling).retry_after(AGAIN.as_secs()),
            },
        }
    }
}

/// The signature that the head of a request claims.
fn read_head(parts: &Parts) -> Result<UnverifiedSignature<'_>, Rejection> {
    let authority = parts.uri.authority().filter(|_| parts.version == Version::HTTP_2);
    let claim = sigv4::parse(sigv4::Request {
        method: parts.method.as_str(),
        authority: authority.map(http::uri::Authority::as_str),
        raw_path: parts.uri.path(),
        raw_query: parts.uri.query().unwrap_or_default(),
        headers: &parts.headers,
    });
    claim.map_err(|error| unsigned(&error))
}

fn unsigned(error: &sigv4::Error) -> Rejection {
    let class = match error {
        sigv4::Error::MissingAuthenticationToken => ErrorClass::MissingAuthenticationToken,
        sigv4::Error::IncompleteSignature(_) => ErrorClass::IncompleteSignature,
        sigv4::Error::UnrecognizedClient => ErrorClass::UnrecognizedClient,
        _ => ErrorClass::InvalidSignature,
    };
    Rejection::new(class, error.to_string())
}
