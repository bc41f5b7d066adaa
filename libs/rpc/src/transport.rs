//! What a client sends its calls into: a connection, or a server in the same process, for simulations.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::{BoxFuture, Either, MapErr, TryFutureExt as _};
use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::transport::channel::ResponseFuture;
use tower::Service;
use tower::util::BoxCloneSyncService;

use crate::{Identity, TlsIdentity, channel};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// A server in this process.
pub type Local = BoxCloneSyncService<Request<Body>, Response<Body>, Status>;

/// Who makes a call to a server in this process: in its extensions, which nothing from outside gets into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalCaller(pub Identity);

/// Takes the calls of one client to one server; clones share the connection.
#[derive(Clone)]
pub enum Transport {
    Network(Channel),
    Local(Local),
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Network(_) => "Network",
            Self::Local(_) => "Local",
        })
    }
}

type Network = MapErr<ResponseFuture, fn(tonic::transport::Error) -> Error>;

impl Service<Request<Body>> for Transport {
    type Response = Response<Body>;
    type Error = Error;
    type Future = Either<Network, BoxFuture<'static, Result<Response<Body>, Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match self {
            Self::Network(channel) => channel.poll_ready(context).map_err(Error::from),
            Self::Local(local) => local.poll_ready(context).map_err(Error::from),
        }
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self {
            Self::Network(channel) => Either::Left(channel.call(request).map_err(Error::from as fn(_) -> _)),
            Self::Local(local) => Either::Right(Box::pin(local.call(request).map_err(Error::from))),
        }
    }
}

/// Finds a server in this process by its address.
pub type Dial = dyn Fn(&str) -> Local + Send + Sync;

/// Makes the way to an address.
#[derive(Clone)]
pub enum Dialer {
    /// Over mutual TLS.
    Tls(Arc<TlsIdentity>),
    /// Into this process.
    Local(Arc<Dial>),
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tls(_) => "Tls",
            Self::Local(_) => "Local",
        })
    }
}

impl From<Arc<TlsIdentity>> for Dialer {
    fn from(identity: Arc<TlsIdentity>) -> Self {
        Self::Tls(identity)
    }
}

impl From<&Arc<TlsIdentity>> for Dialer {
    fn from(identity: &Arc<TlsIdentity>) -> Self {
        Self::Tls(Arc::clone(identity))
    }
}

impl Dialer {
    /// As [`channel`].
    ///
    /// # Errors
    /// INVALID_ARGUMENT when the address is malformed.
    pub fn dial(&self, address: &str, server: impl Into<Identity>) -> Result<Transport, Status> {
        match self {
            Self::Tls(identity) => channel(identity, address, server).map(Transport::Network),
            Self::Local(dial) => Ok(Transport::Local(dial(address))),
        }
    }
}
