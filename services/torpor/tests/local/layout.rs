//! Which crate may depend on which: libraries never on services, services never
//! on services, the load test on libraries only, and nothing on what is for tests. Read from `cargo metadata`, so
//! that a new dependency cannot slip by.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Libraries that only tests may depend on.
const FOR_TESTS: [&str; 2] = ["aws-cases", "testkit"];

/// Services whose code `loadtest simulate` runs in its own process.
const SIMULATED: [&str; 2] = ["host-agent", "scheduler"];

/// Where a crate lives, which says what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Lib,
    Service,
    Loadtest,
}

fn kind(manifest: &str, root: &Path) -> Kind {
    let relative = Path::new(manifest).strip_prefix(root).expect("members are below the workspace root");
    let first = relative.components().next().expect("a manifest has a path");
    match first.as_os_str().to_str() {
        Some("libs") => Kind::Lib,
        Some("services") => Kind::Service,
        Some("loadtest") => Kind::Loadtest,
        other => panic!("a crate in {other:?}: say here what it may depend on"),
    }
}

#[test]
fn dependencies_point_one_way() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let root = Path::new(metadata["workspace_root"].as_str().unwrap());
    let packages = metadata["packages"].as_array().unwrap();
    let kinds: BTreeMap<&str, Kind> = packages
        .iter()
        .map(|package| {
            (package["name"].as_str().unwrap(), kind(package["manifest_path"].as_str().unwrap(), root))
        })
        .collect();
    assert!(kinds.len() > 10, "the workspace was read");
    let mut wrong = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap();
        for dependency in package["dependencies"].as_array().unwrap() {
            let on = dependency["name"].as_str().unwrap();
            // Tests may use a neighbour's pieces; what ships may not.
            let ships = dependency["kind"].is_null();
            match (kinds[name], kinds.get(on)) {
                (_, Some(Kind::Lib)) if ships && FOR_TESTS.contains(&on) => {
                    wrong.push(format!("{name} -> {on}"))
                }
                // What it simulates is what these do.
                (Kind::Loadtest, Some(Kind::Service)) if SIMULATED.contains(&on) => {}
                (_, Some(Kind::Service | Kind::Loadtest)) if ships => wrong.push(format!("{name} -> {on}")),
                (Kind::Lib, Some(Kind::Service | Kind::Loadtest)) => {
                    wrong.push(format!("{name} -> {on} (tests)"))
                }
                _ => {}
            }
        }
        for target in package["targets"].as_array().unwrap() {
            let is_bin = target["kind"].as_array().unwrap().iter().any(|kind| kind == "bin");
            let binary = target["name"].as_str().unwrap();
            if is_bin && kinds[name] == Kind::Service {
                assert!(binary == name || binary == format!("torpor-{name}"), "{binary} of {name}");
            }
        }
    }
    assert!(wrong.is_empty(), "dependencies that point the wrong way: {}", wrong.join(", "));
}

#[test]
fn a_crate_is_named_like_its_folder() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for group in ["libs", "services"] {
        for entry in std::fs::read_dir(root.join(group)).unwrap() {
            let path = entry.unwrap().path();
            let manifest = std::fs::read_to_string(path.join("Cargo.toml")).unwrap();
            let folder = path.file_name().unwrap().to_str().unwrap();
            assert!(manifest.contains(&format!("name = \"{folder}\"")), "{folder}");
        }
    }
}
