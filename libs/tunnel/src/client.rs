//! The edge's side.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use api::tunnel::v1::{OpenRequest, OpenResponse};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rpc::{Identity, Role, TlsIdentity};
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::channel::Channel;
use crate::frame::{FrameError, read_frame, write_frame};

/// The client's end of a tunnel.
pub type ClientStream = tokio_rustls::client::TlsStream<TcpStream>;

/// Longest TCP and TLS connection set-up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Hosts whose TLS sessions are remembered. Beyond that, all are forgotten and
/// remembered anew.
const HOSTS_MAX: usize = 16_384;

/// Why a tunnel was not opened. The host may have done something for the
/// request in every case but [`OpenError::Connect`]; opening is safe to repeat.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The host cannot be reached or is not who it should be.
    #[error("cannot connect to {address}")]
    Connect {
        /// The host's tunnel address.
        address: String,
        /// What the attempt met.
        #[source]
        source: io::Error,
    },
    /// The host did not answer in time.
    #[error("{address} did not answer within {} ms", .waited.as_millis())]
    TimedOut {
        /// The host's tunnel address.
        address: String,
        /// How long it was given.
        waited: Duration,
    },
    /// The connection broke before the answer.
    #[error("{address} gave no answer")]
    Broken {
        /// The host's tunnel address.
        address: String,
        /// What went wrong.
        #[source]
        source: FrameError,
    },
}

/// Opens tunnels. TLS sessions are kept per host, so that only the first
/// connection to each pays for a full handshake.
pub struct Client {
    identity: Arc<TlsIdentity>,
    name: ServerName<'static>,
    sessions: Mutex<Sessions>,
}

/// TLS sessions with hosts, by address. They end when this process has another certificate, or trusts others.
#[derive(Default)]
struct Sessions {
    with: Option<Arc<ClientConfig>>,
    hosts: HashMap<String, TlsConnector>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// A client with this process's identity (role edge-proxy or admin).
    #[must_use]
    pub fn new(identity: &Arc<TlsIdentity>) -> Self {
        let name = ServerName::try_from(Role::HostAgent.dns_name()).expect("a role's name is a DNS name");
        Self { identity: Arc::clone(identity), name, sessions: Mutex::default() }
    }

    /// Connects to the tunnel address ("host:port") of the host with an id, asks, and waits for
    /// the answer, which may take as long as a launch or a wake: `timeout`
    /// bounds the wait for it, connecting has a bound of its own. The channel
    /// carries the guest's bytes only when the answer's status is CONNECTED.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open<'a>(
        &'a self,
        (host, address): (&'a str, &'a str),
        request: &'a OpenRequest,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<(OpenResponse, Channel<ClientStream>), OpenError>> {
        Box::pin(async move {
            let refused = |source| OpenError::Connect { address: address.to_owned(), source };
            let mut stream = tokio::time::timeout(CONNECT_TIMEOUT, self.connect(host, address))
                .await
                .map_err(|_| refused(io::ErrorKind::TimedOut.into()))?
                .map_err(refused)?;
            let asked = async {
                write_frame(&mut stream, request).await?;
                read_frame(&mut stream).await
            };
            let response = tokio::time::timeout(timeout, asked)
                .await
                .map_err(|_| OpenError::TimedOut { address: address.to_owned(), waited: timeout })?
                .map_err(|source| OpenError::Broken { address: address.to_owned(), source })?;
            Ok((response, Channel::new(stream)))
        })
    }

    async fn connect(&self, host: &str, address: &str) -> io::Result<ClientStream> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let stream = self.connector(address).connect(self.name.clone(), stream).await?;
        // Another host may have the address by now, and may not be given what is meant for this one.
        Identity::of_host(host)
            .compare(stream.get_ref().1.peer_certificates())
            .map_err(|wrong| io::Error::new(io::ErrorKind::PermissionDenied, wrong))?;
        Ok(stream)
    }

    /// All hosts share one server name, by which rustls would keep sessions;
    /// a session of another host only costs a failed resumption.
    fn connector(&self, address: &str) -> TlsConnector {
        let config = self.identity.client_config();
        let mut sessions = self.sessions.lock();
        if !sessions.with.as_ref().is_some_and(|with| Arc::ptr_eq(with, &config)) {
            *sessions = Sessions { with: Some(Arc::clone(&config)), hosts: HashMap::new() };
        }
        if let Some(connector) = sessions.hosts.get(address) {
            return connector.clone();
        }
        if sessions.hosts.len() >= HOSTS_MAX {
            sessions.hosts.clear();
        }
        let mut config = ClientConfig::clone(&config);
        config.resumption = Resumption::in_memory_sessions(2);
        let connector = TlsConnector::from(Arc::new(config));
        sessions.hosts.insert(address.to_owned(), connector.clone());
        connector
    }
}
