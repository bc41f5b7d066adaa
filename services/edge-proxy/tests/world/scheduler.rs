//! A scheduler that knows what the test tells it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::microvm::v1::{
    ResumeMicrovmRequest, ResumeMicrovmResponse, WatchMicrovmsRequest, WatchMicrovmsResponse,
};
use futures::stream::{self, BoxStream, StreamExt as _};
use rpc::{Role, TlsIdentity};
use testkit::Script;
use tokio::sync::broadcast;
use tonic::Status;

struct Inner {
    known: Mutex<Vec<WatchMicrovmsResponse>>,
    changes: broadcast::Sender<WatchMicrovmsResponse>,
    resumes: AtomicUsize,
    look_ups: AtomicUsize,
    /// What becomes known when a microVM is resumed.
    on_resume: Mutex<Option<WatchMicrovmsResponse>>,
}

pub struct Scheduler {
    pub script: Script,
    inner: Arc<Inner>,
}

impl Scheduler {
    pub async fn start(identity: &Arc<TlsIdentity>) -> Self {
        let inner = Arc::new(Inner {
            known: Mutex::default(),
            changes: broadcast::channel(64).0,
            resumes: AtomicUsize::new(0),
            look_ups: AtomicUsize::new(0),
            on_resume: Mutex::default(),
        });
        let script = Script::start(identity, &[Role::EdgeProxy]).await;
        let followed = Arc::clone(&inner);
        script.stream("WatchMicrovms", move |request| Ok(followed.watch(request)));
        let resumed = Arc::clone(&inner);
        script.react_later("ResumeMicrovm", move |_: ResumeMicrovmRequest| Arc::clone(&resumed).resume());
        Self { script, inner }
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

    pub fn followers(&self) -> usize {
        self.inner.changes.receiver_count()
    }
}

fn id(message: &WatchMicrovmsResponse) -> &str {
    &message.microvm.as_ref().unwrap().microvm_id
}

impl Inner {
    fn note(&self, message: WatchMicrovmsResponse) {
        let mut known = self.known.lock().unwrap();
        known.retain(|old| id(old) != id(&message));
        known.push(message);
    }

    fn tell(&self, message: WatchMicrovmsResponse) {
        self.note(message.clone());
        let _ = self.changes.send(message);
    }

    /// What is known, of all microVMs or of one; then every change.
    fn watch(
        &self,
        request: WatchMicrovmsRequest,
    ) -> BoxStream<'static, Result<WatchMicrovmsResponse, Status>> {
        let changes = self.changes.subscribe();
        let wanted = request.microvm_id;
        self.look_ups.fetch_add(usize::from(!wanted.is_empty()), Ordering::SeqCst);
        let mut known = self.known.lock().unwrap().clone();
        known.retain(|message| wanted.is_empty() || id(message) == wanted);
        known.push(WatchMicrovmsResponse { synced: true, ..Default::default() });
        let changes =
            stream::unfold(changes, async |mut changes| Some((changes.recv().await.ok()?, changes)));
        stream::iter(known).chain(changes).map(Ok).boxed()
    }

    async fn resume(self: Arc<Self>) -> Result<ResumeMicrovmResponse, Status> {
        self.resumes.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let message = self.on_resume.lock().unwrap().clone();
        let message = message.ok_or_else(|| Status::resource_exhausted("no host has room"))?;
        self.tell(message.clone());
        Ok(ResumeMicrovmResponse { microvm: message.microvm })
    }
}
