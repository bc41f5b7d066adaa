//! The supervisor with two real components, etcd and the embedded S3: they come
//! up, come back after a kill, go away, and leave nothing. Needs root.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A fleet of etcd and S3 that is gone when dropped, whatever the test did.
struct World {
    directory: tempfile::TempDir,
    port_offset: u16,
}

impl World {
    fn new(port_offset: u16) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), port_offset }
    }

    fn data_dir(&self) -> &Path {
        self.directory.path()
    }

    fn torpor(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_torpor"))
            .args(arguments)
            .env("TORPOR_DATA_DIR", self.data_dir())
            .output()
            .unwrap()
    }

    fn up(&self) -> Output {
        let offset = self.port_offset.to_string();
        self.torpor(&["up", "--detach", "--only", "etcd,s3", "--port-offset", &offset])
    }

    fn status(&self) -> Value {
        serde_json::from_slice(&self.torpor(&["status", "-o", "json"]).stdout).unwrap_or(Value::Null)
    }

    fn component(&self, name: &str) -> Value {
        let status = self.status();
        let components = status["components"].as_array().cloned().unwrap_or_default();
        components.into_iter().find(|component| component["name"] == name).unwrap_or(Value::Null)
    }

    fn record(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.data_dir().join("run/fleet.json")).unwrap()).unwrap()
    }

    fn pids(&self) -> Vec<u64> {
        let record = self.record();
        let components = record["components"].as_array().unwrap();
        let mut pids: Vec<u64> = components.iter().filter_map(|c| c["process"]["pid"].as_u64()).collect();
        pids.extend(record["supervisor"]["pid"].as_u64());
        pids
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.torpor(&["down"]);
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn kill(pid: u64) {
    let pid = nix::unistd::Pid::from_raw(pid.try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}

fn alive(pid: u64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

fn eventually(what: &str, within: Duration, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < within, "{what}: not within {within:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn components_come_up_come_back_and_go_away() {
    let fleet = World::new(11_000);
    let output = fleet.up();
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("etcd") && text(&output).contains("healthy after"), "{}", text(&output));
    assert!(fleet.torpor(&["status"]).status.success());
    assert_eq!(fleet.status()["api"], Value::Null, "no edge, no API");
    assert_eq!(fleet.up().status.code(), Some(4), "only one supervisor per data directory");

    for name in ["etcd", "s3"] {
        let pid = fleet.component(name)["pid"].as_u64().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("NoNewPrivs:\t1") && !status.contains("Uid:\t0"), "{name} is unprivileged");
        kill(pid);
        eventually("a new process", Duration::from_secs(1), || {
            fleet.record()["components"].as_array().unwrap().iter().any(|component| {
                component["name"] == name
                    && component["process"]["pid"].as_u64().is_some_and(|new| new != pid)
            })
        });
        eventually("healthy again", Duration::from_secs(10), || fleet.component(name)["health"] == "healthy");
        assert_eq!(fleet.component(name)["restarts"], 1);
    }

    let pids = fleet.pids();
    let output = fleet.torpor(&["down"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(pids.iter().all(|pid| !alive(*pid)));
    assert_eq!(fleet.torpor(&["status"]).status.code(), Some(5));
    assert!(fleet.torpor(&["down"]).status.success(), "twice is fine");
    assert!(fleet.torpor(&["down", "--purge"]).status.success());
    assert!(!fleet.data_dir().exists());
}

#[test]
fn nothing_outlives_a_killed_supervisor_and_the_next_one_goes_on() {
    let fleet = World::new(12_000);
    let output = fleet.up();
    assert!(output.status.success(), "{}", text(&output));
    let pids = fleet.pids();
    let context = client::Context::load(fleet.data_dir()).unwrap();
    kill(fleet.record()["supervisor"]["pid"].as_u64().unwrap());
    eventually("children die with it", Duration::from_secs(5), || pids.iter().all(|pid| !alive(*pid)));
    assert_eq!(fleet.torpor(&["status"]).status.code(), Some(5));
    let output = fleet.up();
    assert!(output.status.success(), "{}", text(&output));
    assert!(fleet.torpor(&["status"]).status.success());
    let again = client::Context::load(fleet.data_dir()).unwrap();
    assert!(again == context, "addresses and access keys are what they were");
}

#[test]
fn a_component_that_cannot_start_is_named_with_its_log() {
    let fleet = World::new(13_000);
    assert!(fleet.up().status.success());
    assert!(fleet.torpor(&["down"]).status.success());
    // etcd's data belongs to another cluster now.
    std::fs::write(fleet.data_dir().join("etcd/member/wal/0000000000000000-0000000000000000.wal"), "broken")
        .unwrap();
    let output = fleet.up();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        text(&output).contains("etcd could not be started") && text(&output).contains("next: its whole log")
    );
    assert_eq!(fleet.torpor(&["status"]).status.code(), Some(5), "what was started is stopped again");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_s3_keeps_what_it_is_given() {
    let fleet = World::new(14_000);
    assert!(fleet.up().status.success());
    let context = client::Context::load(fleet.data_dir()).unwrap();
    let store = object_store::Store::connect(&context.object_store()).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    // Large enough for several parts.
    let content: Vec<u8> = (0..40_000_000_u32).map(|i| (i / 7) as u8).collect();
    std::fs::write(file.path(), &content).unwrap();
    store.put_file(client::ARTIFACT_BUCKET, "a/large", file.path(), &|_, _| {}).await.unwrap();
    let range = store.get_range(client::ARTIFACT_BUCKET, "a/large", 33_000_000..33_000_100).await.unwrap();
    assert_eq!(range, content[33_000_000..33_000_100]);
    // The services have a key of their own; the user's, of the context, is the
    // root access key of the AWS-compatible API.
    let file = |name: &str| -> toml::Table {
        let path = fleet.data_dir().join("config").join(name);
        toml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    };
    let (services, root) = (file("s3-keys.toml"), toml::Value::Table(file("root-key.toml")));
    let text = |key: &toml::Value, name: &str| key[name].as_str().unwrap().to_owned();
    assert_eq!(text(&root, "access_key_id"), context.s3.access_key_id);
    assert_eq!(text(&root, "secret_access_key"), context.s3.secret_access_key);
    let services = toml::Value::Table(services);
    assert_ne!(text(&services, "access_key_id"), context.s3.access_key_id);
    let of_services = object_store::Config {
        access_key_id: Some(text(&services, "access_key_id")),
        secret_access_key: Some(text(&services, "secret_access_key")),
        ..context.object_store()
    };
    let head = object_store::Store::connect(&of_services)
        .unwrap()
        .head(client::ARTIFACT_BUCKET, "a/large")
        .await
        .unwrap();
    assert_eq!(head.size, 40_000_000);
    let stranger =
        object_store::Config { secret_access_key: Some("wrong".to_owned()), ..context.object_store() };
    let stranger = object_store::Store::connect(&stranger).unwrap();
    let refused = stranger.head(client::ARTIFACT_BUCKET, "a/large").await.expect_err("wrong secret");
    assert!(matches!(refused, object_store::Error::AccessDenied { .. }), "{refused}");
}

#[test]
fn certificates_are_rotated_and_etcd_takes_the_new_ones_only() {
    let fleet = World::new(13_000);
    let output = fleet.up();
    assert!(output.status.success(), "{}", text(&output));
    let listed = || -> Vec<Value> {
        let output = fleet.torpor(&["certs", "-o", "json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)))
    };
    let of = |all: &[Value], name: &str, what: &str| {
        let row = all.iter().find(|row| row["name"] == name);
        row.unwrap_or_else(|| panic!("{name} in {all:?}"))[what].as_str().unwrap().to_owned()
    };
    let before = listed();
    assert_eq!(of(&before, "host-agent.host-1", "commonName"), "host-1.host-agent.torpor.internal");
    let issued = fleet.torpor(&["certs", "issue", "far-1", "-o", "json"]);
    assert!(issued.status.success(), "{}", text(&issued));
    // The first step alone changes no certificate.
    let output = fleet.torpor(&["certs", "rotate", "--step"]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(of(&listed(), "admin", "fingerprint"), of(&before, "admin", "fingerprint"));
    let output = fleet.torpor(&["certs", "rotate"]);
    assert!(output.status.success(), "{}", text(&output));
    let after = listed();
    for name in ["ca", "admin", "etcd", "etcd-root", "host-agent.host-1", "endpoints"] {
        assert_ne!(of(&after, name, "fingerprint"), of(&before, name, "fingerprint"), "{name}");
        assert_eq!(of(&after, name, "issuer"), of(&after, "ca", "commonName"), "{name}");
    }
    assert_eq!(of(&after, "host-agent.far-1", "issuer"), of(&after, "ca", "commonName"));
    // Once to trust both CAs, once to drop the old one.
    assert_eq!(fleet.component("etcd")["restarts"], 2);
    // Rights can be given, so etcd takes the new certificates, and is what it was.
    let issued = fleet.torpor(&["certs", "issue", "far-2"]);
    assert!(issued.status.success(), "{}", text(&issued));
    assert!(fleet.torpor(&["down"]).status.success());
    let output = fleet.up();
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(of(&listed(), "admin", "fingerprint"), of(&after, "admin", "fingerprint"), "kept");
}
