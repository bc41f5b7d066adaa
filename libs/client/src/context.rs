//! Where the fleet is and how to speak to it: `client.toml`, written by
//! `torpor up` into its data directory (mode 0600: it names the admin key and
//! holds the S3 secret), read by every client on the machine.
//!
//! Each address can be overridden by environment, so that a client also works
//! against a fleet elsewhere: `TORPOR_SCHEDULER`, `TORPOR_IMAGE_BUILDER`,
//! `TORPOR_EDGE`, `TORPOR_API`, `TORPOR_CA`, `TORPOR_CERT`, `TORPOR_KEY`.
//! The first three take the addresses of several replicas, separated by commas.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::host::v1::ListHostsRequest;
use api::host::v1::host_service_client::HostServiceClient;
use api::image::v1::ListBaseImagesRequest;
use api::image::v1::image_service_client::ImageServiceClient;
use api::microvm::v1::microvm_service_client::MicrovmServiceClient;
use futures::future::BoxFuture;
use rpc::{CallBounds, IdentityError, Replicas, Role, TlsIdentity};
use serde::{Deserialize, Serialize};
use tonic::Status;
use tonic::transport::Channel;

use crate::Call;

/// Where a fleet's data is unless told otherwise.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/torpor";
/// Bucket for artifacts that clients upload.
pub const ARTIFACT_BUCKET: &str = "torpor-artifacts";

/// Longest wait for one replica's answer while the one that leads is looked for.
const FIND_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait for a call: one that moves a microVM may run two hooks of a minute.
const CALL_TIMEOUT: Duration = Duration::from_secs(300);

/// A fleet as its clients see it.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// gRPC addresses of the schedulers, "address:port", separated by commas.
    pub scheduler: String,
    /// gRPC addresses of the image-builders, likewise.
    pub image_builder: String,
    /// HTTPS addresses of the edge-proxies, likewise; [`crate::EndpointClient`] takes them as they are.
    pub edge: String,
    /// URL of the AWS-compatible API at the first edge-proxy; empty when the fleet serves none.
    #[serde(default)]
    pub api: String,
    /// Domain under which endpoints live.
    pub endpoint_domain: String,
    /// The fleet's CA certificate, PEM.
    pub ca: PathBuf,
    /// The admin certificate, PEM.
    pub cert: PathBuf,
    pub key: PathBuf,
    /// The S3 endpoint for artifacts. Its key pair is the fleet's root access
    /// key, which signs calls of the AWS-compatible API as well.
    pub s3: S3Access,
}

#[derive(Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct S3Access {
    /// URL of the endpoint.
    pub endpoint: String,
    /// Region used in signatures.
    pub region: String,
    pub access_key_id: String,
    pub secret_access_key: String,
}

impl std::fmt::Debug for S3Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Access").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    #[error("no fleet in {data_dir}")]
    NoFleet { data_dir: PathBuf },
    #[error("cannot use {path}")]
    File { path: PathBuf, source: std::io::Error },
    /// The file is not what `torpor up` writes.
    #[error("{path} is damaged: {message}")]
    Damaged { path: PathBuf, message: String },
    #[error("cannot use the admin certificate")]
    Identity(#[from] IdentityError),
    #[error("{}", .0.message())]
    Address(Status),
}

impl Context {
    /// The context file of a data directory.
    #[must_use]
    pub fn file(data_dir: &Path) -> PathBuf {
        data_dir.join("client.toml")
    }

    /// Reads the context of the fleet in `data_dir`, environment applied.
    pub fn load(data_dir: &Path) -> Result<Self, ContextError> {
        let path = Self::file(data_dir);
        let text = std::fs::read_to_string(&path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => ContextError::NoFleet { data_dir: data_dir.to_owned() },
            _ => ContextError::File { path: path.clone(), source },
        })?;
        let mut context: Self =
            toml::from_str(&text).map_err(|e| ContextError::Damaged { path, message: e.to_string() })?;
        context.apply_environment(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
        Ok(context)
    }

    /// The file's text, for `torpor up` to write (mode 0600).
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("strings and paths of text serialize")
    }

    fn apply_environment(&mut self, variable: impl Fn(&str) -> Option<String>) {
        let texts = [
            ("TORPOR_SCHEDULER", &mut self.scheduler),
            ("TORPOR_IMAGE_BUILDER", &mut self.image_builder),
            ("TORPOR_EDGE", &mut self.edge),
            ("TORPOR_API", &mut self.api),
        ];
        for (name, field) in texts {
            if let Some(value) = variable(name) {
                *field = value;
            }
        }
        let paths =
            [("TORPOR_CA", &mut self.ca), ("TORPOR_CERT", &mut self.cert), ("TORPOR_KEY", &mut self.key)];
        for (name, field) in paths {
            if let Some(value) = variable(name) {
                *field = value.into();
            }
        }
    }

    /// The admin identity.
    pub fn identity(&self) -> Result<Arc<TlsIdentity>, ContextError> {
        Ok(TlsIdentity::load(&self.ca, &self.cert, &self.key)?)
    }

    /// The scheduler's or image-builder's replicas, for [`Call`]s.
    ///
    /// # Errors
    /// When the identity or the address cannot be used; they connect later.
    pub fn replicas(&self, role: Role) -> Result<Replicas, ContextError> {
        let addresses: Vec<String> = self.addresses(role).map(str::to_owned).collect();
        Replicas::new(&self.identity()?, &addresses, role).map_err(ContextError::Address)
    }

    /// The same fleet with one scheduler, the one that leads, and one image-builder, one that answers: for streams, which
    /// go to one replica. A fleet that has one of each is not asked.
    ///
    /// # Errors
    /// What the last replica said when none leads or answers.
    pub fn settled(&self) -> BoxFuture<'_, Result<Self, Status>> {
        Box::pin(async move {
            let mut settled = self.clone();
            for (role, settled) in
                [(Role::Scheduler, &mut settled.scheduler), (Role::ImageBuilder, &mut settled.image_builder)]
            {
                if self.addresses(role).count() > 1 {
                    *settled = self.find(role).await?;
                }
            }
            Ok(settled)
        })
    }

    /// Address of the scheduler that leads.
    ///
    /// # Errors
    /// What the last replica said when none leads.
    pub fn leader(&self) -> BoxFuture<'_, Result<String, Status>> {
        Box::pin(self.find(Role::Scheduler))
    }

    /// Address of the replica that answers for its service: its answer tells by itself whether it is the one.
    async fn find(&self, role: Role) -> Result<String, Status> {
        let identity = self.identity().map_err(|error| Status::failed_precondition(error.to_string()))?;
        let mut last = Status::unavailable(format!("no {role} is known"));
        for address in self.addresses(role) {
            let channel = rpc::channel(&identity, address, role)?;
            let asking = async {
                match role {
                    Role::ImageBuilder => {
                        let message = ListBaseImagesRequest { page_size: 1, ..Default::default() };
                        ImageServiceClient::new(channel).list_base_images(message).await.map(drop)
                    }
                    _ => {
                        let message = ListHostsRequest { page_size: 1, ..Default::default() };
                        HostServiceClient::new(channel).list_hosts(message).await.map(drop)
                    }
                }
            };
            match tokio::time::timeout(FIND_TIMEOUT, asking).await {
                Ok(Ok(())) => return Ok(address.to_owned()),
                Ok(Err(status)) => match api::errors::leader_of(&status) {
                    Some(leader) => return Ok(leader),
                    None => last = status,
                },
                Err(_) => last = Status::deadline_exceeded(format!("{address} did not answer in time")),
            }
        }
        Err(last)
    }

    fn channel(&self, role: Role) -> Result<Channel, ContextError> {
        let first = self.addresses(role).next().unwrap_or_default();
        rpc::channel(&self.identity()?, first, role).map_err(ContextError::Address)
    }

    fn addresses(&self, role: Role) -> impl Iterator<Item = &str> {
        let addresses = match role {
            Role::ImageBuilder => &self.image_builder,
            _ => &self.scheduler,
        };
        addresses.split(',')
    }

    /// Makes a call on a connection of its own.
    ///
    /// # Errors
    /// What the service answers; FAILED_PRECONDITION as [`Context::replicas`].
    pub fn call<M: Call>(&self, message: M) -> BoxFuture<'static, Result<M::Answer, Status>> {
        let replicas = self.replicas(M::ROLE);
        Box::pin(async move {
            let replicas = replicas.map_err(|error| Status::failed_precondition(error.to_string()))?;
            message.send(&replicas, CallBounds::once(CALL_TIMEOUT)).await
        })
    }

    /// Client of the scheduler's microVM service, for its streams; of several schedulers the first, so see
    /// [`Context::settled`].
    pub fn microvms(&self) -> Result<MicrovmServiceClient<Channel>, ContextError> {
        Ok(MicrovmServiceClient::new(self.channel(Role::Scheduler)?))
    }

    /// Client of image-builder, for its streams; of several the first.
    pub fn images(&self) -> Result<ImageServiceClient<Channel>, ContextError> {
        Ok(ImageServiceClient::new(self.channel(Role::ImageBuilder)?))
    }

    /// How to connect to the fleet's S3.
    #[must_use]
    pub fn object_store(&self) -> object_store::Config {
        object_store::Config {
            endpoint: Some(self.s3.endpoint.clone()),
            region: self.s3.region.clone(),
            access_key_id: Some(self.s3.access_key_id.clone()),
            secret_access_key: Some(self.s3.secret_access_key.clone()),
            path_style: true,
            ..object_store::Config::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Context {
        Context {
            scheduler: "127.0.0.1:1".to_owned(),
            image_builder: "127.0.0.1:2".to_owned(),
            edge: "127.0.0.1:3".to_owned(),
            api: "https://localhost:5".to_owned(),
            endpoint_domain: "microvms.localhost".to_owned(),
            ca: "/ca".into(),
            cert: "/cert".into(),
            key: "/key".into(),
            s3: S3Access {
                endpoint: "http://127.0.0.1:4".to_owned(),
                region: "us-east-1".to_owned(),
                access_key_id: "id".to_owned(),
                secret_access_key: "hunter2".to_owned(),
            },
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(Context::load(directory.path()), Err(ContextError::NoFleet { .. })));
        std::fs::write(Context::file(directory.path()), example().to_toml()).unwrap();
        assert_eq!(Context::load(directory.path()).unwrap(), example());
        let older: String = example()
            .to_toml()
            .lines()
            .filter(|line| !line.starts_with("api ="))
            .map(|line| format!("{line}\n"))
            .collect();
        std::fs::write(Context::file(directory.path()), older).unwrap();
        assert_eq!(Context::load(directory.path()).unwrap().api, "");
        std::fs::write(Context::file(directory.path()), "scheduler = 1").unwrap();
        assert!(matches!(Context::load(directory.path()), Err(ContextError::Damaged { .. })));
    }

    #[test]
    fn replicas_are_separated_by_commas() {
        let context = Context { scheduler: "127.0.0.1:1,127.0.0.1:6".to_owned(), ..example() };
        assert_eq!(context.addresses(Role::Scheduler).collect::<Vec<_>>(), ["127.0.0.1:1", "127.0.0.1:6"]);
        assert_eq!(context.addresses(Role::ImageBuilder).collect::<Vec<_>>(), ["127.0.0.1:2"]);
    }

    #[test]
    fn environment_overrides_addresses_and_secrets_stay_hidden() {
        let mut context = example();
        context.apply_environment(|name| (name == "TORPOR_EDGE").then(|| "10.0.0.1:443".to_owned()));
        assert_eq!((context.edge.as_str(), context.scheduler.as_str()), ("10.0.0.1:443", "127.0.0.1:1"));
        assert!(!format!("{context:?}").contains("hunter2"));
    }
}
