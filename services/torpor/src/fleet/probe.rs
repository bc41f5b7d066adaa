//! Looking whether a component works: a real question and a real answer, with a short deadline.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rpc::{Role, TlsIdentity};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::components::Probe;
use crate::error::chain;

const TIMEOUT: Duration = Duration::from_secs(2);
/// Most bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 4096;
/// The same of metrics.
const METRICS_BYTES_MAX: u64 = 4 << 20;

/// Asks once. The error says what is wrong, in a few words.
pub async fn ask(probe: &Probe, identity: &Arc<TlsIdentity>) -> Result<(), String> {
    let asking = async {
        match probe {
            Probe::Etcd(address) => etcd(*address, identity).await,
            Probe::Http(address) => {
                let stream = connect(*address).await?;
                http(stream, "/", ANSWER_BYTES_MAX).await.map(|_| ())
            }
            Probe::Grpc(address, role) => grpc(*address, *role, identity).await,
            Probe::Tls(address, name) => {
                let stream = connect(*address).await?;
                tls(stream, name, identity).await.map(|_| ())
            }
        }
    };
    tokio::time::timeout(TIMEOUT, asking).await.unwrap_or_else(|_| Err("no answer".to_owned()))
}

/// What a service says in its metrics.
pub async fn metrics(address: SocketAddr) -> Result<String, String> {
    let asking = async { http(connect(address).await?, "/metrics", METRICS_BYTES_MAX).await };
    tokio::time::timeout(TIMEOUT, asking).await.unwrap_or_else(|_| Err("no answer".to_owned()))
}

async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    TcpStream::connect(address).await.map_err(|error| format!("{address}: {error}"))
}

async fn tls(
    stream: TcpStream,
    name: &str,
    identity: &Arc<TlsIdentity>,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
    let name = ServerName::try_from(name.to_owned()).map_err(|_| format!("'{name}' is not a host name"))?;
    let connector = TlsConnector::from(identity.client_config());
    connector.connect(name, stream).await.map_err(|error| format!("TLS: {error}"))
}

async fn etcd(address: SocketAddr, identity: &Arc<TlsIdentity>) -> Result<(), String> {
    let stream = tls(connect(address).await?, &Role::Etcd.dns_name(), identity).await?;
    let answer = http(stream, "/health", ANSWER_BYTES_MAX).await?;
    if answer.contains(r#""health":"true""#) { Ok(()) } else { Err("etcd has no leader".to_owned()) }
}

/// A bare HTTP/1.0 request: no keep-alive, no chunks, the answer ends with the connection.
async fn http(
    mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    path: &str,
    bytes_max: u64,
) -> Result<String, String> {
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
    let mut answer = Vec::new();
    // A peer may end TLS without saying goodbye; what came before still counts.
    let _ = stream.take(bytes_max).read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    if answer.starts_with("HTTP/") { Ok(answer) } else { Err("no HTTP answer".to_owned()) }
}

async fn grpc(address: SocketAddr, role: Role, identity: &Arc<TlsIdentity>) -> Result<(), String> {
    // A fresh connection each time: a probe must not be fooled by an old one.
    let channel =
        rpc::channel(identity, &address.to_string(), role).map_err(|status| status.message().to_owned())?;
    let request = HealthCheckRequest { service: String::new() };
    let response = HealthClient::new(channel).check(request).await.map_err(|status| {
        let cause = std::error::Error::source(&status).map(chain).unwrap_or_default();
        if cause.is_empty() { status.message().to_owned() } else { cause }
    })?;
    match response.into_inner().status() {
        ServingStatus::Serving => Ok(()),
        other => Err(format!("answers {}", other.as_str_name())),
    }
}
