//! STS `GetCallerIdentity`, on the API's port: admitted and recorded as every other request.

use aws_model::sts::{self, Identity, Refusal};
use aws_model::{ErrorClass, Rejection};

use super::admission::Arrived;
use super::answer::Answer;
use super::handler::{Api, Served};

impl Api {
    /// Tells who signed a request.
    pub(super) fn identify(arrived: Arrived, request_id: &str) -> Served {
        let Arrived { admission, body, .. } = arrived;
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
