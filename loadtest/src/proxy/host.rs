//! A host's end of the tunnels: the same server, opening and copying as a host-agent's, and behind it, in place
//! of a guest, the plain local app. Where its microVMs run and in which state they are does not matter here.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context as _;
use api::tunnel::v1::OpenStatus;
use rpc::TlsIdentity;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tunnel::{Limits, Responder, Server};

/// Arguments of the process.
#[derive(clap::Args)]
pub struct Options {
    /// The fleet's CA, PEM.
    #[arg(long)]
    ca: PathBuf,
    /// The host-agents' certificate, PEM.
    #[arg(long)]
    cert: PathBuf,
    /// Its key, PEM.
    #[arg(long)]
    key: PathBuf,
    /// Where every tunnel leads.
    #[arg(long)]
    app: SocketAddr,
}

/// Serves until the process is ended.
pub async fn serve(options: &Options) -> anyhow::Result<()> {
    let identity = TlsIdentity::load(&options.ca, &options.cert, &options.key)
        .context("the host-agents' certificate")?;
    let server = Server::bind(SocketAddr::from(([127, 0, 0, 1], 0)), &identity, Limits::default()).await?;
    println!("{}", server.local_address()?);
    let app = options.app;
    // A host-agent's accounting of activity, in what it costs.
    let carried = Arc::new(AtomicU64::new(0));
    let carry = move |_, responder| carry(responder, app, carried.clone());
    server.serve(carry, CancellationToken::new()).await;
    Ok(())
}

async fn carry(responder: Responder, app: SocketAddr, carried: Arc<AtomicU64>) {
    let guest = match TcpStream::connect(app).await {
        Ok(guest) => guest,
        Err(error) => return responder.refuse(OpenStatus::PortClosed, error.to_string(), None).await,
    };
    // What it is for is small answers; without it they would only be later.
    let _ = guest.set_nodelay(true);
    if let Ok(tunnel) = responder.connect(Vec::new()).await {
        let count = move |bytes| {
            carried.fetch_add(bytes, Ordering::Relaxed);
        };
        tunnel::copy(tunnel, guest, count, &CancellationToken::new()).await;
    }
}
