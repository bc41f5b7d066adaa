//! Real TLS on loopback: roles, request ids, health, panics.

#![allow(clippy::unwrap_used)] // a test that cannot go on panics

use std::path::Path;
use std::sync::Arc;

use api::host::v1::host_service_client::HostServiceClient;
use api::host::v1::host_service_server::{HostService, HostServiceServer};
use api::host::v1::*;
use rpc::{Role, ServerBuilder, TlsIdentity};
use testkit::certificates;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};

#[path = "calls/replicas.rs"]
mod replicas;

type Answer = Result<HeartbeatResponse, Status>;

struct Hosts {
    heartbeat: Box<dyn Fn() -> Answer + Send + Sync>,
}

#[tonic::async_trait]
impl HostService for Hosts {
    async fn register_host(
        &self,
        _: Request<RegisterHostRequest>,
    ) -> Result<Response<RegisterHostResponse>, Status> {
        panic!("a bug")
    }
    async fn heartbeat(&self, _: Request<HeartbeatRequest>) -> Result<Response<HeartbeatResponse>, Status> {
        (self.heartbeat)().map(Response::new)
    }
    async fn drain_host(&self, _: Request<DrainHostRequest>) -> Result<Response<DrainHostResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn undrain_host(
        &self,
        _: Request<UndrainHostRequest>,
    ) -> Result<Response<UndrainHostResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_hosts(
        &self,
        request: Request<ListHostsRequest>,
    ) -> Result<Response<ListHostsResponse>, Status> {
        rpc::authorize(&request, &[Role::Admin])?;
        Ok(Response::new(ListHostsResponse { hosts: Vec::new(), next_page_token: rpc::request_id(&request) }))
    }
    async fn place_bake(&self, _: Request<PlaceBakeRequest>) -> Result<Response<PlaceBakeResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn release_bake(
        &self,
        _: Request<ReleaseBakeRequest>,
    ) -> Result<Response<ReleaseBakeResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

struct World {
    directory: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        certificates::write(directory.path(), &[]);
        Self { directory }
    }

    fn identity(&self, role: Role) -> Arc<TlsIdentity> {
        certificates::identity(self.directory.path(), role)
    }

    async fn serve(&self, role: Role) -> String {
        self.serve_answering(role, || Err(Status::unimplemented(""))).await
    }

    async fn serve_answering(
        &self,
        role: Role,
        heartbeat: impl Fn() -> Answer + Send + Sync + 'static,
    ) -> String {
        let server = ServerBuilder::bind("127.0.0.1:0", &self.identity(role)).await.unwrap();
        let address = server.local_addr().to_string();
        let routes = Routes::new(HostServiceServer::new(Hosts { heartbeat: Box::new(heartbeat) }));
        tokio::spawn(server.serve(routes, CancellationToken::new()));
        address
    }

    fn client(
        &self,
        caller: Role,
        address: &str,
        server: Role,
    ) -> HostServiceClient<tonic::transport::Channel> {
        HostServiceClient::new(rpc::channel(&self.identity(caller), address, server).unwrap())
    }
}

#[tokio::test]
async fn a_role_decides_who_may_call() {
    let world = World::new();
    let address = world.serve(Role::Scheduler).await;
    for caller in Role::ALL {
        let mut client = world.client(caller, &address, Role::Scheduler);
        let answer = client.list_hosts(ListHostsRequest::default()).await;
        match caller {
            Role::Admin => assert!(answer.is_ok()),
            _ => {
                let status = answer.unwrap_err();
                assert_eq!(status.code(), Code::PermissionDenied);
                assert_eq!(api::errors::reason_of(&status).as_deref(), Some("PERMISSION_DENIED"));
            }
        }
    }
}

#[tokio::test]
async fn a_server_of_another_role_or_another_fleet_is_refused() {
    let (world, other) = (World::new(), World::new());
    let address = world.serve(Role::Scheduler).await;
    let mut wrong_role = world.client(Role::Admin, &address, Role::ImageBuilder);
    assert_eq!(
        wrong_role.list_hosts(ListHostsRequest::default()).await.unwrap_err().code(),
        Code::Unavailable
    );
    let mut wrong_fleet = other.client(Role::Admin, &address, Role::Scheduler);
    assert_eq!(
        wrong_fleet.list_hosts(ListHostsRequest::default()).await.unwrap_err().code(),
        Code::Unavailable
    );
}

#[tokio::test]
async fn request_ids_are_kept_when_sane_and_echoed_always() {
    let world = World::new();
    let address = world.serve(Role::Scheduler).await;
    let mut client = world.client(Role::Admin, &address, Role::Scheduler);
    for (given, kept) in [("abc-1", true), ("", false), (&*"x".repeat(129), false)] {
        let mut request = Request::new(ListHostsRequest::default());
        request.metadata_mut().insert(rpc::REQUEST_ID, given.parse().unwrap());
        let answer = client.list_hosts(request).await.unwrap();
        let echoed = answer.metadata().get(rpc::REQUEST_ID).unwrap().to_str().unwrap().to_owned();
        assert_eq!(echoed == given, kept, "{given}");
        assert_eq!(answer.into_inner().next_page_token, echoed);
    }
}

#[tokio::test]
async fn a_panic_ends_one_call_and_not_the_server() {
    let world = World::new();
    let address = world.serve(Role::Scheduler).await;
    let mut client = world.client(Role::Admin, &address, Role::Scheduler);
    let status = client.register_host(RegisterHostRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert!(client.list_hosts(ListHostsRequest::default()).await.is_ok());
}

#[test]
fn a_broken_identity_names_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("nothing.pem");
    let error = TlsIdentity::load(&missing, &missing, &missing).unwrap_err().to_string();
    assert!(error.contains("nothing.pem"), "{error}");
    std::fs::write(&missing, "not pem").unwrap();
    let error = TlsIdentity::load(Path::new(&missing), &missing, &missing).unwrap_err().to_string();
    assert!(error.contains("holds no usable PEM"), "{error}");
}
