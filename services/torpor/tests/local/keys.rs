//! `torpor key` against a service that is scripted and speaks real gRPC.

use std::sync::{Arc, Mutex};

use api::access::v1::*;
use testkit::Script;

use crate::scripted::{Scripted, text};

/// The keys that were made, and how they were asked for.
type Made = Arc<Mutex<(Vec<AccessKey>, Vec<CreateAccessKeyRequest>)>>;

/// Has a scheduler keep keys; pages hold one key.
fn keep_keys(script: &Script, made: &Made) {
    let state = Arc::clone(made);
    script.react("CreateAccessKey", move |request: CreateAccessKeyRequest| {
        if request.description.len() > 256 {
            let violation = ("description".to_owned(), "at most 256 characters".to_owned());
            return Err(api::errors::invalid(&[violation]));
        }
        let (keys, requests) = &mut *state.lock().unwrap();
        let key = AccessKey {
            access_key_id: format!("AKIA{:016}", keys.len()),
            account_id: "000000000000".to_owned(),
            description: request.description.clone(),
            policy: request.policy.clone(),
            create_time: Some(api::timestamp(std::time::SystemTime::now())),
            expire_time: request.expire_time,
        };
        keys.push(key.clone());
        requests.push(request);
        let secret_access_key = "s3cr3t/of+this-key".to_owned();
        Ok(CreateAccessKeyResponse { access_key: Some(key), secret_access_key })
    });
    let state = Arc::clone(made);
    script.react("ListAccessKeys", move |request: ListAccessKeysRequest| {
        let at: usize = request.page_token.parse().unwrap_or(0);
        let keys = &state.lock().unwrap().0;
        let next_page_token = if at + 1 < keys.len() { (at + 1).to_string() } else { String::new() };
        Ok(ListAccessKeysResponse {
            access_keys: keys.get(at).cloned().into_iter().collect(),
            next_page_token,
        })
    });
    let state = Arc::clone(made);
    script.react("DeleteAccessKey", move |request: DeleteAccessKeyRequest| {
        let keys = &mut state.lock().unwrap().0;
        let before = keys.len();
        keys.retain(|key| key.access_key_id != request.access_key_id);
        match keys.len() < before {
            true => Ok(DeleteAccessKeyResponse {}),
            false => Err(api::errors::not_found("access key", &request.access_key_id)),
        }
    });
}

struct World {
    fleet: Scripted,
    made: Made,
}

impl World {
    async fn new() -> Self {
        let (fleet, made) = (Scripted::start().await, Made::default());
        keep_keys(&fleet.script, &made);
        Self { fleet, made }
    }
}

#[tokio::test]
async fn a_key_is_made_shown_once_listed_and_deleted() {
    let world = World::new().await;
    let policy = world.fleet.directory.path().join("policy.json");
    std::fs::write(
        &policy,
        r#"{"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Action": "lambda:Get*", "Resource": ["a", "b"]}]}"#,
    )
    .unwrap();
    let made = world.fleet.torpor(&["key", "create", "--description", "ci"]).await;
    let (stdout, stderr) = (text(&made.stdout), text(&made.stderr));
    assert!(made.status.success(), "{stderr}");
    assert!(stdout.contains("AKIA0000000000000000") && stdout.contains("s3cr3t/of+this-key"), "{stdout}");
    assert!(stdout.contains("everything") && stderr.contains("shown this once"), "{stdout}{stderr}");

    let path = policy.to_str().unwrap();
    let made = world.fleet.json(&["key", "create", "--policy", path, "--expires", "90d"]).await;
    assert_eq!(made["secretAccessKey"], "s3cr3t/of+this-key");
    assert_eq!(made["accessKey"]["accessKeyId"], "AKIA0000000000000001");
    let asked = world.made.lock().unwrap().1.clone();
    assert_eq!((&asked[0].policy, &asked[0].expire_time), (&None, &None));
    assert_eq!(
        asked[1].policy.as_ref().unwrap().statements,
        [Statement {
            effect: Effect::Deny.into(),
            actions: vec!["lambda:Get*".to_owned()],
            resources: vec!["a".to_owned(), "b".to_owned()],
        }]
    );
    let expires = api::system_time(asked[1].expire_time.as_ref().unwrap()).unwrap();
    let left = expires.duration_since(std::time::SystemTime::now()).unwrap();
    assert_eq!(left.as_secs().div_ceil(86_400), 90);

    // Every page, and no secret.
    let listed = world.fleet.json(&["key", "list"]).await;
    let ids: Vec<&str> =
        listed.as_array().unwrap().iter().map(|key| key["accessKeyId"].as_str().unwrap()).collect();
    assert_eq!(ids, ["AKIA0000000000000000", "AKIA0000000000000001"]);
    assert_eq!(listed[1]["policy"]["statements"][0]["effect"], "DENY");
    let table = world.fleet.torpor(&["key", "ls"]).await;
    let table = text(&table.stdout) + &text(&table.stderr);
    for part in ["ci", "everything", "1 statement: lambda:Get*", "in 89d", "never", "AKIAROOT"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    assert!(!table.contains("s3cr3t") && !listed.to_string().contains("s3cr3t"));

    let deleted = world.fleet.torpor(&["key", "delete", ids[0], ids[1]]).await;
    assert_eq!(text(&deleted.stdout), format!("{} deleted\n{} deleted\n", ids[0], ids[1]));
    let again = world.fleet.torpor(&["key", "delete", ids[0]]).await;
    assert_eq!(again.status.code(), Some(3), "{}", text(&again.stderr));
    assert!(text(&world.fleet.torpor(&["key", "list"]).await.stdout).contains("no access keys; make one"));
}

#[tokio::test]
async fn what_the_service_refuses_is_said() {
    let world = World::new().await;
    let long = "x".repeat(257);
    let refused = world.fleet.torpor(&["key", "create", "--description", &long]).await;
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        text(&refused.stderr).contains("description: at most 256 characters"),
        "{}",
        text(&refused.stderr)
    );
}
