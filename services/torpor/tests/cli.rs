//! What people and scripts meet first: help, exit codes, errors with a next
//! step. No fleet runs here.
#![allow(clippy::unwrap_used)] // helpers of tests may panic like tests

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
        endpoint_domain = "microvms.localhost"
        ca = "/nonexistent/ca.pem"
        cert = "/nonexistent/admin.pem"
        key = "/nonexistent/admin.key"
        [s3]
        endpoint = "http://127.0.0.1:1"
        region = "local-1"
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
        (
            vec!["image", "create", "--help"],
            "torpor image create web --artifact ./app",
        ),
        (vec!["run", "--help"], "torpor run web --idle 60s"),
        (vec!["curl", "--help"], "torpor curl ID /items -X POST"),
    ] {
        let output = torpor(directory.path(), &arguments);
        assert!(output.status.success());
        assert!(
            text(&output.stdout).contains(expected),
            "{arguments:?}: {}",
            text(&output.stdout)
        );
    }
}

#[test]
fn failures_have_their_exit_code_and_a_next_step() {
    let (nothing, fleet) = (tempfile::tempdir().unwrap(), absent_fleet());
    let cases: [(&Path, &[&str], i32, &str); 9] = [
        (nothing.path(), &["list"], 5, "next: start one with torpor up"),
        (nothing.path(), &["status"], 5, "no fleet in"),
        (nothing.path(), &["nonsense"], 2, "unrecognized subcommand"),
        (
            nothing.path(),
            &["up", "--set", "typo.x=1"],
            2,
            "next: services are scheduler, image-builder",
        ),
        (
            fleet.path(),
            &["image", "create", "x", "--artifact", "/nonexistent"],
            2,
            "next: give a directory or a zip",
        ),
        (
            fleet.path(),
            &["image", "create", "x", "--artifact", "/", "--env", "NOVALUE"],
            2,
            "KEY=VALUE",
        ),
        (
            fleet.path(),
            &["get", "not an id"],
            2,
            "next: ids look like microvm-",
        ),
        (fleet.path(), &["token", "abc", "--port", "0"], 2, "not a port"),
        (fleet.path(), &["list"], 1, "cannot use the admin certificate"),
    ];
    for (data_dir, arguments, code, expected) in cases {
        let output = torpor(data_dir, arguments);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(
            stderr.contains("error: ") && stderr.contains(expected),
            "{arguments:?}: {stderr}"
        );
        assert!(!stderr.contains('\x1b'), "no colours into a pipe: {stderr}");
    }
}

#[test]
fn env_can_be_evaluated_by_a_shell() {
    let fleet = absent_fleet();
    let output = torpor(fleet.path(), &["env"]);
    let script = format!(
        "{}\nprintf %s \"$AWS_SECRET_ACCESS_KEY|$AWS_ENDPOINT_URL_S3\"",
        text(&output.stdout)
    );
    let shell = Command::new("sh").arg("-c").arg(script).output().unwrap();
    assert_eq!(text(&shell.stdout), "it's secret|http://127.0.0.1:1");
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
    assert_eq!(
        (output.status.code(), text(&output.stderr).as_str()),
        (Some(0), "")
    );
}

#[test]
fn down_of_nothing_is_fine() {
    let directory = tempfile::tempdir().unwrap();
    let absent = directory.path().join("absent");
    for arguments in [&["down"][..], &["down", "--purge"][..]] {
        assert!(torpor(&absent, arguments).status.success());
    }
    let output = torpor(directory.path(), &["down", "--purge"]);
    assert_eq!(
        output.status.code(),
        Some(2),
        "a directory that is no fleet's is not deleted"
    );
    assert!(directory.path().exists());
}
