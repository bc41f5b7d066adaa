//! Builds Dockerfiles with BuildKit, always inside a sandbox.
//!
//! BuildKit comes inside Debian's dockerd, which is started for one build and ends with it, as root of the sandbox's own
//! user namespace; the toolbox (`deploy/toolbox`) has it and all that it needs. A build's layers are in a *lane*: one
//! directory of an owner's that one build at a time uses, so that builds of different owners share nothing, and builds of one
//! owner find their layers again. Names of base images are given to the daemon as they stand in the Dockerfile.
//!
//! What RUN steps must not keep (the CA bundle, settings of package tools) is mounted below `/dev/torpor` of a step and named by
//! variables that are added when it runs (`buildkit/runc.sh`): no layer, cache key or image has them.
//!
//! What comes out is written by the sandbox. Its processes are gone before it is read here, and only plain files are.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;

use crate::adapters::groups::Groups;
use crate::adapters::layout::{Layout, Work};
use crate::adapters::network::{self, Network};
use crate::adapters::sandbox::{Bind, Sandbox, Spec};
use crate::config::BuildSettings;
use crate::domain::dockerfile::BaseUse;

/// Directory of our files inside the sandbox.
const FILES: &str = "/run/torpor";
/// Directory of files inside a step.
const STEP_FILES: &str = "/dev/torpor";
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
/// Our own programs first: BuildKit runs steps by what is called runc.
const PATH: &str = "/run/torpor/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Configuration that every base image begins with, as dockerd takes it in an address.
const BASE_CHANGES: &str = "CMD%20%5B%22%2Fbin%2Fbash%22%5D\
    &changes=ENV%20PATH%3D%2Fusr%2Flocal%2Fsbin%3A%2Fusr%2Flocal%2Fbin%3A%2Fusr%2Fsbin%3A%2Fusr%2Fbin%3A%2Fsbin%3A%2Fbin";
/// How often the free disk space is looked at.
const DISK_CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Making a disk is ours and not the user's.
const DISK_TIMEOUT: Duration = Duration::from_secs(600);

const BUILD: &str = include_str!("buildkit/build.sh");
const DISK: &str = include_str!("buildkit/disk.sh");
const RUNC: &str = include_str!("buildkit/runc.sh");

/// Why a build did not get to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot run the build")]
    Io(#[from] io::Error),
    #[error("it did not end within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The file system of the data directory is nearly full.
    #[error("the build machine ran out of disk space")]
    DiskFull,
    /// Its processes took more memory than a build may have, this many bytes.
    #[error("it ran out of {0} bytes of memory")]
    OutOfMemory(u64),
    /// It ended with an error; its output says why.
    #[error("the build failed ({0})")]
    Failed(ExitStatus),
}

/// BuildKit with this replica's layers and settings.
#[derive(Debug, Clone)]
pub struct BuildKit {
    sandbox: Sandbox,
    layout: Layout,
    settings: BuildSettings,
    used: Arc<AtomicBool>,
    lanes: Arc<Mutex<BTreeSet<PathBuf>>>,
}

/// What one build runs with. Close it with [`Session::close`].
#[derive(Debug)]
pub struct Session {
    network: Network,
    groups: Groups,
    lane: Lane,
}

/// A directory of layers that this build alone uses; free again when it is dropped.
#[derive(Debug)]
struct Lane {
    directory: PathBuf,
    taken: Arc<Mutex<BTreeSet<PathBuf>>>,
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.taken.lock().remove(&self.directory);
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    pub path: PathBuf,
    /// JSON of the image's configuration, with what an OCI configuration has in `config`.
    pub configuration: Vec<u8>,
    /// Bytes of the image's files.
    pub tree_bytes: u64,
}

impl BuildKit {
    pub fn new(sandbox: Sandbox, layout: Layout, settings: BuildSettings) -> Self {
        Self { sandbox, layout, settings, used: Arc::default(), lanes: Arc::default() }
    }

    /// Files for RUN steps that exist, with their names inside.
    fn files(&self) -> impl Iterator<Item = (PathBuf, String, Vec<String>)> {
        let given = self.settings.files.iter().filter(|file| file.path.is_file()).filter_map(|file| {
            let name = file.path.file_name()?.to_string_lossy().into_owned();
            Some((file.path.clone(), name, file.variables.clone()))
        });
        let variables = CA_VARIABLES.map(str::to_owned).to_vec();
        let bundle = self.settings.effective_ca_bundle().map(|path| (path, CA_NAME.to_owned(), variables));
        given.chain(bundle)
    }

    /// What is added to a step when it runs.
    fn steps(&self) -> String {
        let mut env = self.settings.environment.clone();
        env.extend(network::proxies());
        let mut mounts = Vec::new();
        for (_, name, variables) in self.files() {
            let place = format!("{STEP_FILES}/{name}");
            env.extend(variables.into_iter().map(|variable| (variable, place.clone())));
            let options = ["bind", "ro", "nosuid", "nodev"];
            mounts.push(json!({ "type": "bind", "source": format!("{FILES}/{name}"), "destination": place, "options": options }));
        }
        json!({ "env": env, "mounts": mounts }).to_string()
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

    /// Opens a session for the build `name` of `owner`.
    pub async fn session(&self, network: Network, name: &str, owner: &str) -> io::Result<Session> {
        let name = format!("{}{name}", self.group_prefix());
        let lane = self.take_lane(owner);
        self.layout.make_owned(&lane.directory)?;
        let groups = Groups::create(&name, self.settings.memory_bytes_max, self.settings.processes_max).await;
        Ok(Session { network, groups, lane })
    }

    /// The first of the owner's lanes that no build is in.
    fn take_lane(&self, owner: &str) -> Lane {
        let mut taken = self.lanes.lock();
        let all = (0..).map(|number| self.layout.lane(owner, number));
        let directory = all.into_iter().find(|lane| !taken.contains(lane)).unwrap_or_default();
        taken.insert(directory.clone());
        Lane { directory, taken: Arc::clone(&self.lanes) }
    }

    /// `inputs` are what the command sees besides. They are mounted last, since some lie in what others are mounted on.
    fn spec(&self, session: &Session, work: &Work, inputs: Vec<Bind>, command: Vec<String>) -> Spec {
        let mut binds = vec![
            Bind::writable(&session.lane.directory, "/cache"),
            Bind::writable(work.shared(), "/build/shared"),
        ];
        let mut environment = BTreeMap::from([
            ("CHANGES".to_owned(), BASE_CHANGES.to_owned()),
            ("PATH".to_owned(), PATH.to_owned()),
            ("HOME".to_owned(), "/root".to_owned()),
            ("TMPDIR".to_owned(), "/build/shared".to_owned()),
            ("XDG_RUNTIME_DIR".to_owned(), "/run".to_owned()),
        ]);
        environment.extend(network::proxies());
        for (path, name, _) in self.files() {
            binds.push(Bind::read_only(path, format!("{FILES}/{name}")));
        }
        binds.extend(inputs);
        if self.settings.effective_ca_bundle().is_some() {
            environment.insert("SSL_CERT_FILE".to_owned(), format!("{FILES}/{CA_NAME}"));
        }
        let keep = self.settings.layer_cache_bytes_max;
        let daemon =
            json!({ "builder": { "gc": { "enabled": true, "defaultKeepStorage": format!("{keep}B") } } });
        let files = [
            ("bin/runc", RUNC.to_owned(), true),
            ("dockerd.json", daemon.to_string(), false),
            ("steps.json", self.steps(), false),
        ];
        Spec {
            network: Some(session.network.path()),
            toolbox: self.settings.toolbox.clone(),
            root: work.mount_point(),
            uid_base: self.settings.uid_base,
            binds,
            files: files
                .map(|(name, text, is_program)| (Path::new(FILES).join(name), (text, is_program)))
                .into(),
            resolvers: session.network.resolvers.clone(),
            environment,
            command,
            processes_max: self.settings.processes_max,
            cgroups: session.groups.files(),
        }
    }

    /// Runs one command within a time limit and while there is disk space.
    async fn run(
        &self,
        session: &Session,
        spec: Spec,
        limit: Duration,
        line: impl FnMut(String),
    ) -> Result<(), Error> {
        let running = self.sandbox.run(&spec, line);
        let status = tokio::select! {
            status = tokio::time::timeout(limit, running) => status.map_err(|_| Error::Timeout(limit))??,
            () = self.until_disk_is_full() => return Err(Error::DiskFull),
        };
        if status.success() {
            return Ok(());
        }
        match session.groups.ran_out_of_memory().await {
            true => Err(Error::OutOfMemory(self.settings.memory_bytes_max)),
            false => Err(Error::Failed(status)),
        }
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

    /// Builds the Dockerfile `text` in the work directory's context. `bases` are what it uses of our base images, with the tar and
    /// the digest of each.
    pub async fn build(
        &self,
        session: &Session,
        work: &Work,
        text: &str,
        bases: &[(BaseUse, PathBuf, String)],
        line: impl FnMut(String),
    ) -> Result<(), Error> {
        self.used.store(true, Ordering::Relaxed);
        let shared = work.shared();
        tokio::fs::write(shared.join("Dockerfile"), text).await?;
        let mut binds = vec![Bind::read_only(work.context(), "/build/context")];
        let ignored = work.context().join("Dockerfile.dockerignore");
        if is_plain(&ignored) {
            binds.push(Bind::read_only(ignored, "/build/shared/Dockerfile.dockerignore"));
        }
        let mut names = String::new();
        for (base, tar, digest) in bases {
            let tag = format!("{}-{}", base.version, digest.get(..12).unwrap_or(digest));
            let bind = Bind::read_only(tar, format!("/build/bases/{}@{tag}.tar.zst", base.name));
            // A base may have several names.
            if !binds.contains(&bind) {
                binds.push(bind);
            }
            names += &format!("{}:{tag} {} {}\n", base.name, base.repository, base.tag);
        }
        tokio::fs::write(shared.join("names"), names).await?;
        let command = script(BUILD, &[&self.settings.processes_max.to_string()]);
        let limit = Duration::from_secs(self.settings.timeout_seconds);
        self.run(session, self.spec(session, work, binds, command), limit, line).await
    }

    /// Makes an ext4 disk of `size` bytes from the image that was built.
    pub async fn disk(
        &self,
        session: &Session,
        work: &Work,
        size: u64,
        line: impl FnMut(String),
    ) -> Result<Disk, Error> {
        let command = script(DISK, &[&(size >> 10).to_string()]);
        self.run(session, self.spec(session, work, Vec::new(), command), DISK_TIMEOUT, line).await?;
        let made = |name: &str| {
            let path = work.shared().join(name);
            match is_plain(&path) {
                true => Ok(path),
                false => Err(io::Error::other(format!("the sandbox left no file called {name}"))),
            }
        };
        let tree = tokio::fs::read_to_string(made("tree-bytes")?).await?;
        let image = tokio::fs::read(made("image.json")?).await?;
        let image: serde_json::Value = serde_json::from_slice(&image).map_err(io::Error::from)?;
        Ok(Disk {
            path: made("disk.ext4")?,
            configuration: json!({ "config": image["Config"] }).to_string().into_bytes(),
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
}

impl Session {
    /// Ends a session: waits until its processes are gone and removes their
    /// groups. Gives the network back for removal.
    pub async fn close(self) -> Network {
        self.groups.remove().await;
        self.network
    }
}

fn script(text: &str, arguments: &[&str]) -> Vec<String> {
    let mut command = vec!["/bin/sh".to_owned(), "-euc".to_owned(), text.to_owned(), "sh".to_owned()];
    command.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    command
}

/// A file, not a link to one.
fn is_plain(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| found.is_file())
}
