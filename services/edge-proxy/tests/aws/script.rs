//! gRPC services that answer as the test says, whatever the call: real TLS, real
//! roles, and answers by the name of the method.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::{Buf as _, BufMut as _};
use futures::future::BoxFuture;
use prost::Message;
use rpc::{Role, ServerBuilder, TlsIdentity};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

type Line = Arc<dyn Fn(&[u8]) -> Result<Vec<u8>, Status> + Send + Sync>;

/// One server with the services of a process.
pub struct Script {
    pub address: SocketAddr,
    inner: Arc<Inner>,
    stop: CancellationToken,
}

/// A call as it came in.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub message: Vec<u8>,
    pub request_id: String,
}

#[derive(Default)]
struct Inner {
    lines: Mutex<HashMap<String, Line>>,
    seen: Mutex<Vec<Seen>>,
}

impl Drop for Script {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Script {
    pub async fn start(identity: &Arc<TlsIdentity>) -> Self {
        let inner = Arc::new(Inner::default());
        let server = ServerBuilder::bind("127.0.0.1:0", identity).await.unwrap();
        let (address, stop) = (server.local_addr(), CancellationToken::new());
        let routes = Routes::new(Microvms(inner.clone()))
            .add_service(Connectors(inner.clone()))
            .add_service(Images(inner.clone()));
        tokio::spawn(server.serve(routes, stop.clone()));
        Self { address, inner, stop }
    }

    /// From now on `method` answers so.
    pub fn answer(&self, method: &str, answer: Result<impl Message, Status>) {
        let answer = answer.map(|message| message.encode_to_vec());
        self.line(method, Arc::new(move |_| answer.clone()));
    }

    /// From now on `method` answers as `line` says.
    pub fn react<T: Message + Default, R: Message>(
        &self,
        method: &str,
        line: impl Fn(T) -> Result<R, Status> + Send + Sync + 'static,
    ) {
        let line = move |bytes: &[u8]| line(T::decode(bytes).unwrap()).map(|answer| answer.encode_to_vec());
        self.line(method, Arc::new(line));
    }

    fn line(&self, method: &str, line: Line) {
        self.inner.lines.lock().unwrap().insert(method.to_owned(), line);
    }

    /// The calls since the last time, without the edge's own watching.
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.inner.seen.lock().unwrap())
    }

    /// The one call since the last time.
    pub fn only<T: Message + Default>(&self, method: &str) -> T {
        let mut seen = self.take();
        let methods: Vec<_> = seen.iter().map(|seen| seen.method.as_str()).collect();
        assert_eq!(methods, [method]);
        T::decode(seen.remove(0).message.as_slice()).unwrap()
    }
}

impl Inner {
    fn call(&self, method: &str, request: &Request<Vec<u8>>) -> Result<Response<Vec<u8>>, Status> {
        rpc::authorize(request, &[Role::EdgeProxy])?;
        if method == "WatchMicrovms" {
            return Err(Status::unavailable("the endpoints are not under test"));
        }
        let request_id = request.metadata().get(rpc::REQUEST_ID).unwrap();
        self.seen.lock().unwrap().push(Seen {
            method: method.to_owned(),
            message: request.get_ref().clone(),
            request_id: request_id.to_str().unwrap().to_owned(),
        });
        let line = self.lines.lock().unwrap().get(method).cloned();
        let line = line.ok_or_else(|| Status::unimplemented(format!("{method} is not in the script")))?;
        line(request.get_ref()).map(Response::new)
    }
}

/// One call of any method.
struct Call(String, Arc<Inner>);

impl UnaryService<Vec<u8>> for Call {
    type Response = Vec<u8>;
    type Future = std::future::Ready<Result<Response<Vec<u8>>, Status>>;

    fn call(&mut self, request: Request<Vec<u8>>) -> Self::Future {
        std::future::ready(self.1.call(&self.0, &request))
    }
}

macro_rules! scripted {
    ($name:ident, $service:literal) => {
        #[derive(Clone)]
        struct $name(Arc<Inner>);

        impl NamedService for $name {
            const NAME: &'static str = $service;
        }

        impl tower::Service<http::Request<Body>> for $name {
            type Response = http::Response<Body>;
            type Error = Infallible;
            type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, request: http::Request<Body>) -> Self::Future {
                let method = request.uri().path().rsplit('/').next().unwrap().to_owned();
                let call = Call(method, self.0.clone());
                Box::pin(async move { Ok(Grpc::new(Raw).unary(call, request).await) })
            }
        }
    };
}

scripted!(Microvms, "torpor.microvm.v1.MicrovmService");
scripted!(Connectors, "torpor.connector.v1.NetworkConnectorService");
scripted!(Images, "torpor.image.v1.ImageService");

/// Messages as they are on the wire.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut bytes = vec![0; from.remaining()];
        from.copy_to_slice(&mut bytes);
        Ok(Some(bytes))
    }
}
