//! A real etcd: loopback ports, a temporary directory, killed by pid when dropped.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use records::Store;
use settings::{EtcdSettings, TlsSettings};

/// How long etcd may take to answer after its start.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Ports [`free_port`] gives out.
const PORT_FIRST: u16 = 15_000;
const PORTS: u16 = 15_000;
/// Spreads processes that were started one after the other.
const STRIDE: u32 = 97;

#[derive(Debug)]
pub struct Etcd {
    directory: tempfile::TempDir,
    child: Option<Child>,
    client_port: u16,
    peer_port: u16,
    tls: Option<TlsSettings>,
}

impl Etcd {
    /// Starts an etcd without TLS and waits until it answers.
    pub fn start() -> BoxFuture<'static, Self> {
        Self::start_with(None)
    }

    /// Starts an etcd, with TLS and client certificates if given.
    pub fn start_with(tls: Option<TlsSettings>) -> BoxFuture<'static, Self> {
        Box::pin(async {
            let directory = tempfile::tempdir().expect("a temporary directory can be made");
            let mut etcd =
                Self { directory, child: None, client_port: free_port(), peer_port: free_port(), tls };
            etcd.spawn().await;
            etcd
        })
    }

    /// "http://127.0.0.1:port" or "https://…".
    #[must_use]
    pub fn endpoint(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.client_port)
    }

    /// How to reach it, under the root "/torpor/" and with its own certificate.
    #[must_use]
    pub fn settings(&self) -> EtcdSettings {
        EtcdSettings { endpoints: vec![self.endpoint()], root: "/torpor/".to_owned(), tls: self.tls.clone() }
    }

    /// A store on this etcd.
    pub fn store(&self) -> BoxFuture<'static, Store> {
        let settings = self.settings();
        Box::pin(async move { Store::connect(&settings).await.expect("loopback settings are usable") })
    }

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
    pub fn restart(&mut self) -> BoxFuture<'_, ()> {
        self.kill();
        Box::pin(self.spawn())
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
