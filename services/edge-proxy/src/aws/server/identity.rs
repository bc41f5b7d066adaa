//! STS `GetCallerIdentity`, on the API's port: admitted and recorded as every other request.

use std::time::SystemTime;

use aws_model::sts::{self, Identity, Refusal};
use aws_model::{ErrorClass, Rejection};
use http::request::Parts;
use hyper::body::Incoming;

use super::admission::Admission;
use super::answer::Answer;
use super::handler::{Api, Served, caught};

impl Api {
    /// Tells who signed a request.
    pub(super) async fn identify(
        &self,
        parts: &Parts,
        body: Incoming,
        request_id: &str,
        now: SystemTime,
    ) -> Served {
        let bug = || (Admission::default(), Err(Rejection::silent(ErrorClass::InternalServer)));
        let (admission, body) = caught(self.admit(parts, body, None, now)).await.unwrap_or_else(bug);
        let asked = body.map_err(Refusal::from).and_then(|body| sts::read(&body.bytes));
        let answer = match (&admission.signer, asked) {
            (Some(key), Ok(())) => {
                let identity = Identity { arn: &key.arn(), user_id: &key.id, account: &key.account };
                Answer::success(sts::answer(identity, request_id))
            }
            (_, Err(refusal)) => refuse(&refusal, request_id),
            (None, Ok(())) => refuse(&Rejection::silent(ErrorClass::InternalServer).into(), request_id),
        };
        Served {
            name: sts::OPERATION,
            action: sts::ACTION,
            admission,
            resource: "*".to_owned(),
            missing_right: String::new(),
            answer,
        }
    }
}

fn refuse(refusal: &Refusal, request_id: &str) -> Answer {
    Answer::refusal(refusal.code, refusal.reply(request_id))
}
