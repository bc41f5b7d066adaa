//! A real etcd for tests: loopback ports, a temporary directory, killed by pid
//! when dropped.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::{Options, Store, TlsFiles};

/// How long etcd may take to answer after its start.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Ports [`free_port`] gives out.
const PORT_FIRST: u16 = 15_000;
const PORTS: u16 = 15_000;
/// Spreads processes that were started one after the other.
const STRIDE: u32 = 97;

/// TLS files of a test server.
#[derive(Debug, Clone)]
pub struct ServerTls {
    /// Authority for clients' certificates.
    pub ca: PathBuf,
    /// Server certificate.
    pub cert: PathBuf,
    /// Server key.
    pub key: PathBuf,
}

/// A running etcd.
#[derive(Debug)]
pub struct Etcd {
    directory: tempfile::TempDir,
    child: Option<Child>,
    client_port: u16,
    peer_port: u16,
    tls: Option<ServerTls>,
}

impl Etcd {
    /// Starts an etcd without TLS and waits until it answers.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start() -> Self {
        Self::start_with(None).await
    }

    /// Starts an etcd, with TLS and client certificates if given.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start_with(tls: Option<ServerTls>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let mut etcd = Self { directory, child: None, client_port: free_port(), peer_port: free_port(), tls };
        etcd.spawn().await;
        etcd
    }

    /// "http://127.0.0.1:port" or "https://…".
    #[must_use]
    pub fn endpoint(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.client_port)
    }

    /// Options for this etcd under the root "/torpor/".
    #[must_use]
    pub fn options(&self, tls: Option<TlsFiles>) -> Options {
        Options { endpoints: vec![self.endpoint()], root: "/torpor/".to_owned(), tls }
    }

    /// A store on this etcd.
    ///
    /// # Panics
    /// When the options are unusable.
    pub async fn store(&self) -> Store {
        Store::connect(self.options(None)).await.expect("loopback options are usable")
    }

    /// Its data directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Kills it with SIGKILL and reaps it.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again on the same ports and data.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn restart(&mut self) {
        self.kill();
        self.spawn().await;
    }

    async fn spawn(&mut self) {
        let client = self.endpoint();
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let log = std::fs::File::create(self.directory.path().join("etcd.log")).expect("log can be made");
        let mut command = Command::new("etcd");
        command
            .args(["--name", "t", "--data-dir"])
            .arg(self.directory.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("t={peer}"), "--log-level", "error"])
            // One member elects itself quickly; tests restart it a lot.
            .args(["--heartbeat-interval", "20", "--election-timeout", "200"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::from(log));
        if let Some(tls) = &self.tls {
            command.arg("--cert-file").arg(&tls.cert).arg("--key-file").arg(&tls.key);
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(&tls.ca);
        }
        self.child = Some(command.spawn().expect("etcd is installed"));
        let deadline = Instant::now() + START_TIMEOUT;
        while std::net::TcpStream::connect(("127.0.0.1", self.client_port)).is_err() {
            let exited = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            assert!(exited.is_none(), "etcd exited: {exited:?}");
            assert!(Instant::now() < deadline, "etcd did not start");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A loopback port that is free, and that nobody else who asks here gets while
/// this process lives. Not of the range the kernel takes the ports of outgoing
/// connections from: one of those may come between this and its use.
///
/// # Panics
/// When loopback has none.
#[must_use]
pub fn free_port() -> u16 {
    static KEPT: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let spread = std::process::id().wrapping_mul(STRIDE);
    for _ in 0..PORTS {
        let step = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let offset = spread.wrapping_add(step) % u32::from(PORTS);
        let port = PORT_FIRST + u16::try_from(offset).expect("it is less than PORTS");
        // Abstract names go with their process, and with its network namespace, as ports do.
        let name = format!("torpor-test-port-{port}");
        let address = SocketAddr::from_abstract_name(name).expect("the name is short");
        let Ok(reservation) = UnixListener::bind_addr(&address) else {
            continue;
        };
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            KEPT.lock().push(reservation);
            return port;
        }
    }
    panic!("loopback has no free port");
}
