//! An edge's end of streams to one microVM, which finds the microVM again where the test says that it is.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api::tunnel::v1::{OpenRequest, OpenResponse, OpenStatus};
use futures::future::BoxFuture;
use rpc::Role;
use tokio::io::{DuplexStream, copy_bidirectional, duplex};
use tokio::sync::watch;
use tokio_util::io::InspectWriter;
use tokio_util::sync::CancellationToken;
use tunnel::{Channel, ClientStream};
use uuid::Uuid;

use crate::world::{Agent, PATIENCE};

/// Bytes that wait for a client: as in an edge, whose client takes what it is sent.
const BUFFER: usize = 1 << 20;

/// Answers after which another question makes no sense.
const ENDS: [OpenStatus; 2] = [OpenStatus::Terminated, OpenStatus::Suspended];

/// Where the microVM is.
#[derive(Clone)]
struct Place {
    host_id: String,
    address: String,
    generation: u64,
}

impl Place {
    fn on(agent: &Agent, generation: u64) -> Self {
        Self { host_id: agent.host_id.clone(), address: agent.tunnel.clone(), generation }
    }
}

pub struct Edge {
    microvm_id: String,
    client: tunnel::Client,
    place: Mutex<Place>,
    awake: watch::Sender<bool>,
    carried: AtomicU64,
}

impl Edge {
    pub fn new(agent: &Agent, microvm_id: &str, generation: u64) -> Arc<Self> {
        Arc::new(Self {
            microvm_id: microvm_id.to_owned(),
            client: tunnel::Client::new(&agent.identity(Role::EdgeProxy)),
            place: Mutex::new(Place::on(agent, generation)),
            awake: watch::Sender::new(true),
            carried: AtomicU64::new(0),
        })
    }

    /// From now on the microVM is there, asleep.
    pub fn is_at(&self, agent: &Agent, generation: u64) {
        *self.place.lock().unwrap() = Place::on(agent, generation);
    }

    /// What the scheduler says of it.
    pub fn is_awake(&self, awake: bool) {
        self.awake.send_replace(awake);
    }

    /// The client's end of a new stream.
    pub async fn open(self: &Arc<Self>, port: u32, wake: bool) -> (OpenResponse, DuplexStream) {
        let stream_id = Uuid::new_v4();
        let request = OpenRequest { port, wake, ..self.request(stream_id) };
        let (response, channel) = self.ask(&request).await.unwrap();
        let way = Way { edge: Arc::clone(self), stream_id, wake };
        let edge = Arc::clone(self);
        let count = move |bytes: &[u8]| {
            edge.carried.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        };
        let mut stream = InspectWriter::new(tunnel::Stream::new(channel, Box::new(way)), count);
        let (client, mut inner) = duplex(BUFFER);
        tokio::spawn(async move { copy_bidirectional(&mut stream, &mut inner).await });
        (response, client)
    }

    /// Bytes of all clients that are on their way to the guest: no suspend overtakes them, and none wakes it again.
    pub fn carried(&self) -> u64 {
        self.carried.load(Ordering::SeqCst)
    }

    fn request(&self, stream_id: Uuid) -> OpenRequest {
        OpenRequest {
            microvm_id: self.microvm_id.clone(),
            generation: self.place.lock().unwrap().generation,
            stream_id: stream_id.as_bytes().to_vec(),
            ..Default::default()
        }
    }

    async fn ask(
        &self,
        request: &OpenRequest,
    ) -> Result<(OpenResponse, Channel<ClientStream>), tunnel::OpenError> {
        let place = self.place.lock().unwrap().clone();
        self.client.open((&place.host_id, &place.address), request, PATIENCE).await
    }

    /// Until a host takes the stream up.
    async fn resume(&self, stream_id: Uuid, wake: bool) -> io::Result<Channel<ClientStream>> {
        let begun = Instant::now();
        loop {
            let request = OpenRequest { resume: true, wake, ..self.request(stream_id) };
            let answer = self.ask(&request).await;
            match answer {
                Ok((response, channel)) if response.status() == OpenStatus::Connected => return Ok(channel),
                Ok((response, _)) if ENDS.contains(&response.status()) => break,
                _ if begun.elapsed() > PATIENCE => break,
                _ => tokio::time::sleep(Duration::from_millis(25)).await,
            }
        }
        Err(io::ErrorKind::ConnectionReset.into())
    }
}

struct Way {
    edge: Arc<Edge>,
    stream_id: Uuid,
    wake: bool,
}

impl tunnel::Reattach<ClientStream> for Way {
    fn reattach(&self, wake: CancellationToken) -> BoxFuture<'static, io::Result<Channel<ClientStream>>> {
        let (edge, stream_id, may_wake) = (Arc::clone(&self.edge), self.stream_id, self.wake);
        let mut awake = edge.awake.subscribe();
        Box::pin(async move {
            tokio::select! {
                _ = awake.wait_for(|awake| *awake) => {}
                () = wake.cancelled() => {}
            }
            edge.resume(stream_id, may_wake).await
        })
    }

    fn moved(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}
