//! STS `GetCallerIdentity` on the API's port.

use std::time::{Duration, SystemTime};

use crate::client::{Answer, Signer};
use crate::world::{ACCOUNT, KEY, World, signer, stored_key};
use records::Expect;

const WHO_AM_I: &str = "Action=GetCallerIdentity&Version=2011-06-15";

fn for_sts(signer: Signer) -> Signer {
    Signer { service: "sts", ..signer }
}

async fn ask(world: &World, signer: Signer, form: &'static str) -> (Answer, String) {
    let answer = world.connection().send(signer.request("POST", "/", form)).await;
    assert_eq!(answer.header("content-type"), Some("text/xml"));
    let text = String::from_utf8(answer.body.clone()).unwrap();
    let id = format!("<RequestId>{}</RequestId>", answer.header("x-amzn-requestid").unwrap());
    assert!(text.contains(&id), "{text}");
    (answer, text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_learns_whose_it_is() {
    let world = World::start().await;
    let (answer, text) = ask(&world, for_sts(signer()), WHO_AM_I).await;
    assert_eq!(answer.status, 200, "{text}");
    for element in [
        format!("<Account>{ACCOUNT}</Account>"),
        format!("<UserId>{}</UserId>", KEY.0),
        format!("<Arn>arn:aws:iam::{ACCOUNT}:user/"),
    ] {
        assert!(text.contains(&element), "{element}: {text}");
    }
    let records = world.audited(1).await;
    assert_eq!(records[0]["action"], "sts:GetCallerIdentity");
    assert_eq!(records[0]["result"], "ok");
    assert_eq!(records[0]["authenticated"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_other_operations_are_refused_in_the_words_of_sts() {
    let world = World::start().await;
    let expired = ("AKIAEXPIRED000000000", "secret");
    let past = Some(api::timestamp(SystemTime::now() - Duration::from_secs(60)));
    let value = stored_key(expired, |key| key.expire_time = past);
    world.store.put_if(&format!("access-keys/{}", expired.0), value, Expect::Absent, None).await.unwrap();
    testkit::until("the key is known", || async {
        let request = Signer::new(expired.0, expired.1).request("GET", "/2025-09-09/microvms", "");
        world.connection().send(request).await.class() == "ExpiredTokenException"
    })
    .await;
    for (who, signer, form, status, code) in [
        ("unknown", for_sts(Signer::new("AKIANOBODY0000000000", "x")), WHO_AM_I, 403, "InvalidClientTokenId"),
        ("guessed", for_sts(Signer::new(KEY.0, "guess")), WHO_AM_I, 403, "SignatureDoesNotMatch"),
        ("another scope", signer(), WHO_AM_I, 403, "SignatureDoesNotMatch"),
        ("expired", for_sts(Signer::new(expired.0, expired.1)), WHO_AM_I, 403, "ExpiredToken"),
        (
            "another operation",
            for_sts(signer()),
            "Action=AssumeRole&Version=2011-06-15",
            400,
            "InvalidAction",
        ),
        ("nothing", for_sts(signer()), "", 400, "MissingAction"),
    ] {
        let (answer, text) = ask(&world, signer, form).await;
        assert_eq!(answer.status, status, "{who}: {text}");
        assert!(text.contains(&format!("<Type>Sender</Type><Code>{code}</Code>")), "{who}: {text}");
    }
    // A signature for STS opens nothing else.
    let answer = world.connection().send(for_sts(signer()).request("GET", "/2025-09-09/microvms", "")).await;
    assert_eq!((answer.status, answer.class()), (403, "InvalidSignatureException"));
}
