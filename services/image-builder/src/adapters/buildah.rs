//! Drives buildah, always inside a sandbox.
//!
//! What RUN steps must not keep (the CA bundle, package index settings) is mounted under `/run/torpor`, a
//! path that no package owns, and named by variables that [`crate::domain::dockerfile`] declares as
//! arguments. The mount points this leaves in the tree are removed before the disk is made.
//!
//! Limits: a program that broke out of buildah's chroot would still be in the
//! sandbox, but could write to this replica's layer cache, which other builds
//! use. Where tenants must not share even that, give each its own replica.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::adapters::groups::Groups;
use crate::adapters::layout::{Layout, Work};
use crate::adapters::network::{self, Network};
use crate::adapters::sandbox::{Bind, Sandbox, Spec};
use crate::config::BuildSettings;
use crate::domain::reference::local_name;

/// Directory inside the sandbox and inside RUN steps.
const FILES: &str = "/run/torpor";
const CA_NAME: &str = "ca-bundle.pem";
/// Variables by which programs find a CA bundle.
const CA_VARIABLES: [&str; 6] = [
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
];
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Docker's default capabilities less these: device nodes, raw sockets and a
/// second chroot are of no use to an image's build.
const CAPABILITIES_DROPPED: [&str; 4] = ["CAP_MKNOD", "CAP_NET_RAW", "CAP_SYS_CHROOT", "CAP_AUDIT_WRITE"];
/// How often the free disk space is looked at.
const DISK_CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Steps that are ours and not the user's: importing a base, making a disk.
const OWN_STEP_TIMEOUT: Duration = Duration::from_secs(600);

const IMPORT: &str = include_str!("buildah/import.sh");
const DISK: &str = include_str!("buildah/disk.sh");
const PRUNE: &str = include_str!("buildah/prune.sh");

/// Why buildah did not do its part.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot run buildah")]
    Io(#[from] io::Error),
    #[error("it did not end within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The file system of the data directory is nearly full.
    #[error("the build machine ran out of disk space")]
    DiskFull,
    /// It ended with an error; its output says why.
    #[error("buildah failed ({0})")]
    Failed(ExitStatus),
}

/// buildah with this replica's storage and settings.
#[derive(Debug, Clone)]
pub struct Buildah {
    sandbox: Sandbox,
    layout: Layout,
    settings: BuildSettings,
    used: Arc<AtomicBool>,
}

/// What one build runs with. Close it with [`Session::close`].
#[derive(Debug)]
pub struct Session {
    network: Option<Network>,
    groups: Groups,
    resolvers: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    pub path: PathBuf,
    /// JSON of the image's OCI configuration.
    pub configuration: Vec<u8>,
    /// Bytes of the image's files.
    pub tree_bytes: u64,
}

impl Buildah {
    pub fn new(sandbox: Sandbox, layout: Layout, settings: BuildSettings) -> Self {
        Self { sandbox, layout, settings, used: Arc::default() }
    }

    /// Variables for RUN steps that the image must not keep.
    pub fn run_variables(&self) -> BTreeMap<String, String> {
        let mut variables = self.settings.environment.clone();
        if self.settings.effective_ca_bundle().is_some() {
            for name in CA_VARIABLES {
                variables.insert(name.to_owned(), format!("{FILES}/{CA_NAME}"));
            }
        }
        for (file, name) in self.files() {
            for variable in &file.variables {
                variables.insert(variable.clone(), format!("{FILES}/{name}"));
            }
        }
        variables
    }

    /// Files for RUN steps that exist, with their names inside.
    fn files(&self) -> impl Iterator<Item = (&crate::config::BuildFile, String)> {
        self.settings
            .files
            .iter()
            .filter(|file| file.path.is_file())
            .filter_map(|file| file.path.file_name().map(|name| (file, name.to_string_lossy().into_owned())))
    }

    /// Start of the names of this replica's control groups.
    fn group_prefix(&self) -> String {
        let replica = blake3::hash(self.layout.root().as_os_str().as_encoded_bytes()).to_hex();
        format!("torpor-build-{}-", &replica[..8])
    }

    /// Removes control groups that an earlier process of this replica left.
    pub async fn reconcile(&self) {
        Groups::reconcile(&self.group_prefix()).await;
    }

    /// Opens a session for one build, or for something else called `name`.
    pub async fn session(&self, network: Option<Network>, name: &str) -> Session {
        let name = format!("{}{name}", self.group_prefix());
        let groups = Groups::create(&name, self.settings.memory_bytes_max, self.settings.processes_max).await;
        Session { network, groups, resolvers: network::resolvers(&self.settings.resolvers).await }
    }

    fn spec(&self, session: &Session, work: &Work, mut binds: Vec<Bind>, command: Vec<String>) -> Spec {
        binds.push(Bind::writable(self.layout.storage(), "/storage"));
        binds.push(Bind::writable(work.shared(), "/build/shared"));
        let mut environment = BTreeMap::from([
            ("PATH".to_owned(), PATH.to_owned()),
            ("HOME".to_owned(), "/root".to_owned()),
            ("TMPDIR".to_owned(), "/build/shared".to_owned()),
        ]);
        environment.extend(network::proxies());
        if let Some(bundle) = self.settings.effective_ca_bundle() {
            let place = format!("{FILES}/{CA_NAME}");
            binds.push(Bind::read_only(bundle, &place));
            environment.insert("SSL_CERT_FILE".to_owned(), place);
        }
        for (file, name) in self.files() {
            binds.push(Bind::read_only(&file.path, format!("{FILES}/{name}")));
        }
        Spec {
            network: session.network.as_ref().map(Network::path),
            root: work.mount_point(),
            uid_base: self.settings.uid_base,
            binds,
            resolvers: session.resolvers.clone(),
            environment,
            command,
            processes_max: self.settings.processes_max,
            cgroups: session.groups.files(),
        }
    }

    /// Runs one command within a time limit and while there is disk space.
    async fn run(&self, spec: Spec, limit: Duration, line: impl FnMut(String)) -> Result<(), Error> {
        let running = self.sandbox.run(&spec, line);
        let status = tokio::select! {
            status = tokio::time::timeout(limit, running) => status.map_err(|_| Error::Timeout(limit))??,
            () = self.until_disk_is_full() => return Err(Error::DiskFull),
        };
        if status.success() { Ok(()) } else { Err(Error::Failed(status)) }
    }

    async fn until_disk_is_full(&self) {
        let mut interval = tokio::time::interval(DISK_CHECK_INTERVAL);
        loop {
            interval.tick().await;
            let free = nix::sys::statvfs::statvfs(self.layout.root())
                .map_or(u64::MAX, |stat| stat.blocks_available() * stat.fragment_size());
            if free < self.settings.disk_reserve_bytes {
                return;
            }
        }
    }

    /// Makes a base image known to buildah, from a compressed tar, unless it is.
    pub async fn import(
        &self,
        session: &Session,
        work: &Work,
        tar: &Path,
        base: (&str, &str),
        line: impl FnMut(String),
    ) -> Result<(), Error> {
        let command = script(IMPORT, &[&local_name(base.0, base.1)]);
        let binds = vec![Bind::read_only(tar, "/build/base.tar.zst")];
        self.run(self.spec(session, work, binds, command), OWN_STEP_TIMEOUT, line).await
    }

    /// Builds the Dockerfile `text` in the work directory's context and returns the image's id. It has no name: nobody's FROM
    /// reaches it, and it stays as the layer cache of the next build, until that is pruned.
    pub async fn build(
        &self,
        session: &Session,
        work: &Work,
        text: &str,
        line: impl FnMut(String),
    ) -> Result<String, Error> {
        self.used.store(true, Ordering::Relaxed);
        tokio::fs::write(work.shared().join("Dockerfile"), text).await?;
        let processes = self.settings.processes_max;
        let mut command: Vec<String> = [
            "buildah",
            "--root=/storage",
            "--runroot=/run/buildah",
            "--storage-driver=overlay",
            "bud",
            "--isolation=chroot",
            "--network=host",
            "--layers",
            "--pull=false",
            "--retry=1",
            "--format=oci",
        ]
        .map(str::to_owned)
        .into();
        command.push(format!("--ulimit=nproc={processes}:{processes}"));
        command.extend(CAPABILITIES_DROPPED.map(|name| format!("--cap-drop={name}")));
        let mut files: Vec<String> = self.files().map(|(_, name)| name).collect();
        if self.settings.effective_ca_bundle().is_some() {
            files.push(CA_NAME.to_owned());
        }
        for name in files {
            command.push(format!("--volume={FILES}/{name}:{FILES}/{name}:ro"));
        }
        command.extend(
            ["--iidfile=/build/shared/image-id", "--file=/build/shared/Dockerfile", "/build/context"]
                .map(str::to_owned),
        );
        let binds = vec![Bind::read_only(work.context(), "/build/context")];
        let limit = Duration::from_secs(self.settings.timeout_seconds);
        self.run(self.spec(session, work, binds, command), limit, line).await?;
        let id = tokio::fs::read_to_string(work.shared().join("image-id")).await?;
        Ok(id.trim().to_owned())
    }

    /// Makes an ext4 disk of `size` bytes from an image.
    pub async fn disk(
        &self,
        session: &Session,
        work: &Work,
        image: &str,
        size: u64,
        line: impl FnMut(String),
    ) -> Result<Disk, Error> {
        let command = script(DISK, &[image, &(size >> 10).to_string()]);
        self.run(self.spec(session, work, Vec::new(), command), OWN_STEP_TIMEOUT, line).await?;
        let shared = work.shared();
        let tree = tokio::fs::read_to_string(shared.join("tree-bytes")).await?;
        Ok(Disk {
            path: shared.join("disk.ext4"),
            configuration: oci_configuration(&tokio::fs::read(shared.join("image.json")).await?)?,
            tree_bytes: tree.trim().parse().map_err(io::Error::other)?,
        })
    }

    /// True when the layer cache was used since it was last looked at, so that
    /// it may be over its bound. Cheap.
    pub async fn cache_may_exceed(&self, bytes: u64) -> bool {
        let used = self.used.swap(false, Ordering::Relaxed);
        let file_system = nix::sys::statvfs::statvfs(self.layout.root());
        let taken = file_system.map_or(0, |stat| (stat.blocks() - stat.blocks_free()) * stat.fragment_size());
        used && taken > bytes
    }

    /// Removes containers that crashes left, and the whole layer cache when it
    /// is over its bound. Only while no build runs.
    pub async fn prune(&self, session: &Session, work: &Work) -> Result<(), Error> {
        let command = script(PRUNE, &[&(self.settings.layer_cache_bytes_max >> 10).to_string()]);
        let line = |text: String| tracing::debug!(text, "prune");
        self.run(self.spec(session, work, Vec::new(), command), OWN_STEP_TIMEOUT, line).await
    }
}

impl Session {
    /// Ends a session: waits until its processes are gone and removes their
    /// groups. Gives the network back for removal.
    pub async fn close(self) -> Option<Network> {
        self.groups.remove().await;
        self.network
    }
}

fn script(text: &str, arguments: &[&str]) -> Vec<String> {
    let mut command = vec!["/bin/sh".to_owned(), "-euc".to_owned(), text.to_owned(), "sh".to_owned()];
    command.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    command
}

/// The OCI configuration in what `buildah inspect` prints. (Its templates have no
/// function for JSON, so a part of it cannot be asked for.)
fn oci_configuration(inspection: &[u8]) -> io::Result<Vec<u8>> {
    let inspection: serde_json::Value = serde_json::from_slice(inspection)?;
    Ok(serde_json::to_vec(&inspection["OCIv1"])?)
}
