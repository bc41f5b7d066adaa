//! Limits of the API. Where a deployment may choose, the service's settings
//! hold the value and these are the defaults.

use std::ops::RangeInclusive;
use std::time::Duration;

const GIB: u64 = 1 << 30;

/// What a baseline memory size brings with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryClass {
    /// Baseline guest memory, MiB.
    pub baseline_mib: u32,
    /// Virtual CPUs at the peak.
    pub peak_vcpus: u32,
    /// Size of the root disk, bytes.
    pub disk_bytes: u64,
}

/// Every memory class, smallest first.
pub const MEMORY_CLASSES: [MemoryClass; 5] = [
    MemoryClass { baseline_mib: 512, peak_vcpus: 1, disk_bytes: 8 * GIB },
    MemoryClass { baseline_mib: 1024, peak_vcpus: 2, disk_bytes: 8 * GIB },
    MemoryClass { baseline_mib: 2048, peak_vcpus: 4, disk_bytes: 8 * GIB },
    MemoryClass { baseline_mib: 4096, peak_vcpus: 8, disk_bytes: 16 * GIB },
    MemoryClass { baseline_mib: 8192, peak_vcpus: 16, disk_bytes: 32 * GIB },
];

impl MemoryClass {
    /// The class of a baseline in MiB, if there is one.
    #[must_use]
    pub fn of(baseline_mib: u32) -> Option<Self> {
        MEMORY_CLASSES.into_iter().find(|class| class.baseline_mib == baseline_mib)
    }
}

/// Longest life of a microVM, running and suspended together.
pub const MAXIMUM_DURATION: Duration = Duration::from_secs(28_800);
/// Shortest idle window a caller may ask for.
pub const IDLE_DURATION_MIN: Duration = Duration::from_secs(60);
/// Longest idle window a caller may ask for.
pub const IDLE_DURATION_MAX: Duration = Duration::from_secs(28_800);
/// What a policy may name as the CPU use that keeps a microVM awake, in percent of one CPU.
pub const CPU_PERCENT: RangeInclusive<u32> = 1..=100;
/// Shortest keep-awake lease.
pub const KEEP_AWAKE_MIN: Duration = Duration::from_secs(1);
/// Longest keep-awake lease.
pub const KEEP_AWAKE_MAX: Duration = MAXIMUM_DURATION;
/// Shortest interval between two recovery points.
pub const CHECKPOINT_INTERVAL_MIN: Duration = Duration::from_secs(5);
/// Longest interval between two recovery points.
pub const CHECKPOINT_INTERVAL_MAX: Duration = Duration::from_secs(3600);
/// Longest time that a host goes on without its lease, by the promises of every scheduler that may lead.
pub const VOUCHED_MAX: Duration = Duration::from_secs(3600);
/// Longest suspended window a caller may ask for: the API gives no bound but
/// its integers', and the life ends before it anyway.
pub const SUSPENDED_DURATION_MAX: Duration = Duration::from_secs(i32::MAX as u64);
/// Largest run-hook payload, bytes.
pub const RUN_HOOK_PAYLOAD_BYTES_MAX: usize = 4096;
/// Most connectors of one direction.
pub const CONNECTORS_MAX: usize = 10;
/// Shortest life of a token.
pub const TOKEN_DURATION_MIN: Duration = Duration::from_secs(60);
/// Longest life of a token.
pub const TOKEN_DURATION_MAX: Duration = Duration::from_secs(3600);
/// Most port scopes in a token.
pub const TOKEN_PORT_SCOPES_MAX: usize = 100;
/// Most paths in a token.
pub const TOKEN_PATHS_MAX: usize = 16;
/// Longest path in a token, bytes.
pub const TOKEN_PATH_BYTES_MAX: usize = 512;
/// Longest paths of a token together, bytes: it has to fit into a header.
pub const TOKEN_PATHS_BYTES_MAX: usize = 3072;
/// Most methods in a token.
pub const TOKEN_METHODS_MAX: usize = 16;
/// Longest method in a token, bytes.
pub const TOKEN_METHOD_BYTES_MAX: usize = 32;
/// How long an invitation can be redeemed.
pub const INVITATION_LIFE: Duration = Duration::from_secs(60);
/// Longest path an invitation leads to, bytes.
pub const INVITATION_PATH_BYTES_MAX: usize = 2048;
/// Characters of an invitation's code: 256 random bits.
pub const INVITATION_CODE_LENGTH: usize = 43;
/// Shortest browser session.
pub const BROWSER_SESSION_MIN: Duration = Duration::from_secs(60);
/// Longest browser session. No token lives longer, and keys open tokens that long.
pub const BROWSER_SESSION_MAX: Duration = Duration::from_secs(12 * 3600);
/// Most environment variables of an image.
pub const ENVIRONMENT_ENTRIES_MAX: usize = 100;
/// Longest environment key, characters.
pub const ENVIRONMENT_KEY_MAX: usize = 256;
/// Longest environment value, characters.
pub const ENVIRONMENT_VALUE_MAX: usize = 4096;
/// Most tags of an image or a connector.
pub const TAGS_MAX: usize = 50;
/// Longest key of a tag, characters.
pub const TAG_KEY_MAX: usize = 128;
/// Longest value of a tag, characters.
pub const TAG_VALUE_MAX: usize = 256;
/// Most subnets, and most security groups, of a connector.
pub const CONNECTOR_NETWORKS_MAX: usize = 16;
/// Longest id of a subnet or a security group, characters.
pub const CONNECTOR_NETWORK_ID_MAX: usize = 1024;
/// Longest ARN of a connector's operator role, characters.
pub const CONNECTOR_ROLE_MAX: usize = 10_000;
/// Longest client token of a call about connectors, characters.
pub const CONNECTOR_TOKEN_MAX: usize = 64;
/// Largest page of connectors, and of their versions.
pub const CONNECTOR_PAGES: (u32, u32) = (50, 100);
/// Largest page a list call returns.
pub const PAGE_SIZE_MAX: u32 = 50;
/// Longest window of the ready and validate hooks.
pub const BUILD_HOOK_TIMEOUT_MAX: Duration = Duration::from_secs(3600);
/// Longest window of the run, resume, suspend and terminate hooks.
pub const RUNTIME_HOOK_TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// Window of the ready and validate hooks when the image gives none.
pub const BUILD_HOOK_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// Window of the other hooks when the image gives none.
pub const RUNTIME_HOOK_TIMEOUT_DEFAULT: Duration = Duration::from_secs(1);
/// Most statements of an access key's policy. The scheduler that stores a policy and
/// the edges that read it agree on these.
pub const POLICY_STATEMENTS_MAX: usize = 20;
/// Most actions, and most resources, of a policy's statement.
pub const POLICY_PATTERNS_MAX: usize = 50;
/// Longest action of a policy, bytes.
pub const POLICY_ACTION_MAX: usize = 128;
/// Longest resource of a policy, bytes.
pub const POLICY_RESOURCE_MAX: usize = 2048;
/// Longest name of an own domain, characters.
pub const DOMAIN_NAME_MAX: usize = 253;
/// Longest label of it, characters.
pub const DOMAIN_LABEL_MAX: usize = 63;
/// Most certificates in the chain of an own domain.
pub const DOMAIN_CERTIFICATES_MAX: usize = 10;
/// Longest chain of an own domain in PEM, bytes.
pub const DOMAIN_CHAIN_BYTES_MAX: usize = 64 * 1024;
/// Longest private key of an own domain in PEM, bytes.
pub const DOMAIN_KEY_BYTES_MAX: usize = 16 * 1024;
/// Most own domains of a fleet, which every edge keeps in memory.
pub const DOMAINS_MAX: usize = 10_000;
