//! One cycle through the fleet: what a user of the API sees.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use api::common::v1::{IdlePolicy, Phase};
use api::microvm::v1::microvm_service_client::MicrovmServiceClient;
use api::microvm::v1::*;
use client::{AUTH_HEADER, Context, EndpointClient, EndpointConnection, EndpointError, HttpVersion};
use http_body_util::{BodyExt as _, Full};
use tonic::Status;
use tonic::transport::Channel;

pub struct Cycle {
    pub launch: Duration,
    pub suspend: Duration,
    pub wake: Duration,
    pub difference_bytes: u64,
    pub phases: [Vec<Phase>; 3],
}

/// A microVM that sleeps when it is told to and wakes when it is called.
pub fn never_idle() -> IdlePolicy {
    let longest = Some(api::duration_proto(Duration::from_secs(8 * 3600)));
    IdlePolicy {
        max_idle_duration: longest,
        suspended_duration: longest,
        auto_resume_enabled: true,
        awake_while: None,
    }
}

#[derive(Clone)]
pub struct Target {
    microvms: MicrovmServiceClient<Channel>,
    endpoints: EndpointClient,
    edge: String,
    image: String,
    path: String,
    request_timeout: Duration,
}

impl Target {
    pub fn new(
        context: &Context,
        image: &str,
        path: &str,
        request_timeout: Duration,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            microvms: context.microvms()?,
            endpoints: EndpointClient::new(&context.ca)?,
            edge: context.edge.clone(),
            image: image.to_owned(),
            path: path.to_owned(),
            request_timeout,
        })
    }

    /// Launch, suspend, wake, terminate. The launch was due at `due`.
    pub async fn cycle(mut self, due: Instant, pause: Duration) -> anyhow::Result<Cycle> {
        let microvm = self.run().await?;
        let measured = self.measure(&microvm, due, pause).await;
        self.terminate(microvm.microvm_id).await?;
        measured
    }

    /// A launch that was due at `due`, up to the app's first answer. The microVM lives
    /// on; what became of the launch comes with its id.
    pub async fn launch(mut self, due: Instant) -> anyhow::Result<(String, anyhow::Result<Duration>)> {
        let microvm = self.run().await?;
        let launched = self.first_answer(&microvm).await.map(|_| due.elapsed());
        Ok((microvm.microvm_id, launched))
    }

    pub async fn terminate(&mut self, microvm_id: String) -> anyhow::Result<()> {
        self.microvms.terminate_microvm(TerminateMicrovmRequest { microvm_id }).await?;
        Ok(())
    }

    pub async fn run(&mut self) -> anyhow::Result<Microvm> {
        self.run_with(RunMicrovmRequest::default()).await
    }

    /// Launches the image, and else as `wanted` says.
    pub async fn run_with(&mut self, wanted: RunMicrovmRequest) -> anyhow::Result<Microvm> {
        let request = RunMicrovmRequest {
            image_identifier: self.image.clone(),
            idle_policy: Some(never_idle()),
            ..wanted
        };
        self.microvms.run_microvm(request).await?.into_inner().microvm.context("no microVM")
    }

    /// Makes a token and asks the app once; returns the token.
    async fn first_answer(&mut self, microvm: &Microvm) -> anyhow::Result<String> {
        let token = self.token(&microvm.microvm_id).await?;
        let mut connection = self.connect(&microvm.endpoint, HttpVersion::Http1).await?;
        self.request(&mut connection, &token).await.context("first request")?;
        Ok(token)
    }

    async fn measure(&mut self, microvm: &Microvm, due: Instant, pause: Duration) -> anyhow::Result<Cycle> {
        let id = &microvm.microvm_id;
        let token = self.first_answer(microvm).await?;
        let launch = due.elapsed();
        let launch_phases = self.phases(id).await?;
        tokio::time::sleep(pause).await;

        let began = Instant::now();
        let asleep = self.suspend(id).await?;
        let suspend = began.elapsed();
        let difference_bytes = asleep.snapshot.as_ref().map_or(0, |copies| copies.difference_bytes);
        let suspend_phases = self.phases(id).await?;
        tokio::time::sleep(pause).await;

        // A wake counts from the request, so the connection to the edge is there already.
        let mut connection = self.connect(&microvm.endpoint, HttpVersion::Http1).await?;
        let began = Instant::now();
        self.request(&mut connection, &token).await.context("request that wakes")?;
        let wake = began.elapsed();
        let wake_phases = self.phases(id).await?;
        Ok(Cycle {
            launch,
            suspend,
            wake,
            difference_bytes,
            phases: [launch_phases, suspend_phases, wake_phases],
        })
    }

    /// Returns when the microVM sleeps.
    pub async fn suspend(&mut self, id: &str) -> Result<Microvm, Status> {
        let request = SuspendMicrovmRequest { microvm_id: id.to_owned() };
        let answer = self.microvms.suspend_microvm(request).await?.into_inner();
        answer.microvm.ok_or_else(|| Status::internal("no microVM in the answer"))
    }

    pub async fn connect(
        &self,
        endpoint: &str,
        version: HttpVersion,
    ) -> Result<EndpointConnection, EndpointError> {
        self.endpoints.connect(&self.edge, endpoint, version).await
    }

    pub async fn token(&mut self, id: &str) -> anyhow::Result<String> {
        let request = CreateMicrovmAuthTokenRequest {
            microvm_id: id.to_owned(),
            expiration: Some(api::duration_proto(Duration::from_secs(600))),
            allowed_ports: vec![PortScope { scope: Some(port_scope::Scope::AllPorts(AllPorts {})) }],
            ..Default::default()
        };
        let answer = self.microvms.create_microvm_auth_token(request).await?.into_inner();
        answer.auth_token.into_values().next().context("an answer without a token")
    }

    /// Sends one request; returns when the first bytes of the answer are there.
    async fn request(&self, connection: &mut EndpointConnection, token: &str) -> anyhow::Result<()> {
        let request = http::Request::get(&self.path).header(AUTH_HEADER, token).body(Full::default())?;
        let response = tokio::time::timeout(self.request_timeout, connection.send(request)).await??;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "the app answered {status}: {}", String::from_utf8_lossy(&body));
        Ok(())
    }

    /// The scheduler's record of it.
    pub async fn get(&mut self, id: &str) -> anyhow::Result<Microvm> {
        let request = GetMicrovmRequest { microvm_id: id.to_owned(), with_idleness: false };
        self.microvms.get_microvm(request).await?.into_inner().microvm.context("no microVM")
    }

    async fn phases(&mut self, id: &str) -> anyhow::Result<Vec<Phase>> {
        let microvm = self.get(id).await?;
        Ok(microvm.last_transition.map(|transition| transition.phases).unwrap_or_default())
    }
}
