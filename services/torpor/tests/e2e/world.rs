//! The running fleet, and what every test does with it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use api::common::v1::{Hooks, IdlePolicy, Resources};
use api::image::v1::*;
use api::microvm::v1::*;
use bytes::Bytes;
use client::{AUTH_HEADER, Context, EndpointClient, HttpVersion};
use http_body_util::{BodyExt as _, Full};
use serde_json::Value;
use tonic::Status;

use crate::app;

pub const IMAGE: &str = "e2e-app";
const BUILD_TIMEOUT: Duration = Duration::from_secs(240);
const STATE_TIMEOUT: Duration = Duration::from_secs(60);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

pub struct World {
    pub context: Context,
    pub data_dir: PathBuf,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

pub struct Built {
    pub build: ImageBuild,
    pub log: String,
}

impl World {
    pub fn open() -> Self {
        let data_dir = std::env::var("TORPOR_E2E_DATA_DIR")
            .expect("these tests need a running fleet: run deploy/test, or set TORPOR_E2E_DATA_DIR");
        let data_dir = PathBuf::from(data_dir);
        let context = Context::load(&data_dir).expect("the fleet's client.toml");
        Self { context, data_dir }
    }

    pub async fn upload(&self, name: &str, bytes: Vec<u8>) -> String {
        let store = object_store::Store::connect(&self.context.object_store()).expect("S3");
        let key = format!("e2e/{name}.zip");
        store.put(client::ARTIFACT_BUCKET, &key, bytes.into()).await.expect("upload");
        format!("s3://{}/{key}", client::ARTIFACT_BUCKET)
    }

    pub fn configuration(&self, uri: &str) -> ImageConfiguration {
        ImageConfiguration {
            code_artifact: Some(CodeArtifact { uri: uri.to_owned() }),
            base_image_arn: "debian-12".to_owned(),
            build_role_arn: "arn:aws:iam::000000000000:role/build".to_owned(),
            resources: Some(Resources { minimum_memory_mib: 512 }),
            ..ImageConfiguration::default()
        }
    }

    pub async fn create(
        &self,
        name: &str,
        configuration: ImageConfiguration,
    ) -> Result<CreateImageResponse, Status> {
        let request = CreateImageRequest {
            name: name.to_owned(),
            configuration: Some(configuration),
            ..CreateImageRequest::default()
        };
        self.context.call(request).await
    }

    /// Builds an image and waits for the end of its first build.
    pub async fn build(
        &self,
        name: &str,
        zip: Vec<u8>,
        change: impl FnOnce(&mut ImageConfiguration),
    ) -> Built {
        let uri = self.upload(name, zip).await;
        let mut configuration = self.configuration(&uri);
        change(&mut configuration);
        self.create(name, configuration).await.unwrap_or_else(|e| panic!("create {name}: {e:?}"));
        self.follow(name).await
    }

    /// Follows an image's newest build to its end.
    pub async fn follow(&self, name: &str) -> Built {
        let mut images = self.context.images().unwrap();
        let request =
            ListImageBuildsRequest { image_identifier: name.to_owned(), ..ListImageBuildsRequest::default() };
        let builds = self.context.call(request).await.unwrap().builds;
        let build_id = builds.first().expect("a build").build_id.clone();
        let request = FollowBuildLogRequest { build_id: build_id.clone(), from_sequence: 0, follow: true };
        let mut stream = images.follow_build_log(request).await.unwrap().into_inner();
        let mut log = String::new();
        let following = async {
            while let Some(message) = stream.message().await.expect("the build log") {
                for line in message.lines {
                    log.push_str(&line.text);
                    log.push('\n');
                }
            }
        };
        tokio::time::timeout(BUILD_TIMEOUT, following).await.expect("the build ends in time");
        let build =
            images.get_image_build(GetImageBuildRequest { build_id }).await.unwrap().into_inner().build;
        Built { build: build.unwrap(), log }
    }

    /// The image most tests share; the first to ask builds it.
    pub async fn app_image(&self) -> &'static str {
        self.ensure_image(IMAGE, |_| ()).await;
        IMAGE
    }

    /// An image with every hook and every capability.
    pub async fn hooked_image(&self) -> &'static str {
        self.ensure_image("e2e-hooked", |configuration| {
            configuration.hooks =
                Some(hooks(&["ready", "run", "resume", "suspend", "terminate", "validate"]));
            configuration.additional_os_capabilities = vec!["ALL".to_owned()];
        })
        .await;
        "e2e-hooked"
    }

    pub async fn ensure_image(&self, name: &str, change: impl FnOnce(&mut ImageConfiguration)) {
        let request = GetImageRequest { image_identifier: name.to_owned() };
        let known = self.context.call(request).await.is_ok();
        let built = if known {
            self.follow(name).await
        } else {
            self.build(name, app::zip_with(app::DOCKERFILE), change).await
        };
        assert_eq!(
            built.build.state(),
            BuildState::Successful,
            "{}\n{}",
            built.build.state_reason,
            built.log
        );
    }

    pub async fn run_with(
        &self,
        image: &str,
        change: impl FnOnce(&mut RunMicrovmRequest),
    ) -> Result<Microvm, Status> {
        let mut request =
            RunMicrovmRequest { image_identifier: image.to_owned(), ..RunMicrovmRequest::default() };
        change(&mut request);
        Ok(self.context.call(request).await?.microvm.unwrap())
    }

    pub async fn run(&self, image: &str) -> Running<'_> {
        let microvm = self.run_with(image, |_| ()).await.unwrap();
        self.attach(microvm).await
    }

    /// A new microVM that sleeps after `idle` and wakes by request.
    pub async fn run_idle(&self, image: &str, idle: Duration, suspended: Duration) -> Running<'_> {
        let microvm = self
            .run_with(image, |request| {
                request.idle_policy = Some(IdlePolicy {
                    max_idle_duration: Some(api::duration_proto(idle)),
                    suspended_duration: Some(api::duration_proto(suspended)),
                    auto_resume_enabled: true,
                    awake_while: None,
                });
            })
            .await
            .unwrap();
        self.attach(microvm).await
    }

    pub async fn attach(&self, microvm: Microvm) -> Running<'_> {
        self.wait(&microvm.microvm_id, MicrovmState::Running).await;
        let token = self.token(&microvm.microvm_id, Duration::from_secs(1800)).await.unwrap();
        Running { fleet: self, id: microvm.microvm_id, endpoint: microvm.endpoint, token }
    }

    pub async fn get(&self, id: &str) -> Result<Microvm, Status> {
        let request = GetMicrovmRequest { microvm_id: id.to_owned(), with_idleness: false };
        Ok(self.context.call(request).await?.microvm.unwrap())
    }

    pub async fn wait(&self, id: &str, state: MicrovmState) -> Microvm {
        self.wait_within(id, state, STATE_TIMEOUT).await
    }

    pub async fn wait_within(&self, id: &str, state: MicrovmState, within: Duration) -> Microvm {
        let what = format!("{id} to be {}", state.as_str_name());
        self.until(&what, within, || async {
            let microvm = self.get(id).await.ok()?;
            let ended = microvm.state() == MicrovmState::Terminated && state != MicrovmState::Terminated;
            assert!(
                !ended,
                "{id} ended instead of becoming {}: {}",
                state.as_str_name(),
                microvm.state_reason
            );
            (microvm.state() == state).then_some(microvm)
        })
        .await
    }

    /// Asks again and again until there is an answer.
    pub async fn until<T, F: Future<Output = Option<T>>>(
        &self,
        what: &str,
        within: Duration,
        mut ask: impl FnMut() -> F,
    ) -> T {
        let deadline = Instant::now() + within;
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            assert!(Instant::now() < deadline, "waited {within:?} for {what}");
            tokio::time::sleep(POLL).await;
        }
    }

    pub async fn token(&self, id: &str, life: Duration) -> Result<String, Status> {
        self.token_for(id, life, vec![PortScope { scope: Some(port_scope::Scope::AllPorts(AllPorts {})) }])
            .await
    }

    pub async fn token_for(&self, id: &str, life: Duration, ports: Vec<PortScope>) -> Result<String, Status> {
        let request = CreateMicrovmAuthTokenRequest {
            microvm_id: id.to_owned(),
            expiration: Some(api::duration_proto(life)),
            allowed_ports: ports,
            ..Default::default()
        };
        let answer = self.context.call(request).await?;
        let found = answer.auth_token.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(AUTH_HEADER));
        Ok(found.expect("the token's header").1)
    }

    /// One request on a connection of its own.
    pub async fn request(
        &self,
        endpoint: &str,
        path: &str,
        headers: &HashMap<&str, &str>,
        version: HttpVersion,
    ) -> Result<Answer, client::EndpointError> {
        self.request_trusting(&self.context.ca, endpoint, path, headers, version).await
    }

    /// The same to whoever shows a certificate of another CA, a PEM file.
    pub async fn request_trusting(
        &self,
        ca: &Path,
        endpoint: &str,
        path: &str,
        headers: &HashMap<&str, &str>,
        version: HttpVersion,
    ) -> Result<Answer, client::EndpointError> {
        let endpoints = EndpointClient::new(ca).unwrap();
        let mut connection = endpoints.connect(&self.context.edge, endpoint, version).await?;
        let mut request = http::Request::get(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::default()).unwrap();
        let asking = async {
            let response = connection.send(request).await?;
            let (head, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
        };
        tokio::time::timeout(REQUEST_TIMEOUT, asking).await.expect("the endpoint answers in time")
    }
}

/// Hooks on port 8080, the named ones switched on.
pub fn hooks(enabled: &[&str]) -> Hooks {
    use api::common::v1::{Hook, HookMode};
    let hook = |name: &str, seconds: u64| {
        enabled.contains(&name).then(|| Hook {
            mode: HookMode::Enabled.into(),
            timeout: Some(api::duration_proto(Duration::from_secs(seconds))),
        })
    };
    Hooks {
        port: 8080,
        ready: hook("ready", 60),
        validate: hook("validate", 60),
        run: hook("run", 10),
        resume: hook("resume", 10),
        suspend: hook("suspend", 10),
        terminate: hook("terminate", 10),
    }
}

/// A microVM that a test works with; ended with the test.
pub struct Running<'a> {
    pub fleet: &'a World,
    pub id: String,
    pub endpoint: String,
    pub token: String,
}

impl Running<'_> {
    pub async fn try_get(&self, path: &str) -> Result<Answer, client::EndpointError> {
        let headers = HashMap::from([(AUTH_HEADER, self.token.as_str())]);
        self.fleet.request(&self.endpoint, path, &headers, HttpVersion::Http1).await
    }

    pub async fn get(&self, path: &str) -> Value {
        let answer = self.try_get(path).await.unwrap_or_else(|e| panic!("GET {path}: {e:?}"));
        assert_eq!(answer.status, 200, "GET {path}: {answer:?}");
        answer.json()
    }

    pub async fn count(&self) -> u64 {
        self.get("/count").await["count"].as_u64().unwrap()
    }

    pub async fn record(&self) -> Microvm {
        self.fleet.get(&self.id).await.unwrap()
    }

    /// What keeps it awake, as its host says; `None` while it does not run.
    pub async fn idleness(&self) -> Option<Idleness> {
        let request = GetMicrovmRequest { microvm_id: self.id.clone(), with_idleness: true };
        self.fleet.context.call(request).await.unwrap().microvm.unwrap().idleness
    }

    pub async fn suspend(&self) -> Result<Microvm, Status> {
        let request = SuspendMicrovmRequest { microvm_id: self.id.clone() };
        Ok(self.fleet.context.call(request).await?.microvm.unwrap())
    }

    pub async fn resume(&self) -> Result<Microvm, Status> {
        let request = ResumeMicrovmRequest { microvm_id: self.id.clone() };
        Ok(self.fleet.context.call(request).await?.microvm.unwrap())
    }

    pub async fn terminate(&self) -> Microvm {
        let request = TerminateMicrovmRequest { microvm_id: self.id.clone() };
        self.fleet.context.call(request).await.unwrap();
        self.fleet.wait(&self.id, MicrovmState::Terminated).await
    }

    /// The engine process on this machine, if there is one: it works in a directory of its microVM's, which its arguments
    /// do not name, because it may have been made before the microVM was.
    pub fn engine_pid(&self) -> Option<i32> {
        let entries = std::fs::read_dir("/proc").unwrap();
        entries.flatten().find_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let command = std::fs::read(entry.path().join("cmdline")).ok()?;
            let works_in = std::fs::read_link(entry.path().join("cwd")).ok()?;
            let is_engine = String::from_utf8_lossy(&command).contains("qemu-system");
            (is_engine && works_in.to_string_lossy().contains(&self.id)).then_some(pid)
        })
    }
}
