//! The AWS SDK for Rust and a client of tonic's, which know a fleet from the environment alone:
//!
//!     eval "$(torpor env)"
//!     rust_clients IMAGE_ARN EDGE_PORT GRPC_PORT
//!
//! The SDK launches a microVM of an image whose app answers gRPC on a port with what it was sent (`/echo/Unary` one message,
//! `/echo/Talk` a stream of them), and asks for a token. A conversation goes on while the SDK suspends the microVM: what is
//! said next wakes it. Prints what was heard, a line each.

use std::time::Duration;

use anyhow::{Context as _, Result};
use aws_sdk_lambdamicrovms::Client;
use aws_sdk_lambdamicrovms::types::{IdlePolicy, MicrovmState, PortSpecification};
use futures::StreamExt as _;
use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, ClientTlsConfig};
use tonic_prost::ProstCodec;

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |name: &str| arguments.next().with_context(|| format!("{name} is missing"));
    let (image, edge_port, grpc_port) = (next("IMAGE_ARN")?, next("EDGE_PORT")?, next("GRPC_PORT")?.parse()?);
    let microvms = Client::new(&aws_config::load_from_env().await);
    let policy = IdlePolicy::builder()
        .max_idle_duration_seconds(3600)
        .suspended_duration_seconds(3600)
        .auto_resume_enabled(true)
        .build()?;
    let launched = microvms.run_microvm().image_identifier(image).idle_policy(policy).send().await?;
    let id = launched.microvm_id().to_owned();
    let heard = tokio::time::timeout(PATIENCE, converse(&microvms, &id, &edge_port, grpc_port)).await;
    microvms.terminate_microvm().microvm_identifier(&id).send().await?;
    for words in heard.context("the conversation does not end")?? {
        println!("{words}");
    }
    Ok(())
}

/// Waits until the microVM is in a state; its endpoint.
async fn until(microvms: &Client, id: &str, wanted: &MicrovmState) -> Result<String> {
    loop {
        let microvm = microvms.get_microvm().microvm_identifier(id).send().await?;
        match microvm.state() {
            state if state == wanted => return Ok(microvm.endpoint().to_owned()),
            MicrovmState::Terminated => anyhow::bail!("the microVM has ended: {:?}", microvm.state_reason()),
            _ => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

/// One call, then a stream with a sleep in it; what the app said.
async fn converse(microvms: &Client, id: &str, edge_port: &str, grpc_port: u16) -> Result<Vec<String>> {
    let endpoint = until(microvms, id, &MicrovmState::Running).await?;
    let token = microvms.create_microvm_auth_token().microvm_identifier(id).expiration_in_minutes(5);
    let token = token.allowed_ports(PortSpecification::Port(grpc_port.into())).send().await?;
    let token: MetadataValue<_> = token.auth_token()["X-aws-proxy-auth"].parse()?;
    let channel = Channel::from_shared(format!("https://{endpoint}:{edge_port}"))?;
    // Whom to trust stands in SSL_CERT_FILE.
    let channel = channel.tls_config(ClientTlsConfig::new().with_native_roots())?.connect().await?;
    let mut grpc = Grpc::new(channel);
    let allowed = |mut metadata: tonic::metadata::MetadataMap| {
        metadata.insert("x-aws-proxy-auth", token.clone());
        metadata.insert("x-aws-proxy-port", grpc_port.into());
        metadata
    };
    let mut request = tonic::Request::new("one call".to_owned());
    *request.metadata_mut() = allowed(tonic::metadata::MetadataMap::new());
    grpc.ready().await?;
    let codec = || ProstCodec::<String, String>::default();
    let unary = grpc.unary(request, PathAndQuery::from_static("/echo/Unary"), codec()).await?.into_inner();
    let mut heard = vec![unary];

    let (say, said) = futures::channel::mpsc::unbounded::<String>();
    let mut request = tonic::Request::new(said);
    *request.metadata_mut() = allowed(tonic::metadata::MetadataMap::new());
    grpc.ready().await?;
    // Before the call: the app answers nothing before it has heard something, not even that it listens.
    say.unbounded_send("before it sleeps".into())?;
    let talk = grpc.streaming(request, PathAndQuery::from_static("/echo/Talk"), codec()).await?;
    let mut answers = talk.into_inner();
    heard.push(answers.next().await.context("the stream has ended")??);
    microvms.suspend_microvm().microvm_identifier(id).send().await?;
    until(microvms, id, &MicrovmState::Suspended).await?;
    say.unbounded_send("after it slept".into())?;
    heard.push(answers.next().await.context("the stream has ended")??);
    Ok(heard)
}
