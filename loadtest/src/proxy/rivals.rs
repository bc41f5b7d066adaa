//! nginx and HAProxy as Debian packages them, each terminating TLS with the fleet's own certificate in front of
//! the app. What their packages' settings say does not count: a run writes its own, with every limit that would
//! come before the processor's out of the way.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::net::TcpStream;

use super::child::Child;
use super::processor::Division;

/// Client connections that each takes; with as many to the app, its open files stay within usual limits.
const CONNECTIONS_MAX: usize = 4096;
/// Idle connections to the app that each keeps.
const KEPT_MAX: usize = 1024;
const START_TIMEOUT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// What both need.
pub struct Setting<'a> {
    /// A directory of the run's own.
    pub directory: &'a Path,
    pub app: SocketAddr,
    /// The endpoints' certificate chain and its key, PEM.
    pub certificate: &'a Path,
    pub key: &'a Path,
    pub workers: usize,
    pub division: Option<&'a Division>,
}

/// A proxy that runs until this is dropped.
pub struct Rival {
    pub address: SocketAddr,
    child: Child,
}

/// Says what to install when one of them is missing.
pub fn ensure_installed() -> anyhow::Result<()> {
    for program in ["nginx", "haproxy"] {
        find(program)?;
    }
    Ok(())
}

impl Rival {
    pub async fn nginx(setting: &Setting<'_>) -> anyhow::Result<Self> {
        let address = unused_address()?;
        let file = setting.directory.join("nginx.conf");
        std::fs::write(&file, nginx_conf(setting, address))?;
        let arguments = [OsStr::new("-e"), OsStr::new("stderr"), OsStr::new("-c"), file.as_os_str()];
        Self::start("nginx", &arguments, address, setting).await
    }

    pub async fn haproxy(setting: &Setting<'_>) -> anyhow::Result<Self> {
        let address = unused_address()?;
        let pem = setting.directory.join("endpoint.pem");
        let both = [std::fs::read(setting.certificate)?, std::fs::read(setting.key)?].concat();
        // The directory is the user's own, as tempfile makes it.
        std::fs::write(&pem, both)?;
        let file = setting.directory.join("haproxy.cfg");
        std::fs::write(&file, haproxy_cfg(setting, address, &pem))?;
        let arguments = [OsStr::new("-db"), OsStr::new("-f"), file.as_os_str()];
        Self::start("haproxy", &arguments, address, setting).await
    }

    async fn start(
        name: &str,
        arguments: &[&OsStr],
        address: SocketAddr,
        setting: &Setting<'_>,
    ) -> anyhow::Result<Self> {
        let log = setting.directory.join(format!("{name}.log"));
        let mut child = Child::start(find(name)?.as_os_str(), arguments, Some(&log))?;
        let deadline = Instant::now() + START_TIMEOUT;
        while TcpStream::connect(address).await.is_err() {
            if child.ended() || Instant::now() > deadline {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                bail!("{name} does not start: {}", said.trim());
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(Self { address, child })
    }

    pub fn pid(&self) -> i32 {
        self.child.pid()
    }
}

fn find(program: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Daemons are where only root's path leads.
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    let found = directories.map(|directory| directory.join(program)).find(|file| file.is_file());
    found.with_context(|| format!("{program} is not installed; install it with: deploy/packages --load"))
}

fn unused_address() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?)
}

fn nginx_conf(setting: &Setting<'_>, address: SocketAddr) -> String {
    let Setting { app, workers, .. } = setting;
    let files = CONNECTIONS_MAX * 2;
    let [directory, certificate, key] =
        [setting.directory, setting.certificate, setting.key].map(Path::display);
    let masks = setting.division.map_or(String::new(), |division| {
        let masks = division.proxies.iter().map(|cpu| format!(" 1{}", "0".repeat(*cpu)));
        format!("worker_cpu_affinity{};", masks.collect::<String>())
    });
    format!(
        "\
daemon off;
user root;
pid {directory}/nginx.pid;
error_log stderr warn;
worker_processes {workers};
{masks}
worker_rlimit_nofile {files};
events {{ worker_connections {files}; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
    upstream app {{
        server {app};
        keepalive {KEPT_MAX};
        keepalive_requests 1000000000;
        keepalive_timeout 600s;
    }}
    server {{
        listen {address} ssl http2 backlog=4096;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.2 TLSv1.3;
        location / {{
            proxy_pass http://app;
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            # Bodies stay in memory.
            proxy_max_temp_file_size 0;
            proxy_read_timeout 600s;
        }}
    }}
}}
"
    )
}

fn haproxy_cfg(setting: &Setting<'_>, address: SocketAddr, pem: &Path) -> String {
    let Setting { app, workers, .. } = setting;
    let pem = pem.display();
    let map = setting.division.map_or(String::new(), |division| {
        let rows = division.proxies.iter().enumerate();
        rows.map(|(thread, cpu)| format!("    cpu-map 1/{} {cpu}\n", thread + 1)).collect()
    });
    format!(
        "\
global
    maxconn {CONNECTIONS_MAX}
    nbthread {workers}
{map}defaults
    mode http
    timeout connect 5s
    timeout client 600s
    timeout server 600s
    timeout tunnel 600s
    option forwardfor
    http-reuse always
frontend clients
    bind {address} backlog 4096 ssl crt {pem} alpn h2,http/1.1
    default_backend app
backend app
    server app {app} pool-max-conn {KEPT_MAX}
"
    )
}
