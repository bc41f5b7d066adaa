//! What must be there before a fleet can start, checked at once, so that a
//! person reads one list instead of failing five times.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::components;
use super::plan::Plan;
use crate::error::{CliError, Kind};

/// Programs of Debian's that the fleet runs: (component, program, package).
const PROGRAMS: [(&str, &str, &str); 8] = [
    ("etcd", "etcd", "etcd-server"),
    ("host-agent-1", "qemu-system-x86_64", "qemu-system-x86"),
    ("host-agent-1", "nft", "nftables"),
    ("host-agent-1", "ip", "iproute2"),
    ("host-agent-1", "mkfs.xfs", "xfsprogs"),
    ("host-agent-1", "mount", "mount"),
    ("host-agent-1", "losetup", "mount"),
    ("image-builder", "mmdebstrap", "mmdebstrap"),
];

/// Files a guest bundle must have.
const BUNDLE_MANIFEST: &str = "manifest.json";
/// And a toolbox.
const TOOLBOX_VERSION: &str = "version";

/// Finds a program on the path, or where Debian keeps those for root.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    std::env::split_paths(&path)
        .chain(usual.iter().map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

pub fn check(plan: &Plan) -> Result<(), CliError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(CliError::failed("torpor up needs root: it makes network namespaces and mounts")
            .next("run it with sudo"));
    }
    check_programs(plan)?;
    check_binaries(plan)?;
    if plan.wants("host-agent-1") && !plan.bundle.join(BUNDLE_MANIFEST).is_file() {
        return Err(CliError::failed(format!("no guest bundle in {}", plan.bundle.display()))
            .next(format!("make it: deploy/guest-bundle {}", plan.bundle.display())));
    }
    if plan.wants("image-builder") && !plan.toolbox.join(TOOLBOX_VERSION).is_file() {
        return Err(CliError::failed(format!("no toolbox in {}", plan.toolbox.display()))
            .next(format!("make it: deploy/toolbox {}", plan.toolbox.display())));
    }
    check_reachable(&plan.data_dir)
}

fn check_programs(plan: &Plan) -> Result<(), CliError> {
    let missing: Vec<(&str, &str)> = PROGRAMS
        .into_iter()
        .filter(|(component, program, _)| plan.wants(component) && find(program).is_none())
        .map(|(_, program, package)| (program, package))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let programs: Vec<&str> = missing.iter().map(|(program, _)| *program).collect();
    let mut packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    packages.dedup();
    Err(CliError::failed(format!("these programs are missing: {}", programs.join(", ")))
        .next(format!("deploy/packages, or apt-get install {}", packages.join(" "))))
}

fn check_binaries(plan: &Plan) -> Result<(), CliError> {
    let missing: Vec<&str> = components::programs(plan)
        .into_iter()
        .filter(|program| !plan.binaries.join(program).is_file())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<String> =
        missing.iter().map(|name| format!("-p {}", name.trim_start_matches("torpor-"))).collect();
    Err(CliError::failed(format!(
        "not beside {}: {}",
        plan.binaries.join("torpor").display(),
        missing.join(", ")
    ))
    .next(format!("build them: cargo build --release --locked {}", packages.join(" "))))
}

/// The unprivileged components must be able to reach their own directories.
fn check_reachable(data_dir: &Path) -> Result<(), CliError> {
    for ancestor in data_dir.ancestors().skip(1) {
        let Ok(metadata) = std::fs::metadata(ancestor) else {
            continue;
        };
        if metadata.permissions().mode() & 0o001 == 0 {
            return Err(CliError::failed(format!(
                "{} is closed to other users, but parts of the fleet run unprivileged inside it",
                ancestor.display()
            ))
            .next(format!("chmod o+x {}, or choose another --data-dir", ancestor.display())));
        }
    }
    Ok(())
}

pub fn check_ports(plan: &Plan) -> Result<(), CliError> {
    for (component, address) in plan.listeners() {
        if let Err(error) = TcpListener::bind(address) {
            return Err(CliError::new(
                Kind::Conflict,
                format!("{component} cannot listen on {address}: {error}"),
            )
            .next("another fleet? choose other ports: --port-offset 1000"));
        }
    }
    Ok(())
}
