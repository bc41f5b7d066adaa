//! A host that holds any microVM and does with each what the test says.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::common::v1::Phase;
use api::tunnel::v1::{OpenRequest, OpenStatus};
use rpc::TlsIdentity;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tunnel::{Limits, Responder, Server};

/// What the host does with a microVM's next tunnels.
#[derive(Debug, Clone)]
pub enum Conduct {
    /// Lets ports 8080 and 9000 through, others are closed.
    Serve,
    /// Wakes for this long first, in one phase "restore".
    Wake(Duration),
    Refuse(OpenStatus),
}

#[derive(Default)]
struct State {
    conduct: HashMap<String, Conduct>,
    apps: HashMap<String, SocketAddr>,
    requests: Vec<OpenRequest>,
}

pub struct Host {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    pub open: Arc<AtomicUsize>,
    cut: Arc<Mutex<CancellationToken>>,
    stop: CancellationToken,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Host {
    pub async fn start(identity: &TlsIdentity, app: SocketAddr) -> Self {
        let server = Server::bind("127.0.0.1:0".parse().unwrap(), identity, Limits::default()).await.unwrap();
        let host = Self {
            address: server.local_address().unwrap(),
            state: Arc::default(),
            open: Arc::default(),
            cut: Arc::default(),
            stop: CancellationToken::new(),
        };
        let (state, open, cut) = (host.state.clone(), host.open.clone(), host.cut.clone());
        let handler = move |request: OpenRequest, responder: Responder| {
            let (conduct, app) = {
                let mut state = state.lock().unwrap();
                state.requests.push(request.clone());
                let conduct = state.conduct.get(&request.microvm_id).cloned().unwrap_or(Conduct::Serve);
                (conduct, state.apps.get(&request.microvm_id).copied().unwrap_or(app))
            };
            let (open, cut) = (open.clone(), cut.lock().unwrap().clone());
            async move {
                open.fetch_add(1, Ordering::SeqCst);
                serve(conduct, request.port, responder, app, &cut).await;
                open.fetch_sub(1, Ordering::SeqCst);
            }
        };
        tokio::spawn(server.serve(handler, host.stop.clone()));
        host
    }

    pub fn conduct(&self, microvm_id: String, conduct: Conduct) {
        self.state.lock().unwrap().conduct.insert(microvm_id, conduct);
    }

    /// Gives a microVM an app of its own.
    pub fn redirect(&self, microvm_id: String, app: SocketAddr) {
        self.state.lock().unwrap().apps.insert(microvm_id, app);
    }

    /// Everything that was asked so far.
    pub fn requests(&self) -> Vec<OpenRequest> {
        self.state.lock().unwrap().requests.clone()
    }

    /// Cuts every tunnel that stands, as a suspend does.
    pub fn cut(&self) {
        std::mem::take(&mut *self.cut.lock().unwrap()).cancel();
    }
}

async fn serve(conduct: Conduct, port: u32, responder: Responder, app: SocketAddr, cut: &CancellationToken) {
    let phases = match conduct {
        Conduct::Serve => Vec::new(),
        Conduct::Wake(time) => {
            tokio::time::sleep(time).await;
            let duration = Some(api::duration_proto(time));
            vec![Phase { name: "restore".into(), start: None, duration }]
        }
        Conduct::Refuse(status) => {
            let after = (status == OpenStatus::Busy).then_some(Duration::from_secs(3));
            return responder.refuse(status, "as the test says", after).await;
        }
    };
    if port != 8080 && port != 9000 {
        return responder.refuse(OpenStatus::PortClosed, "closed", None).await;
    }
    let guest = TcpStream::connect(app).await.unwrap();
    if let Ok(stream) = responder.connect(phases).await {
        tunnel::copy(stream, guest, |_| (), cut).await;
    }
}
