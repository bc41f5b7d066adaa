//! How a channel connects: TCP, TLS with what the identity's files hold by then, and a look whether the right one answers.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower::Service;

use crate::{Identity, TlsIdentity};

/// Longest TCP and TLS connection set-up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
pub(crate) struct Connector {
    pub identity: Arc<TlsIdentity>,
    pub called: Identity,
    pub name: ServerName<'static>,
}

impl Connector {
    async fn connect(self, uri: Uri) -> Result<TlsStream<TcpStream>, tower::BoxError> {
        let address = uri.authority().map_or("", |authority| authority.as_str());
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let tls = TlsConnector::from(self.identity.grpc_client()).connect(self.name, stream).await?;
        if let Err(wrong) = self.called.compare(tls.get_ref().1.peer_certificates()) {
            tracing::warn!(address, %wrong, "a connection is not used");
            return Err(wrong.into());
        }
        Ok(tls)
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = tower::BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.clone().connect(uri);
        Box::pin(async move {
            match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
                Ok(connected) => connected.map(TokioIo::new),
                Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            }
        })
    }
}
