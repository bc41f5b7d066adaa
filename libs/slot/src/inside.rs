//! One thread that steps into namespaces on behalf of everybody else.
//!
//! A thread's network namespace decides where its new sockets live and which `/proc/sys/net` it sees, and
//! nothing else: a socket made here is used from any thread afterwards. Keeping the stepping on one thread of
//! our own means that no worker of the runtime can ever be left standing in a guest's namespace.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::{mpsc, oneshot};

/// Jobs waiting for the thread; each takes microseconds.
const QUEUE: usize = 256;

/// An open network namespace.
#[derive(Debug)]
pub(crate) struct Namespace {
    /// Name under `/run/netns`.
    pub(crate) name: String,
    fd: OwnedFd,
}

impl Namespace {
    pub(crate) fn open(name: &str) -> io::Result<Self> {
        let fd = OwnedFd::from(File::open(format!("/run/netns/{name}"))?);
        Ok(Self { name: name.to_owned(), fd })
    }
}

struct Job {
    namespace: Arc<Namespace>,
    work: Box<dyn FnOnce(io::Result<()>) + Send>,
}

/// Handle to the thread; it ends with the last handle.
#[derive(Debug, Clone)]
pub(crate) struct Inside {
    jobs: mpsc::Sender<Job>,
}

impl Inside {
    /// Starts the thread, at home in the caller's namespace.
    pub(crate) fn start() -> io::Result<Self> {
        let home = File::open("/proc/thread-self/ns/net")?;
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
        std::thread::Builder::new().name("slot-inside".to_owned()).spawn(move || {
            while let Some(Job { namespace, work }) = queue.blocking_recv() {
                work(enter(&namespace.fd));
                // Going home lets go of the namespace, so that one that is destroyed really goes away. Should
                // it fail, the next job still enters its own before doing anything.
                if let Err(error) = enter(&home) {
                    tracing::error!(%error, "cannot leave a slot's namespace");
                }
            }
        })?;
        Ok(Self { jobs })
    }

    /// Runs a short piece of work in a namespace.
    pub(crate) async fn run<T, F>(&self, namespace: &Arc<Namespace>, work: F) -> io::Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> io::Result<T> + Send + 'static,
    {
        let (answer, result) = oneshot::channel();
        let work = Box::new(move |entered: io::Result<()>| {
            // The caller may have stopped waiting; then the result is dropped.
            let _ = answer.send(entered.and_then(|()| work()));
        });
        let gone = || io::Error::other("the namespace thread has ended");
        self.jobs.send(Job { namespace: namespace.clone(), work }).await.map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }
}

fn enter(namespace: &impl std::os::fd::AsFd) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}
