//! How a server takes connections: TLS is set up beside the accept loop, with what the identity's files hold by then.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, Stream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::TlsIdentity;

/// Longest TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes under way at one time; more connections wait to be accepted.
const HANDSHAKES_MAX: usize = 1024;
/// Pause after a failed accept (out of descriptors, most likely).
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Connections whose handshake is done. From `shutdown` on, new ones are refused.
pub(crate) fn incoming(
    listener: TcpListener,
    identity: Arc<TlsIdentity>,
    shutdown: CancellationToken,
) -> impl Stream<Item = io::Result<TlsStream<TcpStream>>> {
    let (ready, connections) = mpsc::channel(1);
    let mut accepting = JoinSet::new();
    accepting.spawn(accept(listener, identity, ready, shutdown));
    // The accept loop lives as long as the stream.
    stream::unfold((connections, accepting), async |(mut connections, accepting)| {
        let connection = connections.recv().await?;
        Some((Ok(connection), (connections, accepting)))
    })
}

async fn accept(
    listener: TcpListener,
    identity: Arc<TlsIdentity>,
    ready: mpsc::Sender<TlsStream<TcpStream>>,
    shutdown: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let mut handshakes = JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        while handshakes.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Small answers must not wait for an acknowledgement.
        let _ = stream.set_nodelay(true);
        let handshake = TlsAcceptor::from(identity.grpc_server()).accept(stream);
        let ready = ready.clone();
        handshakes.spawn(async move {
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
                // An error means that the server is gone.
                Ok(Ok(stream)) => drop(ready.send(stream).await),
                Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS"),
                Err(_) => tracing::debug!(%peer, "no TLS: too slow"),
            }
            drop(permit);
        });
    }
}
