//! The network: who reaches whom, how late, and what gets lost.

use std::collections::BTreeSet;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use rpc::{Dialer, Identity, Local, LocalCaller};
use tonic::Status;
use tonic::body::Body;
use tower::util::BoxCloneSyncService;
use tower::{Service as _, service_fn};

use super::world::{Node, Process, Server, Shared, lock};

/// After this long a caller notices that nobody is at the other end any more.
const HANG_UP: Duration = Duration::from_secs(8);

/// Of a thousand calls that are lost, how many arrive late, and how late at most.
const LATE: u64 = 500;
const LATE_MILLIS_MAX: u64 = 20_000;

/// Calls that come twice, the second time late.
const TWICE: [&str; 4] = ["Heartbeat", "RegisterHost", "Suspend", "Terminate"];

/// How the network is.
#[derive(Debug, Default)]
pub struct Net {
    /// Pairs that do not reach each other.
    cuts: BTreeSet<(Node, Node)>,
    /// Nodes that nothing reaches.
    down: BTreeSet<Node>,
    /// Nodes whose watches bring nothing.
    deaf: BTreeSet<Node>,
    /// Of a thousand calls, how many are lost on their way, how many answers are, and how many come twice.
    pub lossy: u64,
    /// Longest time that a message takes, beyond the least, in milliseconds.
    pub jitter_ms: u64,
}

/// What becomes of one call.
#[derive(Debug, Clone, Copy)]
pub struct Fate {
    /// Nobody was there: it certainly did not arrive.
    pub refused: bool,
    pub lost: bool,
    /// What is lost to its sender arrives all the same, so much later: it was under way when the connection ended.
    pub late: Option<Duration>,
    pub answer_lost: bool,
    /// It comes a second time, so much later.
    pub again: Option<Duration>,
    pub there: Duration,
    pub back: Duration,
}

fn pair(a: Node, b: Node) -> (Node, Node) {
    if a < b { (a, b) } else { (b, a) }
}

/// Has `one` be in `all`, or not.
fn put<T: Ord>(all: &mut BTreeSet<T>, one: T, is_in: bool) {
    if is_in {
        all.insert(one)
    } else {
        all.remove(&one)
    };
}

impl Net {
    pub fn cut(&mut self, a: Node, b: Node, cut: bool) {
        put(&mut self.cuts, pair(a, b), cut);
    }

    pub fn set_down(&mut self, node: Node, down: bool) {
        put(&mut self.down, node, down);
    }

    pub fn set_deaf(&mut self, node: Node, deaf: bool) {
        put(&mut self.deaf, node, deaf);
    }

    pub fn is_deaf(&self, node: Node) -> bool {
        self.deaf.contains(&node)
    }

    pub fn heal(&mut self) {
        *self = Self::default();
    }

    pub fn is_cut(&self, a: Node, b: Node) -> bool {
        self.cuts.contains(&pair(a, b))
    }

    pub fn is_down(&self, node: Node) -> bool {
        self.down.contains(&node)
    }
}

impl super::world::World {
    /// What becomes of a call from one node to another.
    pub fn fate(&self, from: Node, to: Node) -> Fate {
        let net = lock(&self.net);
        let (lossy, jitter) = (net.lossy, net.jitter_ms);
        let (refused, cut) = (net.is_down(to), net.is_cut(from, to));
        drop(net);
        self.draw(|chance| {
            let latency = |chance: &mut crate::chance::Chance| {
                let late = if jitter > 0 { chance.within(0..jitter * 1000) } else { 0 };
                Duration::from_micros(300 + chance.within(0..400) + late)
            };
            let (there, back) = (latency(chance), latency(chance));
            let lost = cut || chance.per_mille(lossy);
            let answer_lost = chance.per_mille(lossy);
            let again = chance.per_mille(lossy).then(|| chance.millis(0..15_000));
            let late = (lost && chance.per_mille(LATE)).then(|| chance.millis(0..LATE_MILLIS_MAX));
            Fate { refused, lost, late, answer_lost, again, there, back }
        })
    }

    pub fn reaches(&self, from: Node, to: Node) -> bool {
        let net = lock(&self.net);
        !net.is_cut(from, to) && !net.is_down(to)
    }
}

/// The ways out of a process, which says who it is.
pub fn dialer(world: &Shared, process: &Process, caller: impl Into<Identity>) -> Dialer {
    let (world, process, caller) = (Arc::clone(world), process.clone(), LocalCaller(caller.into()));
    Dialer::Local(Arc::new(move |address: &str| -> Local {
        let (world, process, caller) = (Arc::clone(&world), process.clone(), caller.clone());
        let address: Arc<str> = address.into();
        BoxCloneSyncService::new(service_fn(move |request: Request<Body>| {
            let (world, process, caller) = (Arc::clone(&world), process.clone(), caller.clone());
            let address = Arc::clone(&address);
            async move { deliver(&world, &process, &address, caller, request).await }
        }))
    }))
}

async fn deliver(
    world: &Shared,
    from: &Process,
    address: &str,
    caller: LocalCaller,
    request: Request<Body>,
) -> Result<Response<Body>, Status> {
    world.step(from).await;
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let Some(server) = world.server(address) else {
        tokio::time::sleep(Duration::from_millis(1)).await;
        return Err(Status::unavailable("connection refused"));
    };
    let method = parts.uri.path().rsplit('/').next().unwrap_or_default().to_owned();
    let fate = world.fate(from.node, server.process.node);
    let send = {
        let (uri, headers, version) = (parts.uri.clone(), parts.headers.clone(), parts.version);
        let method = parts.method.clone();
        move |body: Bytes| {
            let mut request = Request::new(Body::new(Full::new(body)));
            *request.method_mut() = method.clone();
            *request.uri_mut() = uri.clone();
            *request.version_mut() = version;
            *request.headers_mut() = headers.clone();
            request.extensions_mut().insert(caller.clone());
            request
        }
    };
    tokio::time::sleep(fate.there).await;
    if fate.refused || fate.lost || !world.reaches(from.node, server.process.node) {
        world.tell(from.node, format_args!("{method} to {address} is lost"));
        if let Some(late) = fate.late.filter(|_| !fate.refused) {
            let (to, from, request) = (server.process.node, from.node, send(body));
            hear_later(world, server, late, (request, move |world: &Shared| world.reaches(from, to)));
        }
        return Err(hung_up().await);
    }
    world.tell(from.node, format_args!("{method} -> {address}"));
    // What may be repeated whenever it comes. The rest a connection brings in its order, once or not at all.
    if let Some(later) = fate.again.filter(|_| TWICE.contains(&method.as_str())) {
        hear_later(world, server.clone(), later, (send(body.clone()), |_| true));
    }
    let answered = answer(&server, send(body)).await?;
    tokio::time::sleep(fate.back).await;
    if fate.answer_lost || !world.reaches(from.node, server.process.node) {
        world.tell(from.node, format_args!("the answer to {method} of {address} is lost"));
        return Err(hung_up().await);
    }
    world.step(from).await;
    Ok(answered)
}

/// Has a server hear a request of which nobody waits for the answer any more.
fn hear_later(
    world: &Shared,
    server: Server,
    later: Duration,
    (request, arrives): (Request<Body>, impl FnOnce(&Shared) -> bool + Send + 'static),
) {
    let (world, process) = (Arc::clone(world), server.process.clone());
    process.spawn(async move {
        tokio::time::sleep(later).await;
        if arrives(&world) {
            let method = request.uri().path().rsplit('/').next().unwrap_or_default();
            world.tell(server.process.node, format_args!("hears {method}, late"));
            let _ = answer(&server, request).await;
        }
    });
}

/// Has a server answer, unless it dies before.
async fn answer(server: &Server, request: Request<Body>) -> Result<Response<Body>, Status> {
    let mut routes = server.routes.clone();
    tokio::select! {
        biased;
        () = server.process.killed.cancelled() => Err(Status::unknown("transport error")),
        answered = routes.call(request) => answered.map_err(|_| Status::unknown("transport error")),
    }
}

async fn hung_up() -> Status {
    tokio::time::sleep(HANG_UP).await;
    Status::unavailable("the connection ended")
}

/// Never: the other end does not answer, and the caller's own patience ends the call.
pub async fn silence<T>() -> T {
    pending().await
}
