use super::*;
use crate::config::Limits;

pub(super) fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

pub(super) fn fields(refusal: Refusal) -> Vec<String> {
    match refusal {
        Refusal::Invalid(violations) => violations.into_vec().into_iter().map(|(field, _)| field).collect(),
        other => panic!("{other}"),
    }
}

fn policy(idle: i64, suspended: i64) -> Option<WireIdlePolicy> {
    Some(WireIdlePolicy {
        max_idle_duration: Some(seconds(idle)),
        suspended_duration: Some(seconds(suspended)),
        auto_resume_enabled: true,
        awake_while: None,
    })
}

/// A policy that keeps a microVM awake while it uses so much CPU time.
fn awake_at(percent: u32) -> Option<WireIdlePolicy> {
    let awake_while = AwakeWhile { cpu_percent: Some(percent), ..AwakeWhile::default() };
    policy(60, 0).map(|policy| WireIdlePolicy { awake_while: Some(awake_while), ..policy })
}

#[test]
fn run_fills_in_defaults() {
    let request = RunMicrovmRequest { image_identifier: "app".into(), ..Default::default() };
    let run = run(&request, &Config::default()).unwrap();
    assert_eq!(run.maximum_duration.as_secs(), 28_800);
    let prefix = "arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:";
    assert_eq!(run.ingress.len() + run.egress.len(), 2);
    assert_eq!(run.ingress[0].to_string(), format!("{prefix}HTTP_INGRESS"));
    assert_eq!(run.egress[0].to_string(), format!("{prefix}INTERNET_EGRESS"));
    assert!(run.token.is_none() && run.idle_policy.is_none() && run.version.is_none());
}

#[test]
fn run_names_every_violated_field() {
    let arn =
        |name: &str| format!("arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:{name}");
    type Change = Box<dyn Fn(&mut RunMicrovmRequest)>;
    let change = |change: fn(&mut RunMicrovmRequest)| Box::new(change) as Change;
    let cases: Vec<(Change, &[&str])> = vec![
        (change(|r| r.image_identifier = "bad name!".into()), &["imageIdentifier"]),
        (change(|r| r.image_identifier.clear()), &["imageIdentifier"]),
        (change(|r| r.image_version = "1".into()), &["imageVersion"]),
        (change(|r| r.idle_policy = policy(60, 0)), &[]),
        (change(|r| r.idle_policy = policy(59, 0)), &["idlePolicy.maxIdleDurationSeconds"]),
        (change(|r| r.idle_policy = policy(28_801, 28_800)), &["idlePolicy.maxIdleDurationSeconds"]),
        (change(|r| r.idle_policy = policy(60, -1)), &["idlePolicy.suspendedDurationSeconds"]),
        (
            change(|r| r.idle_policy = Some(WireIdlePolicy::default())),
            &["idlePolicy.maxIdleDurationSeconds", "idlePolicy.suspendedDurationSeconds"],
        ),
        (change(|r| r.idle_policy = awake_at(1)), &[]),
        (change(|r| r.idle_policy = awake_at(100)), &[]),
        (change(|r| r.idle_policy = awake_at(0)), &["idlePolicy.awakeWhile.cpuPercent"]),
        (change(|r| r.idle_policy = awake_at(101)), &["idlePolicy.awakeWhile.cpuPercent"]),
        (change(|r| r.maximum_duration = Some(seconds(0))), &["maximumDurationInSeconds"]),
        (change(|r| r.maximum_duration = Some(seconds(1))), &[]),
        (change(|r| r.maximum_duration = Some(seconds(28_801))), &["maximumDurationInSeconds"]),
        (
            change(|r| r.maximum_duration = Some(prost_types::Duration { seconds: 1, nanos: 5 })),
            &["maximumDurationInSeconds"],
        ),
        (change(|r| r.run_hook_payload = "x".repeat(4096)), &[]),
        (change(|r| r.run_hook_payload = "x".repeat(4097)), &["runHookPayload"]),
        (change(|r| r.client_token = "t".repeat(128)), &[]),
        (change(|r| r.client_token = "t".repeat(129)), &["clientToken"]),
        (change(|r| r.execution_role_arn = "r".repeat(2049)), &["executionRoleArn"]),
        (change(|r| r.execution_role_arn = "arn:aws:iam::123456789012:role/app".into()), &[]),
        (change(|r| r.execution_role_arn = "app".into()), &["executionRoleArn"]),
        (change(|r| r.kms_key_identifier = "alias/app".into()), &[]),
        (change(|r| r.kms_key_identifier = "a key".into()), &["kmsKeyIdentifier"]),
        (change(|r| r.image_identifier = format!("arn:{}", "x".repeat(253))), &["imageIdentifier"]),
        (change(|r| r.egress_network_connectors = vec!["x".repeat(2049)]), &["egressNetworkConnectors[0]"]),
        (change(|r| r.idle_policy = policy(60, i64::from(i32::MAX))), &[]),
        (
            change(|r| r.idle_policy = policy(60, i64::from(i32::MAX) + 1)),
            &["idlePolicy.suspendedDurationSeconds"],
        ),
        (change(|r| r.idle_policy = policy(28_800, 0)), &[]),
        (
            Box::new(move |r| r.ingress_network_connectors = vec![arn("SHELL_INGRESS"), arn("HTTP_INGRESS")]),
            &[],
        ),
        (
            Box::new(move |r| r.ingress_network_connectors = vec![arn("HTTP_INGRESS"); 11]),
            &["ingressNetworkConnectors"],
        ),
        (
            change(|r| {
                r.image_version = "x".into();
                r.client_token = "t".repeat(129);
            }),
            &["imageVersion", "clientToken"],
        ),
    ];
    for (number, (change, expected)) in cases.into_iter().enumerate() {
        let mut request = RunMicrovmRequest { image_identifier: "app".into(), ..Default::default() };
        change(&mut request);
        let violated = run(&request, &Config::default()).map_or_else(fields, |_| Vec::new());
        assert_eq!(violated, expected, "case {number}");
    }
}

#[test]
fn rules_with_a_sentence_come_after_the_fields() {
    let managed =
        |name: &str| format!("arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:{name}");
    let customer = |rest: &str| format!("arn:aws:lambda:{rest}");
    let ours = "us-east-1:000000000000:network-connector:nc-1";
    let theirs = customer("us-east-1:111111111111:network-connector:nc-1");
    let image = |rest: &str| format!("arn:aws:lambda:{rest}:microvm-image:app");
    type Case = (String, Vec<String>, Vec<String>, String);
    let case = |image: String, ingress: &[String], egress: &[String], text: &str| -> Case {
        (image, ingress.to_vec(), egress.to_vec(), text.to_owned())
    };
    let app = || "app".to_owned();
    for (image_identifier, ingress, egress, text) in [
        case(image("us-east-1:000000000000"), &[], &[], ""),
        case(
            image("us-east-1:111111111111"),
            &[],
            &[],
            "arn:aws:lambda:us-east-1:111111111111:microvm-image:app belongs to another account",
        ),
        case(
            image("eu-west-1:000000000000"),
            &[],
            &[],
            "arn:aws:lambda:eu-west-1:000000000000:microvm-image:app belongs to another region",
        ),
        case(
            "arn:aws:lambda:us-east-1:000000000000:microvm-image/app".into(),
            &[],
            &[],
            "Invalid ARN format: arn:aws:lambda:us-east-1:000000000000:microvm-image/app",
        ),
        case(app(), &[], &["INTERNET_EGRESS".into()], "Malformed network connector ARN"),
        case(app(), &["HTTP_INGRESS".into()], &[], "Malformed network connector ARN"),
        case(app(), &[managed("ALL_INGRESS"), managed("SHELL_INGRESS")], &[], ""),
        case(
            app(),
            &[managed("HTTP_INGRESS"), managed("SHELL_INGRESS")],
            &[managed("INTERNET_EGRESS"), customer(ours), customer(&format!("{ours}:2"))],
            "",
        ),
        case(
            app(),
            &[managed("NO_INGRESS"), managed("HTTP_INGRESS")],
            &[],
            "NO_INGRESS cannot be combined with other ingress network connectors",
        ),
        case(app(), &[managed("NO_INGRESS")], &[], ""),
        case(app(), &[managed("INTERNET_EGRESS")], &[], "is not an ingress network connector"),
        case(app(), &[customer(ours)], &[], "is not an ingress network connector"),
        case(app(), &[], &[managed("HTTP_INGRESS")], "is not an egress network connector"),
        case(app(), &[], &[managed("NO_EGRESS")], "known are INTERNET_EGRESS"),
        case(app(), &[], std::slice::from_ref(&theirs), "belongs to another account"),
        case(
            app(),
            &[],
            &[managed("INTERNET_EGRESS").replace("us-east-1", "eu-west-1")],
            "belongs to another region",
        ),
    ] {
        let request = RunMicrovmRequest {
            image_identifier,
            ingress_network_connectors: ingress,
            egress_network_connectors: egress,
            ..Default::default()
        };
        let checked = run(&request, &Config::default());
        let found = checked.map_or_else(|refusal| refusal.to_string(), |_| String::new());
        assert_eq!(found.is_empty(), text.is_empty(), "{found}, not {text}");
        assert!(found.contains(&text), "{found}, not {text}");
        // A field that breaks a rule is told first.
        let worse = RunMicrovmRequest { image_version: "x".into(), ..request };
        assert_eq!(fields(run(&worse, &Config::default()).unwrap_err()), ["imageVersion"]);
    }
}

#[test]
fn the_payload_limit_is_a_setting() {
    let config = Config { run_hook_payload_bytes_max: 8, ..Config::default() };
    for (payload, good) in [("12345678", true), ("123456789", false), ("äääää", false)] {
        let request = RunMicrovmRequest {
            image_identifier: "app".into(),
            run_hook_payload: payload.into(),
            ..Default::default()
        };
        assert_eq!(run(&request, &config).is_ok(), good, "{payload}");
    }
}

#[test]
fn the_shortest_idle_window_is_a_setting() {
    let request =
        RunMicrovmRequest { image_identifier: "app".into(), idle_policy: policy(2, 0), ..Default::default() };
    assert!(run(&request, &Config::default()).is_err());
    for (idle_min_seconds, good) in [(1, true), (2, true), (3, false)] {
        let limits = Limits { idle_min_seconds };
        let found = run(&request, &Config { limits, ..Config::default() });
        let text = "idlePolicy.maxIdleDurationSeconds: must be whole seconds, 3 to 28800";
        assert_eq!(found.is_ok(), good, "{idle_min_seconds}");
        assert!(good || found.unwrap_err().to_string().contains(text));
    }
}

#[test]
fn the_same_request_has_the_same_digest() {
    let request = |token: &str, image: &str| {
        let request = RunMicrovmRequest {
            image_identifier: image.into(),
            client_token: token.into(),
            ..Default::default()
        };
        run(&request, &Config::default()).unwrap().token.unwrap()
    };
    assert_eq!(request("a", "app"), request("a", "app"));
    assert_eq!(request("a", "app").token, request("a", "other").token);
    assert_ne!(request("a", "app").parameters, request("a", "other").parameters);
}

#[test]
fn keep_awake_takes_a_time_or_gives_it_up() {
    let id = format!("microvm-{}", uuid::Uuid::nil());
    let request = |duration: Option<i64>, release| KeepMicrovmAwakeRequest {
        microvm_id: id.clone(),
        duration: duration.map(seconds),
        release,
    };
    for (duration, release, expected) in [
        (Some(1), false, Some(Some(1))),
        (Some(28_800), false, Some(Some(28_800))),
        (None, true, Some(None)),
        (Some(0), false, None),
        (Some(28_801), false, None),
        (None, false, None),
        (Some(5), true, None),
    ] {
        let kept = keep_awake(&request(duration, release));
        match (kept, expected) {
            (Ok((_, kept)), Some(expected)) => assert_eq!(kept.map(|kept| kept.as_secs()), expected),
            (Err(refusal), None) => assert_eq!(fields(refusal), ["duration"]),
            (kept, _) => panic!("{duration:?} {release}: {kept:?}"),
        }
    }
    let nowhere = KeepMicrovmAwakeRequest::default();
    assert_eq!(fields(keep_awake(&nowhere).unwrap_err()), ["microvmIdentifier", "duration"]);
}

#[test]
fn a_policy_that_names_nothing_more_is_as_one_without() {
    let named = |awake_while| {
        let idle_policy = policy(60, 0).map(|policy| WireIdlePolicy { awake_while, ..policy });
        let request = RunMicrovmRequest { image_identifier: "app".into(), idle_policy, ..Default::default() };
        run(&request, &Config::default()).unwrap().idle_policy.unwrap().awake_while
    };
    assert_eq!(named(Some(AwakeWhile::default())), None);
    let stream = AwakeWhile { stream: true, ..AwakeWhile::default() };
    assert_eq!(named(Some(stream)), Some(stream));
}
