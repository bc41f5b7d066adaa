//! What one microVM can see of another, of the host and of itself.

use std::net::{IpAddr, TcpListener};

use crate::world::World;

#[tokio::test]
async fn clones_of_one_image_are_not_the_same_machine() {
    let fleet = World::open();
    let image = fleet.app_image().await;
    let (one, two) = futures::future::join(fleet.run(image), fleet.run(image)).await;
    let (a, b) = (one.get("/identity").await, two.get("/identity").await);
    for fact in ["uuid", "host", "urandom", "machine"] {
        assert_ne!(a[fact], b[fact], "{fact}");
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    for identity in [&a, &b] {
        let drift = (identity["time"].as_f64().unwrap() - now).abs();
        assert!(drift < 2.0, "the clock is off by {drift} s");
        let caps = identity["caps"][0].as_str().unwrap();
        assert!(caps.contains("00000000a80425fb"), "a container's capabilities, not {caps}");
    }
    one.suspend().await.unwrap();
    one.resume().await.unwrap();
    let again = one.get("/identity").await;
    assert_eq!(again["host"], a["host"], "its own identity survives sleep");
    assert_eq!(again["machine"], a["machine"]);
    assert_ne!(again["uuid"], a["uuid"]);
    one.terminate().await;
    two.terminate().await;
}

#[tokio::test]
async fn a_guest_reaches_neither_the_host_nor_the_fleet_nor_another_guest() {
    let fleet = World::open();
    let image = fleet.app_image().await;
    let (one, two) = futures::future::join(fleet.run(image), fleet.run(image)).await;
    // A listener on every address of the host is the easiest thing to reach.
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let service = |address: &str| address.rsplit_once(':').unwrap().1.parse::<u16>().unwrap();
    let services = [service(&fleet.context.scheduler), service(&fleet.context.edge), etcd_port(&fleet), port];
    let mut targets: Vec<(String, u16)> = Vec::new();
    for address in host_addresses() {
        targets.extend(services.iter().map(|port| (address.to_string(), *port)));
    }
    // The gateway's resolver is the one thing that may answer; its other ports may not.
    targets.extend(services.iter().map(|port| ("169.254.100.1".to_owned(), *port)));
    targets.push(("169.254.169.254".to_owned(), 80));
    assert!(targets.len() > 6, "the host's addresses were found: {targets:?}");
    for (host, port) in targets {
        let result = one.get(&format!("/reach?host={host}&port={port}")).await["result"].clone();
        assert!(result.as_str().unwrap().starts_with("failed"), "{host}:{port} was reached");
    }
    assert!(two.count().await == 1);
    one.terminate().await;
    two.terminate().await;
}

fn etcd_port(fleet: &World) -> u16 {
    let settings = std::fs::read_to_string(fleet.data_dir.join("config/scheduler.toml")).unwrap();
    let table: toml::Table = settings.parse().unwrap();
    let endpoint = table["etcd"]["endpoints"][0].as_str().unwrap().to_owned();
    endpoint.rsplit_once(':').unwrap().1.trim_end_matches('/').parse().unwrap()
}

/// Addresses of every interface of the root namespace that a guest might try,
/// slots' outer addresses included.
fn host_addresses() -> Vec<IpAddr> {
    let output = std::process::Command::new("ip").args(["-o", "-4", "addr"]).output().unwrap();
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3)?.split('/').next()?.parse().ok())
        .filter(|address: &IpAddr| !address.is_loopback())
        .take(6)
        .collect()
}

#[tokio::test]
async fn engines_hold_no_privilege_and_secrets_are_in_no_argument() {
    let fleet = World::open();
    let image = fleet.app_image().await;
    let microvm = fleet.run(image).await;
    let pid = microvm.engine_pid().expect("an engine");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_ne!(field("Uid:"), "0", "the engine does not run as root");
    assert_eq!(u64::from_str_radix(&field("CapEff:"), 16).unwrap(), 0);
    assert_eq!(field("Seccomp:"), "2", "system calls are filtered");
    let secret = &fleet.context.s3.secret_access_key;
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        for file in ["cmdline", "environ"] {
            let text = std::fs::read(entry.path().join(file)).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&text).contains(secret.as_str()), "{:?}/{file}", entry.path());
        }
    }
    for entry in std::fs::read_dir(fleet.data_dir.join("logs")).unwrap().flatten() {
        let log = std::fs::read_to_string(entry.path()).unwrap_or_default();
        assert!(!log.contains(secret.as_str()) && !log.contains(&microvm.token), "{:?}", entry.path());
    }
    microvm.terminate().await;
}
