//! gRPC services that answer as a test says: real TLS, real roles, and answers by
//! the name of the method, of whichever service. A method that the test says
//! nothing about answers UNIMPLEMENTED, as a server without it would.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::{Buf as _, BufMut as _};
use futures::future::{self, BoxFuture};
use futures::stream::{self, BoxStream, StreamExt as _};
use prost::Message;
use rpc::{Role, ServerBuilder, TlsIdentity};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, ServerStreamingService};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

type Messages = BoxStream<'static, Result<Vec<u8>, Status>>;
type Line = Arc<dyn Fn(Vec<u8>) -> BoxFuture<'static, Result<Messages, Status>> + Send + Sync>;

/// A server with the services of one process. It stops when it is dropped.
pub struct Script {
    pub address: SocketAddr,
    inner: Arc<Inner>,
    stop: CancellationToken,
}

/// A call as it came in.
#[derive(Debug, Clone)]
pub struct Call {
    /// Name of the method, without its service.
    pub method: String,
    /// The request, encoded.
    pub message: Vec<u8>,
    /// The id that the request carried.
    pub request_id: String,
}

struct Inner {
    callers: &'static [Role],
    lines: Mutex<HashMap<String, (Line, Kept)>>,
    calls: Mutex<Vec<Call>>,
}

/// Whether [`Script::take`] returns a method's calls.
#[derive(Clone, Copy, PartialEq)]
enum Kept {
    Yes,
    No,
}

impl Script {
    /// Serves as `identity`, and refuses every caller that has none of the roles.
    pub fn start(identity: &Arc<TlsIdentity>, callers: &'static [Role]) -> BoxFuture<'static, Self> {
        let identity = Arc::clone(identity);
        Box::pin(async move {
            let inner = Arc::new(Inner { callers, lines: Mutex::default(), calls: Mutex::default() });
            let server = ServerBuilder::bind("127.0.0.1:0", &identity).await.unwrap();
            let (address, stop) = (server.local_addr(), CancellationToken::new());
            let service = Arc::clone(&inner);
            let service = tower::service_fn(move |request: http::Request<_>| {
                let service = Arc::clone(&service);
                async move { Ok::<_, Infallible>(service.serve(request.map(Body::new)).await) }
            });
            let routes = Routes::from(Routes::default().into_axum_router().fallback_service(service));
            tokio::spawn(server.serve(routes, stop.clone()));
            Self { address, inner, stop }
        })
    }

    /// Stops it, as its drop does.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// From now on `method` answers so.
    pub fn answer<R: Message + Clone + 'static>(&self, method: &str, answer: Result<R, Status>) {
        self.react(method, move |()| answer.clone());
    }

    /// From now on `method` answers as `line` says.
    pub fn react<T: Message + Default, R: Message + 'static>(
        &self,
        method: &str,
        line: impl Fn(T) -> Result<R, Status> + Send + Sync + 'static,
    ) {
        self.react_later(method, move |request| future::ready(line(request)));
    }

    /// Like [`Script::react`], for a `line` that waits.
    pub fn react_later<T: Message + Default, R: Message, F>(
        &self,
        method: &str,
        line: impl Fn(T) -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = Result<R, Status>> + Send + 'static,
    {
        self.line(method, Kept::Yes, move |bytes| {
            let answer = line(decode(&bytes));
            async move {
                let answer = answer.await?.encode_to_vec();
                Ok(stream::once(future::ready(Ok(answer))).boxed())
            }
        });
    }

    /// From now on `method` answers with the messages of a stream. [`Script::take`]
    /// leaves its calls out: processes follow by themselves.
    pub fn stream<T: Message + Default, R: Message + 'static>(
        &self,
        method: &str,
        line: impl Fn(T) -> Result<BoxStream<'static, Result<R, Status>>, Status> + Send + Sync + 'static,
    ) {
        let encode = |message: Result<R, Status>| message.map(|message| message.encode_to_vec());
        self.line(method, Kept::No, move |bytes| {
            future::ready(line(decode(&bytes)).map(|messages| messages.map(encode).boxed()))
        });
    }

    fn line<F: Future<Output = Result<Messages, Status>> + Send + 'static>(
        &self,
        method: &str,
        kept: Kept,
        line: impl Fn(Vec<u8>) -> F + Send + Sync + 'static,
    ) {
        let line: Line = Arc::new(move |bytes| Box::pin(line(bytes)));
        self.inner.lines.lock().unwrap().insert(method.to_owned(), (line, kept));
    }

    /// The calls since the last time.
    pub fn take(&self) -> Vec<Call> {
        std::mem::take(&mut *self.inner.calls.lock().unwrap())
    }

    /// The one call since the last time.
    ///
    /// # Panics
    /// When there were others, or none.
    pub fn only<T: Message + Default>(&self, method: &str) -> T {
        let mut calls = self.take();
        let methods: Vec<_> = calls.iter().map(|call| call.method.as_str()).collect();
        assert_eq!(methods, [method]);
        decode(&calls.remove(0).message)
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.stop();
    }
}

fn decode<T: Message + Default>(bytes: &[u8]) -> T {
    T::decode(bytes).expect("the method has this request")
}

impl Inner {
    /// Answers a call, of one message or of a stream: on the wire they are alike.
    fn serve(self: Arc<Self>, request: http::Request<Body>) -> BoxFuture<'static, http::Response<Body>> {
        Box::pin(async move {
            let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            Grpc::new(Raw).server_streaming(Method(method, self), request).await
        })
    }
}

struct Method(String, Arc<Inner>);

impl ServerStreamingService<Vec<u8>> for Method {
    type Response = Vec<u8>;
    type ResponseStream = Messages;
    type Future = BoxFuture<'static, Result<Response<Messages>, Status>>;

    fn call(&mut self, request: Request<Vec<u8>>) -> Self::Future {
        let Self(method, inner) = self;
        if let Err(status) = rpc::authorize(&request, inner.callers) {
            return Box::pin(future::ready(Err(status)));
        }
        let line = inner.lines.lock().unwrap().get(method.as_str()).cloned();
        let request_id = rpc::request_id(&request);
        let message = request.into_inner();
        let kept = line.as_ref().is_none_or(|(_, kept)| *kept == Kept::Yes);
        if kept {
            let call = Call { method: method.clone(), message: message.clone(), request_id };
            inner.calls.lock().unwrap().push(call);
        }
        let Some((line, _)) = line else {
            let status = Status::unimplemented(format!("{method} is not in the script"));
            return Box::pin(future::ready(Err(status)));
        };
        Box::pin(async move { line(message).await.map(Response::new) })
    }
}

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
