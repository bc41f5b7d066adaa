//! A scheduler that knows what the test tells it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::microvm::v1::microvm_service_server::{MicrovmService, MicrovmServiceServer};
use api::microvm::v1::*;
use rpc::{Role, ServerBuilder, TlsIdentity};
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

struct Inner {
    known: Mutex<Vec<WatchMicrovmsResponse>>,
    changes: broadcast::Sender<WatchMicrovmsResponse>,
    resumes: AtomicUsize,
    look_ups: AtomicUsize,
    /// What becomes known when a microVM is resumed.
    on_resume: Mutex<Option<WatchMicrovmsResponse>>,
}

pub struct Scheduler {
    pub address: SocketAddr,
    inner: Arc<Inner>,
    pub stop: CancellationToken,
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Service(Arc<Inner>);

impl Scheduler {
    pub async fn start(identity: &Arc<TlsIdentity>) -> Self {
        let inner = Arc::new(Inner {
            known: Mutex::default(),
            changes: broadcast::channel(64).0,
            resumes: AtomicUsize::new(0),
            look_ups: AtomicUsize::new(0),
            on_resume: Mutex::default(),
        });
        let server = ServerBuilder::bind("127.0.0.1:0", identity).await.unwrap();
        let address = server.local_addr();
        let stop = CancellationToken::new();
        let routes = Routes::new(MicrovmServiceServer::new(Service(inner.clone())));
        tokio::spawn(server.serve(routes, stop.clone()));
        Self { address, inner, stop }
    }

    /// Notes a microVM and tells the followers.
    pub fn tell(&self, message: WatchMicrovmsResponse) {
        self.inner.tell(message);
    }

    /// Notes a microVM for those who ask, without a word to the followers.
    pub fn whisper(&self, message: WatchMicrovmsResponse) {
        self.inner.note(message);
    }

    pub fn on_resume(&self, message: WatchMicrovmsResponse) {
        *self.inner.on_resume.lock().unwrap() = Some(message);
    }

    pub fn resumes(&self) -> usize {
        self.inner.resumes.load(Ordering::SeqCst)
    }

    /// How often one microVM was asked for.
    pub fn look_ups(&self) -> usize {
        self.inner.look_ups.load(Ordering::SeqCst)
    }

    /// Number of followers.
    pub fn followers(&self) -> usize {
        self.inner.changes.receiver_count()
    }
}

impl Inner {
    fn note(&self, message: WatchMicrovmsResponse) {
        let id = |message: &WatchMicrovmsResponse| message.microvm.as_ref().unwrap().microvm_id.clone();
        let mut known = self.known.lock().unwrap();
        known.retain(|old| id(old) != id(&message));
        known.push(message);
    }

    fn tell(&self, message: WatchMicrovmsResponse) {
        self.note(message.clone());
        let _ = self.changes.send(message);
    }
}

type Answer<T> = Result<Response<T>, Status>;
type Messages<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl MicrovmService for Service {
    type WatchMicrovmsStream = Messages<WatchMicrovmsResponse>;
    type FollowMicrovmLogStream = Messages<FollowMicrovmLogResponse>;

    async fn watch_microvms(
        &self,
        request: Request<WatchMicrovmsRequest>,
    ) -> Answer<Self::WatchMicrovmsStream> {
        rpc::authorize(&request, &[Role::EdgeProxy])?;
        let wanted = request.into_inner().microvm_id;
        let mut changes = self.0.changes.subscribe();
        let (sender, receiver) = mpsc::channel(64);
        let known = self.0.known.lock().unwrap().clone();
        let one = !wanted.is_empty();
        self.0.look_ups.fetch_add(usize::from(one), Ordering::SeqCst);
        tokio::spawn(async move {
            for message in known {
                if !one || message.microvm.as_ref().unwrap().microvm_id == wanted {
                    let _ = sender.send(Ok(message)).await;
                }
            }
            let _ = sender.send(Ok(WatchMicrovmsResponse { synced: true, ..Default::default() })).await;
            loop {
                tokio::select! {
                    message = changes.recv() => {
                        let Ok(message) = message else { return };
                        let _ = sender.send(Ok(message)).await;
                    }
                    () = sender.closed() => return,
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn resume_microvm(&self, request: Request<ResumeMicrovmRequest>) -> Answer<ResumeMicrovmResponse> {
        rpc::authorize(&request, &[Role::EdgeProxy])?;
        self.0.resumes.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let message = self.0.on_resume.lock().unwrap().clone();
        match message {
            Some(message) => {
                self.0.tell(message.clone());
                Ok(Response::new(ResumeMicrovmResponse { microvm: message.microvm }))
            }
            None => Err(Status::resource_exhausted("no host has room")),
        }
    }

    async fn run_microvm(&self, _: Request<RunMicrovmRequest>) -> Answer<RunMicrovmResponse> {
        Err(Status::unimplemented(""))
    }
    async fn get_microvm(&self, _: Request<GetMicrovmRequest>) -> Answer<GetMicrovmResponse> {
        Err(Status::unimplemented(""))
    }
    async fn list_microvms(&self, _: Request<ListMicrovmsRequest>) -> Answer<ListMicrovmsResponse> {
        Err(Status::unimplemented(""))
    }
    async fn suspend_microvm(&self, _: Request<SuspendMicrovmRequest>) -> Answer<SuspendMicrovmResponse> {
        Err(Status::unimplemented(""))
    }
    async fn terminate_microvm(
        &self,
        _: Request<TerminateMicrovmRequest>,
    ) -> Answer<TerminateMicrovmResponse> {
        Err(Status::unimplemented(""))
    }
    async fn create_microvm_auth_token(
        &self,
        _: Request<CreateMicrovmAuthTokenRequest>,
    ) -> Answer<CreateMicrovmAuthTokenResponse> {
        Err(Status::unimplemented(""))
    }
    async fn create_microvm_shell_auth_token(
        &self,
        _: Request<CreateMicrovmShellAuthTokenRequest>,
    ) -> Answer<CreateMicrovmShellAuthTokenResponse> {
        Err(Status::unimplemented(""))
    }
    async fn follow_microvm_log(
        &self,
        _: Request<FollowMicrovmLogRequest>,
    ) -> Answer<Self::FollowMicrovmLogStream> {
        Err(Status::unimplemented(""))
    }
}
