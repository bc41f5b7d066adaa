//! What QEMU this is, and what executes guests on this host.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::QemuSettings;
use crate::engine::EngineDescription;
use crate::error::{Error, Result};

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// `Kvm` where it works, else `Tcg`.
    Auto,
    /// The host's CPU.
    Kvm,
    /// QEMU's software CPU.
    Tcg,
}

/// The settled facts about engine and host.
#[derive(Debug, Clone)]
pub(super) struct Platform {
    pub(super) binary: PathBuf,
    pub(super) kvm: bool,
    /// Rate of the guest's time-stamp counter, for guests that have no better way to learn it.
    pub(super) tsc_khz: Option<u64>,
    /// A private mapping can be made from a file opened for reading only (8.2 and later).
    pub(super) read_only_base: bool,
    pub(super) description: EngineDescription,
}

impl Platform {
    pub(super) async fn detect(settings: &QemuSettings) -> Result<Self> {
        let failed = |reason: String| Error::Engine { binary: settings.binary.clone(), reason };
        let output = tokio::process::Command::new(&settings.binary).arg("--version").output().await;
        let output = output.map_err(|e| failed(e.to_string()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().next().unwrap_or_default();
        let (major, minor, version) =
            parse_version(line).ok_or_else(|| failed(format!("its version is unknown: {line:?}")))?;
        let cpuinfo =
            std::fs::read_to_string("/proc/cpuinfo").map_err(|e| Error::io("read /proc/cpuinfo", e))?;
        let kvm = match settings.accelerator {
            Accelerator::Auto => kvm_works(&cpuinfo),
            Accelerator::Kvm => true,
            Accelerator::Tcg => false,
        };
        let platform_fingerprint = fingerprint(line, kvm, &cpuinfo);
        Ok(Self {
            // The process starts without `PATH` and in another directory.
            binary: resolve(&settings.binary).ok_or_else(|| failed("not found".into()))?,
            kvm,
            tsc_khz: if kvm { None } else { super::tsc::measure_khz().await },
            read_only_base: (major, minor) >= (8, 2),
            description: EngineDescription { name: "qemu".into(), version, platform_fingerprint },
        })
    }
}

fn resolve(binary: &std::path::Path) -> Option<PathBuf> {
    if binary.components().count() > 1 {
        return std::path::absolute(binary).ok();
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(binary)).find(|candidate| candidate.is_file())
}

/// From a line like `QEMU emulator version 7.2.22 (Debian ...)`.
fn parse_version(line: &str) -> Option<(u32, u32, String)> {
    let version = line.strip_prefix("QEMU emulator version ")?.split([' ', '(']).next()?;
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, version.to_owned()))
}

/// A device that opens is not enough: a nested host may offer a KVM that cannot run a stock kernel, and shows it only by
/// the missing CPU flag.
fn kvm_works(cpuinfo: &str) -> bool {
    let opens = std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    opens && (cfg!(not(target_arch = "x86_64")) || has_virtualization(cpuinfo))
}

fn has_virtualization(cpuinfo: &str) -> bool {
    field(cpuinfo, "flags").split(' ').any(|flag| flag == "vmx" || flag == "svm")
}

fn field<'a>(cpuinfo: &'a str, name: &str) -> &'a str {
    let lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    lines.filter(|(key, _)| key.trim() == name).map(|(_, value)| value.trim()).next().unwrap_or_default()
}

/// Device state fits wherever this is equal. The software CPU is the same on every host; a real one is not.
fn fingerprint(version_line: &str, kvm: bool, cpuinfo: &str) -> String {
    let (model, flags) = match kvm {
        true => (field(cpuinfo, "model name"), field(cpuinfo, "flags")),
        false => ("", ""),
    };
    let accelerator = if kvm { "kvm" } else { "tcg" };
    let facts = [version_line, "microvm", accelerator, "max", model, flags].join("\n");
    blake3::hash(facts.as_bytes()).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUINFO: &str = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu vme svm_lock avx\n";

    #[test]
    fn versions() {
        let cases = [
            ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)", Some((7, 2, "7.2.22"))),
            ("QEMU emulator version 10.0.0", Some((10, 0, "10.0.0"))),
            ("something else", None),
        ];
        for (line, expected) in cases {
            let expected = expected.map(|(major, minor, version)| (major, minor, version.to_owned()));
            assert_eq!(parse_version(line), expected, "{line}");
        }
    }

    #[test]
    fn virtualization_is_a_whole_word() {
        assert!(!has_virtualization(CPUINFO));
        assert!(has_virtualization(&CPUINFO.replace("vme", "vmx")));
    }

    #[test]
    fn the_cpu_counts_only_where_it_executes() {
        let other = CPUINFO.replace("avx", "avx512");
        assert_eq!(fingerprint("v", false, CPUINFO), fingerprint("v", false, &other));
        assert_ne!(fingerprint("v", true, CPUINFO), fingerprint("v", true, &other));
        assert_ne!(fingerprint("v", false, CPUINFO), fingerprint("w", false, CPUINFO));
    }
}
