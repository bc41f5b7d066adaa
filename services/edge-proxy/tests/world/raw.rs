//! Both ends as bytes: apps and clients that do what no HTTP library would.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::WAIT;

/// An app whose every connection is given to `serve`. It lives as long as the test's runtime.
pub async fn app<F, S>(serve: F) -> SocketAddr
where
    F: Fn(TcpStream) -> S + Send + Sync + 'static,
    S: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// A message's head, or less when the other end closes in it or says nothing more.
pub async fn head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    let read = async {
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => break,
            }
        }
    };
    let _ = tokio::time::timeout(WAIT, read).await;
    String::from_utf8_lossy(&head).into_owned()
}

/// Everything until the other end closes, however it does, or says nothing more.
pub async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(WAIT, stream.read_to_end(&mut rest)).await;
    rest
}
