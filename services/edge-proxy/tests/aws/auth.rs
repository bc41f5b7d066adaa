//! Who is let in, and what the others are told.

use std::time::{Duration, SystemTime};

use api::microvm::v1::GetMicrovmResponse;
use http::{HeaderValue, Request};
use http_body_util::Full;

use crate::client::{Answer, Signer};
use crate::samples::{self, MICROVM};
use crate::world::{KEY, World, signer};

const TARGET: &str = "/2025-09-09/microvms/microvm-0190a5e2-7c3b-3f00-8000-000000000001";

async fn world() -> World {
    let world = World::start().await;
    let microvm = Some(samples::microvm());
    world.scheduler.answer("GetMicrovm", Ok(GetMicrovmResponse { microvm }));
    world
}

fn told(answer: &Answer) -> (u16, String) {
    (answer.status, answer.class().to_owned())
}

/// What is sent, class and part of the message.
type Case = (&'static str, Request<Full<bytes::Bytes>>, &'static str, &'static str);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signatures_are_checked_as_aws_checks_them() {
    let world = world().await;
    let now = SystemTime::now();
    let ask = |signer: Signer| signer.request("GET", TARGET, "");
    let edited = |edit: fn(&mut Request<Full<bytes::Bytes>>)| {
        let mut request = ask(signer());
        edit(&mut request);
        request
    };
    let old = Signer { time: now - Duration::from_secs(6 * 60), ..signer() };
    let early = Signer { time: now + Duration::from_secs(6 * 60), ..signer() };
    let presigned = Some(Duration::from_secs(60));
    let presigned_old = Signer { time: now - Duration::from_secs(61), presigned, ..signer() };
    let invalid = "InvalidSignatureException";
    let cases: Vec<Case> = vec![
        (
            "nothing",
            edited(|request| {
                request.headers_mut().remove("authorization");
            }),
            "MissingAuthenticationTokenException",
            "Missing Authentication Token",
        ),
        (
            "another scheme",
            edited(|request| {
                let value = HeaderValue::from_static("Bearer abc");
                request.headers_mut().insert("authorization", value);
            }),
            "IncompleteSignatureException",
            "",
        ),
        (
            "no date",
            edited(|request| {
                request.headers_mut().remove("x-amz-date");
            }),
            "IncompleteSignatureException",
            "",
        ),
        (
            "an unknown key",
            ask(Signer::new("AKIANOBODY0000000000", KEY.1)),
            "UnrecognizedClientException",
            "The security token included in the request is invalid.",
        ),
        (
            "another's secret",
            ask(Signer::new(KEY.0, "guess")),
            invalid,
            "The request signature we calculated does not match the signature you provided.",
        ),
        (
            "another path",
            edited(|request| *request.uri_mut() = "/2025-09-09/microvms".parse().unwrap()),
            invalid,
            "does not match",
        ),
        (
            "another method",
            edited(|request| *request.method_mut() = http::Method::PUT),
            invalid,
            "does not match",
        ),
        (
            "another query",
            edited(|request| *request.uri_mut() = format!("{TARGET}?x=1").parse().unwrap()),
            invalid,
            "does not match",
        ),
        (
            "a body that was not signed",
            edited(|request| *request.body_mut() = Full::from("{}")),
            invalid,
            "does not match",
        ),
        ("too old", ask(old), invalid, "Signature expired: "),
        ("too early", ask(early), invalid, "Signature not yet current: "),
        ("presigned, too old", ask(presigned_old), invalid, "Signature expired: "),
        (
            "another region",
            ask(Signer { region: "eu-west-1", ..signer() }),
            invalid,
            "Credential should be scoped to a valid region.",
        ),
        (
            "another service",
            ask(Signer { service: "lambda-microvms", ..signer() }),
            invalid,
            "Credential should be scoped to correct service: 'lambda'.",
        ),
        (
            "a session token",
            ask(Signer { token: Some("token".into()), ..signer() }),
            "UnrecognizedClientException",
            "The security token included in the request is invalid.",
        ),
        (
            "two authorizations",
            edited(|request| {
                let first = request.headers()["authorization"].clone();
                request.headers_mut().append("authorization", first);
            }),
            invalid,
            "must not be sent more than once",
        ),
    ];
    for (what, request, class, message) in cases {
        let answer = world.connection().send(request).await;
        assert_eq!(told(&answer), (403, class.to_owned()), "{what}");
        assert!(answer.message().contains(message), "{what}: {}", answer.message());
    }
    assert!(world.scheduler.take().is_empty(), "nobody was let in");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn good_signatures_pass_in_every_form() {
    let world = world().await;
    let presigned = Signer { presigned: Some(Duration::from_secs(60)), ..signer() };
    let unsigned = Signer { unsigned_payload: true, ..signer() };
    for signer in [signer(), presigned, unsigned] {
        for mut connection in [world.connection(), world.http2()] {
            let answer = connection.send(signer.request("GET", TARGET, "")).await;
            assert_eq!(answer.status, 200, "{signer:?} {}", answer.message());
            assert_eq!(answer.json()["microvmId"], MICROVM);
        }
    }
    // The same signature again, within its time: AWS has no memory of it either.
    let mut connection = world.connection();
    for _ in 0..2 {
        let answer = connection.send(signer().request("GET", TARGET, "")).await;
        assert_eq!(answer.status, 200);
    }
    let requests = world.scheduler.take();
    let ids: std::collections::BTreeSet<_> = requests.iter().map(|seen| &seen.request_id).collect();
    assert_eq!(ids.len(), requests.len(), "every request has an id of its own");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_leaves_a_record() {
    let world = world().await;
    let mut connection = world.connection();
    let good = connection.send(signer().request("GET", TARGET, "")).await;
    let wrong = Signer::new(KEY.0, "guess").request("GET", TARGET, "");
    connection.send(wrong).await;
    let nowhere = signer().request("GET", "/2025-09-09/nothing", "");
    let nowhere = connection.send(nowhere).await;
    assert_eq!(told(&nowhere), (404, "UnknownOperationException".to_owned()));
    assert_eq!(nowhere.header("content-type"), Some("application/json"));
    let records = world.audited(3).await;
    let arn = "arn:aws:lambda:us-east-1:000000000000:microvm:microvm-0190a5e2-7c3b-3f00-8000-000000000001";
    let expected = [
        (KEY.0, true, "000000000000", "lambda:GetMicrovm", arn, "ok", 200),
        (KEY.0, false, "", "lambda:GetMicrovm", arn, "InvalidSignatureException", 403),
        ("", false, "", "", "", "NoSuchPath", 404),
    ];
    for (record, (key, authenticated, account, action, resource, result, status)) in
        records.iter().zip(expected)
    {
        assert_eq!(record["access_key_id"], key);
        assert_eq!(record["authenticated"], authenticated);
        assert_eq!(record["account_id"], account);
        assert_eq!(record["action"], action);
        assert_eq!(record["resource"], resource);
        assert_eq!(record["result"], result);
        assert_eq!(record["status"], status);
        assert_eq!(record["source_address"], "127.0.0.1");
        assert!(record["duration_us"].as_u64().unwrap() > 0);
    }
    assert_eq!(records[0]["request_id"].as_str(), good.header("x-amzn-requestid"));
    let text = std::fs::read_to_string(world.file("audit.jsonl")).unwrap();
    assert!(!text.contains(KEY.1));
    // What was under way at the end is on the disk.
    let directory = world.stop().await;
    let text = std::fs::read_to_string(directory.path().join("audit.jsonl")).unwrap();
    assert_eq!(text.lines().count(), 3);
}
