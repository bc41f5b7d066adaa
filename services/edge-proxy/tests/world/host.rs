//! A host that holds any microVM and does with each what the test says.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::common::v1::Phase;
use api::tunnel::v1::{OpenRequest, OpenStatus};
use host_agent::Wakes;
use rpc::TlsIdentity;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tunnel::{Channel, Ended, Limits, Responder, Server, ServerStream};

/// What the host does with a microVM's next tunnels.
#[derive(Debug, Clone)]
pub enum Conduct {
    /// Lets ports 8080 and 9000 through, others are closed.
    Serve,
    /// Wakes for this long first, in one phase "restore".
    Wake(Duration),
    Refuse(OpenStatus),
}

/// How long a guest that sleeps takes to wake.
const RESTORE: Duration = Duration::from_millis(150);

/// A guest that can be put to sleep: its connections are held, and what their clients send wakes it.
pub struct Guest {
    awake: watch::Sender<bool>,
    hold: Mutex<CancellationToken>,
    waking: tokio::sync::Mutex<()>,
    pub wakes: AtomicUsize,
    /// Connections that have been held, each time they were.
    pub held: AtomicUsize,
}

impl Default for Guest {
    fn default() -> Self {
        let awake = watch::Sender::new(true);
        Self {
            awake,
            hold: Mutex::default(),
            waking: tokio::sync::Mutex::default(),
            wakes: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
        }
    }
}

impl Guest {
    pub fn suspend(&self) {
        self.awake.send_replace(false);
        self.hold.lock().unwrap().cancel();
    }

    /// True when it slept.
    async fn wake(&self) -> bool {
        let _alone = self.waking.lock().await;
        let slept = !*self.awake.borrow();
        if slept {
            tokio::time::sleep(RESTORE).await;
            self.wakes.fetch_add(1, Ordering::SeqCst);
            *self.hold.lock().unwrap() = CancellationToken::new();
            self.awake.send_replace(true);
        }
        slept
    }

    /// Carries a connection across the guest's sleeps.
    async fn carry(&self, tunnel: Channel<ServerStream>, app: TcpStream, cut: &CancellationToken) {
        let mut session = tunnel::Session::new(tunnel, app);
        loop {
            let hold = self.hold.lock().unwrap().clone();
            let Ended::Held = session.carry(|_| (), cut, &hold).await else { return };
            assert!(session.stop_edge().await, "the edge does not answer");
            let app = session.take_guest().unwrap();
            self.held.fetch_add(1, Ordering::SeqCst);
            let mut awake = self.awake.subscribe();
            let woken = async { awake.wait_for(|awake| *awake).await.is_ok() };
            let speaks = tokio::select! {
                woken = woken => !woken,
                spoke = session.client_speaks() => if spoke { true } else { return },
            };
            if speaks {
                self.wake().await;
            }
            session.attach(app);
        }
    }
}

#[derive(Default)]
struct State {
    conduct: HashMap<String, Conduct>,
    guests: HashMap<String, Arc<Guest>>,
    apps: HashMap<String, SocketAddr>,
    requests: Vec<OpenRequest>,
    /// The real queue of a host, when wakes have to wait for their turn.
    wakes: Option<Arc<Wakes>>,
    images: HashMap<String, String>,
    woken: Vec<String>,
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
    pub async fn start(identity: &Arc<TlsIdentity>, app: SocketAddr) -> Self {
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
            let (conduct, guest, app, queue) = {
                let mut state = state.lock().unwrap();
                state.requests.push(request.clone());
                let guest = state.guests.entry(request.microvm_id.clone()).or_default().clone();
                let conduct = state.conduct.get(&request.microvm_id).cloned().unwrap_or(Conduct::Serve);
                let image = state.images.get(&request.microvm_id).cloned().unwrap_or_default();
                let queue = state.wakes.clone().map(|wakes| (wakes, image));
                (conduct, guest, state.apps.get(&request.microvm_id).copied().unwrap_or(app), queue)
            };
            let state = state.clone();
            let (open, cut) = (open.clone(), cut.lock().unwrap().clone());
            async move {
                open.fetch_add(1, Ordering::SeqCst);
                let microvm_id = request.microvm_id.as_str();
                if let Some((responder, woken)) = wake_in_turn(queue, &guest, microvm_id, responder).await {
                    if woken {
                        state.lock().unwrap().woken.push(microvm_id.to_owned());
                    }
                    serve(conduct, &guest, request.port, responder, app, &cut).await;
                }
                open.fetch_sub(1, Ordering::SeqCst);
            }
        };
        tokio::spawn(server.serve(handler, host.stop.clone()));
        host
    }

    pub fn conduct(&self, microvm_id: String, conduct: Conduct) {
        self.state.lock().unwrap().conduct.insert(microvm_id, conduct);
    }

    /// The guest of a microVM.
    pub fn guest(&self, microvm_id: &str) -> Arc<Guest> {
        self.state.lock().unwrap().guests.entry(microvm_id.to_owned()).or_default().clone()
    }

    /// Gives a microVM an app of its own.
    pub fn redirect(&self, microvm_id: String, app: SocketAddr) {
        self.state.lock().unwrap().apps.insert(microvm_id, app);
    }

    /// From now on wakes wait for their turn, in the queue that hosts have.
    pub fn wake_in_turn(&self, at_once: usize, waiting_max: usize) -> Arc<Wakes> {
        let wakes = Wakes::new(at_once, waiting_max);
        self.state.lock().unwrap().wakes = Some(Arc::clone(&wakes));
        wakes
    }

    /// Says which image a microVM is of.
    pub fn belongs(&self, microvm_id: String, image: &str) {
        self.state.lock().unwrap().images.insert(microvm_id, image.to_owned());
    }

    /// Who was woken in turn, in the order in which they were awake.
    pub fn woken(&self) -> Vec<String> {
        self.state.lock().unwrap().woken.clone()
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

/// Wakes the guest when its turn has come, as a host does. `None` when it may not wait, or its caller is gone.
async fn wake_in_turn(
    queue: Option<(Arc<Wakes>, String)>,
    guest: &Guest,
    microvm_id: &str,
    mut responder: Responder,
) -> Option<(Responder, bool)> {
    let Some((wakes, image)) = queue else { return Some((responder, false)) };
    if *guest.awake.borrow() {
        return Some((responder, false));
    }
    let turn = tokio::select! {
        turn = wakes.turn(microvm_id, &image) => turn,
        () = responder.abandoned() => return None,
    };
    match turn {
        Ok(_turn) => Some((responder, guest.wake().await)),
        Err(full) => {
            responder.refuse(OpenStatus::NoRoom, full.to_string(), None).await;
            None
        }
    }
}

async fn serve(
    conduct: Conduct,
    guest: &Guest,
    port: u32,
    responder: Responder,
    app: SocketAddr,
    cut: &CancellationToken,
) {
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
    guest.wake().await;
    let app = TcpStream::connect(app).await.unwrap();
    if let Ok(tunnel) = responder.connect(phases).await {
        guest.carry(tunnel, app, cut).await;
    }
}
