//! What people and scripts meet first: help, exit codes, errors with a next
//! step. No fleet runs here.

use std::path::Path;
use std::process::{Command, Output, Stdio};

fn torpor(data_dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_torpor"))
        .args(arguments)
        .env("TORPOR_DATA_DIR", data_dir)
        .env_remove("TORPOR_GUEST_BUNDLE")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A directory with the settings of a fleet that does not run.
fn absent_fleet() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let context = r#"
        scheduler = "127.0.0.1:1"
        image_builder = "127.0.0.1:1"
        edge = "127.0.0.1:1"
        api = "https://localhost:1"
        endpoint_domain = "microvms.localhost"
        ca = "/nonexistent/ca.pem"
        cert = "/nonexistent/admin.pem"
        key = "/nonexistent/admin.key"
        [s3]
        endpoint = "http://127.0.0.1:1"
        region = "us-east-1"
        access_key_id = "id"
        secret_access_key = "it's secret"
    "#;
    std::fs::write(directory.path().join("client.toml"), context).unwrap();
    directory
}

#[test]
fn help_shows_examples_and_exit_codes() {
    let directory = tempfile::tempdir().unwrap();
    for (arguments, expected) in [
        (vec!["--help"], "Exit codes: 0 done, 1 failed, 2 wrong usage"),
        (vec!["up", "--help"], "torpor up --detach --hosts 2"),
        (vec!["image", "create", "--help"], "torpor image create web --artifact ./app"),
        (vec!["image", "update", "--help"], "--end-connections-at-suspend"),
        (vec!["run", "--help"], "torpor run web --idle 60s"),
        (vec!["curl", "--help"], "torpor curl ID /items -X POST"),
        (vec!["shell", "--help"], "~. leaves a shell that hangs"),
        (vec!["run", "--help"], "--shell"),
        (vec!["run", "--help"], "--awake-while stream --awake-while cpu=20"),
        (vec!["awake", "--help"], "torpor awake ID --for 30m"),
        (vec!["checkpoint", "--help"], "torpor checkpoint ID --wait"),
        (vec!["hosts", "drain", "--help"], "torpor hosts drain host-1 --wait --timeout 1h"),
        (vec!["curl", "--help"], "-O, --output-file <FILE>"),
        (vec!["up", "--help"], "default: 8444 plus the port offset"),
        (vec!["key", "--help"], "Make an access key"),
        (vec!["token", "revoke", "--help"], "closes the WebSockets and shells"),
        (vec!["token", "--help"], "--path /api --method GET"),
        (vec!["open", "--help"], "The link works once, within a minute"),
        (vec!["key", "create", "--help"], "\"Action\": [\"lambda:*Microvm\","),
        (vec!["env", "--help"], "aws lambda-microvms list-microvms"),
    ] {
        let output = torpor(directory.path(), &arguments);
        assert!(output.status.success());
        assert!(text(&output.stdout).contains(expected), "{arguments:?}: {}", text(&output.stdout));
    }
}

#[test]
fn failures_have_their_exit_code_and_a_next_step() {
    let (nothing, fleet) = (tempfile::tempdir().unwrap(), absent_fleet());
    let file = |name: &str, text: &str| {
        let path = fleet.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let condition = file(
        "condition.json",
        r#"{"Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*", "Condition": {}}]}"#,
    );
    let cases: [(&Path, &[&str], i32, &str); 22] = [
        (nothing.path(), &["list"], 5, "next: start one with torpor up"),
        (nothing.path(), &["status"], 5, "no fleet in"),
        (fleet.path(), &["run", "web", "--awake-while", "stream"], 2, "--idle <TIME>"),
        (fleet.path(), &["run", "web", "--idle", "60s", "--awake-while", "cpu"], 2, "cpu=N"),
        (fleet.path(), &["awake", "6f1c"], 2, "--for <TIME>"),
        (fleet.path(), &["awake", "6f1c", "--for", "5m", "--release"], 2, "cannot be used with"),
        (nothing.path(), &["nonsense"], 2, "unrecognized subcommand"),
        (nothing.path(), &["up", "--set", "typo.x=1"], 2, "next: services are scheduler, image-builder"),
        (
            fleet.path(),
            &["image", "create", "x", "--artifact", "/nonexistent"],
            2,
            "next: give a directory or a zip",
        ),
        (fleet.path(), &["image", "create", "x", "--artifact", "/", "--env", "NOVALUE"], 2, "KEY=VALUE"),
        (fleet.path(), &["get", "not an id"], 2, "next: ids look like microvm-"),
        (fleet.path(), &["token", "abc", "--port", "0"], 2, "not a port"),
        (fleet.path(), &["token"], 2, "<ID>"),
        (fleet.path(), &["token", "revoke"], 2, "<ID>"),
        (fleet.path(), &["list"], 1, "cannot use the admin certificate"),
        (nothing.path(), &["up", "--region", "US East"], 2, "lower-case letters, digits and dashes"),
        (nothing.path(), &["up", "--api-port", "0"], 2, "1..=65535"),
        (nothing.path(), &["key", "list"], 5, "next: start one with torpor up"),
        (fleet.path(), &["key", "create", "--policy", &condition], 2, "unknown field `Condition`"),
        (
            fleet.path(),
            &["key", "create", "--policy", "/nonexistent"],
            2,
            "next: see torpor key create --help",
        ),
        (fleet.path(), &["key", "create", "--expires", "soon"], 2, "next: write 90d, 12h"),
        (fleet.path(), &["key", "delete", "id"], 2, "id is the fleet's root access key"),
    ];
    for (data_dir, arguments, code, expected) in cases {
        let output = torpor(data_dir, arguments);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains("error: ") && stderr.contains(expected), "{arguments:?}: {stderr}");
        assert!(!stderr.contains('\x1b'), "no colours into a pipe: {stderr}");
    }
}

#[test]
fn usage_shows_no_global_option_as_required() {
    let fleet = absent_fleet();
    let output = torpor(fleet.path(), &["run"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("Usage: torpor run <IMAGE>") && !said.contains("--data-dir"), "{said}");
}

/// What a shell knows after `eval "$(torpor env)"`: the values of `names`.
fn after_eval(fleet: &Path, names: &[&str]) -> Vec<String> {
    let output = torpor(fleet, &["env"]);
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
    let values: Vec<String> = names.iter().map(|name| format!("\"${{{name}-unset}}\"")).collect();
    let script =
        format!("AWS_SESSION_TOKEN=left-over; {}\nprintf '%s\\n' {}", text(&output.stdout), values.join(" "));
    let shell = Command::new("sh").args(["-eu", "-c", &script]).env_clear().output().unwrap();
    assert!(shell.status.success(), "{}", text(&shell.stderr));
    text(&shell.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn env_can_be_evaluated_by_a_shell() {
    let fleet = absent_fleet();
    let expected = [
        ("AWS_ENDPOINT_URL_LAMBDA_MICROVMS", "https://localhost:1"),
        ("AWS_ENDPOINT_URL_LAMBDA_CORE", "https://localhost:1"),
        // An address, not a name: AWS's clients then put the bucket into the path.
        ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1"),
        ("AWS_ACCESS_KEY_ID", "id"),
        ("AWS_SECRET_ACCESS_KEY", "it's secret"),
        ("AWS_SESSION_TOKEN", "unset"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_CA_BUNDLE", "/nonexistent/ca.pem"),
        ("TORPOR_CA", "/nonexistent/ca.pem"),
        ("TORPOR_ARTIFACT_BUCKET", "torpor-artifacts"),
    ];
    let names = expected.map(|(name, _)| name);
    assert_eq!(after_eval(fleet.path(), &names), expected.map(|(_, value)| value));
    let json = torpor(fleet.path(), &["env", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["AWS_ENDPOINT_URL_LAMBDA_MICROVMS"], "https://localhost:1");
}

#[test]
fn env_of_a_fleet_without_the_api_leaves_other_clients_alone() {
    let fleet = absent_fleet();
    let path = fleet.path().join("client.toml");
    let context = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, context.replace("api = \"https://localhost:1\"", "")).unwrap();
    let names = [
        "AWS_ENDPOINT_URL_LAMBDA_MICROVMS",
        "AWS_ENDPOINT_URL_LAMBDA_CORE",
        "AWS_CA_BUNDLE",
        "AWS_ENDPOINT_URL_S3",
    ];
    assert_eq!(after_eval(fleet.path(), &names), ["unset", "unset", "unset", "http://127.0.0.1:1"]);
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let fleet = absent_fleet();
    let mut child = Command::new(env!("CARGO_BIN_EXE_torpor"))
        .args(["env"])
        .env("TORPOR_DATA_DIR", fleet.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
}

#[test]
fn down_of_nothing_is_fine() {
    let directory = tempfile::tempdir().unwrap();
    let absent = directory.path().join("absent");
    for arguments in [&["down"][..], &["down", "--purge"][..]] {
        assert!(torpor(&absent, arguments).status.success());
    }
    let output = torpor(directory.path(), &["down", "--purge"]);
    assert_eq!(output.status.code(), Some(2), "a directory that is no fleet's is not deleted");
    assert!(directory.path().exists());
}
