//! Real TLS on loopback: roles, request ids, health, panics.

#![allow(clippy::unwrap_used)] // a test that cannot go on panics

use std::path::Path;
use std::sync::Arc;

use api::host::v1::host_service_client::HostServiceClient;
use api::host::v1::*;
use rpc::{Role, TlsIdentity};
use testkit::{Script, certificates};
use tonic::transport::Channel;
use tonic::{Code, Request};

mod replicas;

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

    /// A scheduler that lists hosts for operators.
    async fn serve(&self) -> Script {
        let server = Script::start(&self.identity(Role::Scheduler), &[Role::Admin]).await;
        server.answer("ListHosts", Ok(ListHostsResponse::default()));
        server
    }

    fn client(&self, caller: Role, server: &Script, role: Role) -> HostServiceClient<Channel> {
        let address = server.address.to_string();
        HostServiceClient::new(rpc::channel(&self.identity(caller), &address, role).unwrap())
    }
}

#[tokio::test]
async fn a_role_decides_who_may_call() {
    let world = World::new();
    let server = world.serve().await;
    for caller in Role::ALL {
        let mut client = world.client(caller, &server, Role::Scheduler);
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
    let server = world.serve().await;
    let mut wrong_role = world.client(Role::Admin, &server, Role::ImageBuilder);
    assert_eq!(
        wrong_role.list_hosts(ListHostsRequest::default()).await.unwrap_err().code(),
        Code::Unavailable
    );
    let mut wrong_fleet = other.client(Role::Admin, &server, Role::Scheduler);
    assert_eq!(
        wrong_fleet.list_hosts(ListHostsRequest::default()).await.unwrap_err().code(),
        Code::Unavailable
    );
}

#[tokio::test]
async fn request_ids_are_kept_when_sane_and_echoed_always() {
    let world = World::new();
    let server = world.serve().await;
    let mut client = world.client(Role::Admin, &server, Role::Scheduler);
    for (given, kept) in [("abc-1", true), ("", false), (&*"x".repeat(129), false)] {
        let mut request = Request::new(ListHostsRequest::default());
        request.metadata_mut().insert(rpc::REQUEST_ID, given.parse().unwrap());
        let answer = client.list_hosts(request).await.unwrap();
        let echoed = answer.metadata().get(rpc::REQUEST_ID).unwrap().to_str().unwrap().to_owned();
        assert_eq!(echoed == given, kept, "{given}");
        assert_eq!(server.take()[0].request_id, echoed);
    }
}

#[tokio::test]
async fn a_panic_ends_one_call_and_not_the_server() {
    let world = World::new();
    let server = world.serve().await;
    server.react("RegisterHost", |_: RegisterHostRequest| -> Result<RegisterHostResponse, _> {
        panic!("a bug")
    });
    let mut client = world.client(Role::Admin, &server, Role::Scheduler);
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
