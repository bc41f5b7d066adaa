use super::*;
use crate::domain::base_images::{base_name, base_version};
use api::common::v1::{CpuConfiguration, Hook, HookMode, Hooks, LogGroup, Logging};
use api::image::v1::CodeArtifact;
use std::collections::BTreeMap;

fn good() -> ImageConfiguration {
    ImageConfiguration {
        code_artifact: Some(CodeArtifact { uri: "s3://torpor-artifacts/app.zip".to_owned() }),
        base_image_arn: "debian-12".to_owned(),
        ..ImageConfiguration::default()
    }
}

fn completed(configuration: ImageConfiguration) -> (ImageConfiguration, Vec<(String, String)>) {
    let bases = Bases(BTreeMap::from([("debian-12".to_owned(), vec![1, 2])]));
    let aliases = Aliases::from([("al2023-1".to_owned(), "debian-12".to_owned())]);
    let offer = Offer {
        bases: &bases,
        base_aliases: &aliases,
        region: "us-east-1",
        default_base: "debian-12",
        architectures: &[Architecture::X8664],
        memory_default_mib: 512,
        own_buckets: ["torpor-snapshots", "torpor-logs"],
    };
    let mut violations = Violations::default();
    let complete = complete(Some(configuration), &offer, &mut violations);
    (complete, violations.into_vec())
}

fn hook(seconds: i64) -> Option<Hook> {
    let timeout = Some(prost_types::Duration { seconds, nanos: 0 });
    Some(Hook { mode: HookMode::Enabled.into(), timeout })
}

#[track_caller]
fn check(change: impl FnOnce(&mut ImageConfiguration), expected: &[(&str, &str)]) {
    let mut configuration = good();
    change(&mut configuration);
    let (_, violations) = completed(configuration);
    assert_eq!(violations.len(), expected.len(), "{violations:?}");
    for ((path, message), (wanted_path, wanted)) in violations.iter().zip(expected) {
        assert!(
            path == wanted_path && message.contains(wanted),
            "{path}: {message}, not {wanted_path}: {wanted}"
        );
    }
}

#[test]
fn what_is_left_out_is_filled_in() {
    let (complete, violations) = completed(ImageConfiguration { base_image_arn: String::new(), ..good() });
    assert_eq!(violations, []);
    assert_eq!(
        (complete.base_image_arn.as_str(), complete.base_image_version.as_str()),
        ("arn:aws:lambda:us-east-1:aws:microvm-image:debian-12", "2.0")
    );
    assert_eq!(
        complete.egress_network_connectors,
        ["arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:INTERNET_EGRESS"]
    );
    assert_eq!(complete.cpu_configurations, []);
    assert_eq!(complete.resources.unwrap().minimum_memory_mib, 512);
    let prefix = "arn:aws:lambda:us-east-1:aws:microvm-image:";
    for (base, version, read_back, name) in [
        ("debian-12", "1", "1.0", "debian-12"),
        (&format!("{prefix}debian-12"), "1.0", "1.0", "debian-12"),
        (&format!("{prefix}al2023-1"), "", "2.0", "al2023-1"),
        ("al2023-1", "1", "1.0", "al2023-1"),
    ] {
        let (complete, violations) = completed(ImageConfiguration {
            base_image_arn: base.to_owned(),
            base_image_version: version.to_owned(),
            ..good()
        });
        assert_eq!(violations, [], "{base}");
        assert_eq!(complete.base_image_arn, format!("{prefix}{name}"));
        assert_eq!(complete.base_image_version, read_back);
        assert_eq!(base_name(&complete), name);
        assert_eq!(base_version(&complete), read_back.trim_end_matches(".0").parse().ok());
    }
}

#[test]
fn both_sides_of_every_rule() {
    for uri in
        ["", "s3://", "s3://b/k", "s3://bucket", "s3://bucket/", "http://bucket/key", "s3://BUCKET/key"]
    {
        check(
            |c| c.code_artifact = Some(CodeArtifact { uri: uri.to_owned() }),
            &[("codeArtifact.uri", "s3://bucket/key")],
        );
    }
    check(|c| c.code_artifact = None, &[("codeArtifact.uri", "")]);
    let own = "s3://torpor-snapshots/microvms/other/memory";
    let named = "must not name the fleet's own bucket 'torpor-snapshots'";
    check(|c| c.code_artifact = Some(CodeArtifact { uri: own.to_owned() }), &[("codeArtifact.uri", named)]);
    let base = "baseImageArn";
    let unknown = "No managed MicroVM Image with arn debian-12 and version 999 is available";
    check(|c| c.base_image_version = "999".to_owned(), &[(base, unknown)]);
    check(|c| c.base_image_arn = "alpine".to_owned(), &[(base, "arn alpine and version latest")]);
    for arn in [
        "arn:aws:lambda:eu-west-1:aws:microvm-image:debian-12",
        "arn:aws:lambda:us-east-1:000000000000:microvm-image:debian-12",
        "arn:aws:lambda:us-east-1:aws:microvm-image:al2023-2",
    ] {
        let unknown = format!("No managed MicroVM Image with arn {arn} and version latest is available");
        check(|c| c.base_image_arn = arn.to_owned(), &[(base, &unknown)]);
    }
    for (mib, good) in [(512, true), (8192, true), (0, false), (700, false), (16_384, false)] {
        let expected = [("resources[0].minimumMemoryInMiB", "512, 1024, 2048, 4096, 8192")];
        let resources = Some(Resources { minimum_memory_mib: mib });
        check(|c| c.resources = resources, if good { &[] } else { &expected });
    }
    let cpu = |architecture: Architecture| CpuConfiguration { architecture: architecture.into() };
    check(|c| c.cpu_configurations = vec![cpu(Architecture::X8664)], &[]);
    check(
        |c| c.cpu_configurations = vec![cpu(Architecture::Arm64)],
        &[(
            "cpuConfigurations[0].architecture",
            "No host of this fleet has the CPU architecture ARM_64; it has X86_64. Leave cpuConfigurations out to build for \
             what it has.",
        )],
    );
    check(|c| c.additional_os_capabilities = vec!["ALL".to_owned()], &[]);
    check(
        |c| c.additional_os_capabilities = vec!["SYS_ADMIN".to_owned()],
        &[("additionalOsCapabilities", "'ALL'")],
    );
    check(|c| c.description = "d".repeat(2048), &[]);
    check(|c| c.description = "d".repeat(2049), &[("description", "2048")]);
    let egress = "egressNetworkConnectors";
    let managed = |region: &str| {
        format!("arn:aws:lambda:{region}:aws:network-connector:aws-network-connector:INTERNET_EGRESS")
    };
    let connectors = |arns: &[&str]| arns.iter().map(|arn| (*arn).to_owned()).collect::<Vec<_>>();
    let internet = managed("us-east-1");
    let first = format!("{egress}[0]");
    check(|c| c.egress_network_connectors = connectors(&[&internet]), &[]);
    check(|c| c.egress_network_connectors = connectors(&[&internet, &internet]), &[(egress, "at most 1")]);
    check(
        |c| c.egress_network_connectors = connectors(&["INTERNET_EGRESS"]),
        &[(&first, "Malformed network connector ARN")],
    );
    for arn in
        [managed("eu-west-1"), "arn:aws:lambda:us-east-1:000000000000:network-connector:nc-1".to_owned()]
    {
        let refused = format!("Builds cannot use the network connector {arn}");
        check(|c| c.egress_network_connectors = connectors(&[&arn]), &[(&first, &refused)]);
    }
    check(|c| c.build_role_arn = "arn:aws:iam::000000000000:role/build".to_owned(), &[]);
    check(|c| c.build_role_arn = "build".to_owned(), &[("buildRoleArn", "must be the ARN of a role")]);
    check(|c| c.kms_key_identifier = "alias/images".to_owned(), &[]);
    check(
        |c| c.kms_key_identifier = "a key".to_owned(),
        &[("kmsKeyIdentifier", "must be the ARN of a KMS key")],
    );
    let stream = LogGroup { log_group: "g".to_owned(), log_stream: "a:b".to_owned() };
    check(
        |c| c.logging = Some(Logging { destination: Some(Destination::CloudWatch(stream)) }),
        &[("logging.cloudWatch.logStream", "':'")],
    );
}

#[test]
fn environment_rules_never_show_values() {
    let variables = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let path = "environmentVariables";
    check(|c| c.environment_variables = variables(&[("KEY", &"v".repeat(4096))]), &[]);
    let secret = "s3cret".repeat(700);
    let mut configuration = good();
    configuration.environment_variables = variables(&[("KEY", &secret), ("A=B", "x"), (" ", "y")]);
    let (_, violations) = completed(configuration);
    assert_eq!(violations.len(), 3);
    assert!(!format!("{violations:?}").contains("s3cret"));
    check(
        |c| c.environment_variables = variables(&[("AWS_REGION", "x")]),
        &[(&format!("{path}.AWS_REGION"), "Environment variable key 'AWS_REGION' is reserved")],
    );
    for (key, reserved) in [
        ("AWS_DEFAULT_REGION", true),
        ("AWS_SECRET_ACCESS_KEY", true),
        ("AWS_SESSION_TOKEN", true),
        ("AWS_LAMBDA_MICROVM_IMAGE_ARN", true),
        ("AWS_LAMBDA_RUNTIME_API", true),
        ("AWS_ENDPOINT_URL", false),
        ("AWS_REGIONS", false),
        ("aws_region", false),
    ] {
        let sentence = format!("Environment variable key '{key}' is reserved");
        let at = format!("{path}.{key}");
        let expected = [(at.as_str(), sentence.as_str())];
        check(|c| c.environment_variables = variables(&[(key, "x")]), if reserved { &expected } else { &[] });
    }
    let many = |count: usize| (0..count).map(|n| (format!("K{n}"), String::new())).collect();
    check(|c| c.environment_variables = many(100), &[]);
    check(|c| c.environment_variables = many(101), &[(path, "at most 100")]);
}

#[test]
fn hooks_need_a_port_and_ready() {
    check(
        |c| c.hooks = Some(Hooks { port: 8080, ready: hook(3600), run: hook(60), ..Hooks::default() }),
        &[],
    );
    check(
        |c| c.hooks = Some(Hooks { port: 8080, run: hook(5), ..Hooks::default() }),
        &[(
            "hooks.microvmImageHooks.ready",
            "The ready (/ready) MicroVM image hook must be enabled when any MicroVM lifecycle hook (run, resume, \
             suspend, or terminate) is enabled.",
        )],
    );
    let off = Some(Hook { mode: HookMode::Disabled.into(), timeout: None });
    for ready in [hook(5), off] {
        let port = "The port of the MicroVM image hooks is required when hooks are given.";
        check(|c| c.hooks = Some(Hooks { ready, ..Hooks::default() }), &[("hooks.port", port)]);
    }
    for (ready, run) in [(0, 5), (3601, 5), (-1, 5)] {
        check(
            |c| c.hooks = Some(Hooks { port: 1, ready: hook(ready), run: hook(run), ..Hooks::default() }),
            &[("hooks.microvmImageHooks.readyTimeoutInSeconds", "1 to 3600")],
        );
    }
    check(
        |c| c.hooks = Some(Hooks { port: 70_000, ready: hook(5), run: hook(61), ..Hooks::default() }),
        &[("hooks.port", "65535"), ("hooks.microvmHooks.runTimeoutInSeconds", "1 to 60")],
    );
}

#[test]
fn everything_wrong_is_said_at_once() {
    let (_, violations) = completed(ImageConfiguration {
        resources: Some(Resources { minimum_memory_mib: 1 }),
        base_image_arn: "nope".to_owned(),
        ..ImageConfiguration::default()
    });
    assert_eq!(violations.len(), 3, "{violations:?}");
}

#[test]
fn tags_are_bounded() {
    let violations = |key: &str, value: &str| {
        let mut violations = Violations::default();
        check_tags(&HashMap::from([(key.to_owned(), value.to_owned())]), &mut violations);
        violations.into_vec().len()
    };
    for (key, value, wrong) in [
        ("k", "", 0),
        ("", "v", 1),
        ("k", "a;b", 1),
        ("größe", "1 + 2", 0),
        ("k", "a\u{a0}b\u{2028}c", 0),
        ("k", "a\tb", 1),
    ] {
        assert_eq!(violations(key, value), wrong, "{key}={value}");
    }
    assert_eq!(
        (violations(&"k".repeat(128), &"v".repeat(256)), violations(&"k".repeat(129), &"v".repeat(257))),
        (0, 2)
    );
}
