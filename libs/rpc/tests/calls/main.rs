//! Real TLS on loopback: roles, request ids, health, panics.

#![allow(clippy::unwrap_used)] // a test that cannot go on panics

use std::path::Path;
use std::sync::Arc;

use api::host::v1::host_service_client::HostServiceClient;
use api::host::v1::*;
use rpc::{Identity, InUse, Role, TlsIdentity, WrongPeer};
use testkit::{Script, certificates};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

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
async fn a_host_is_called_by_its_id_and_speaks_for_itself_only() {
    let world = World::new();
    let host = |id: &str| certificates::host(world.directory.path(), id);
    let server = Script::start(&host("a"), &[Role::Scheduler]).await;
    server.answer("ListHosts", Ok(ListHostsResponse::default()));
    let call = async |called: Identity| {
        let address = server.address.to_string();
        let channel = rpc::channel(&world.identity(Role::Scheduler), &address, called).unwrap();
        HostServiceClient::new(channel).list_hosts(ListHostsRequest::default()).await
    };
    assert!(call(Identity::of_host("a")).await.is_ok());
    assert!(call(Role::HostAgent.into()).await.is_ok(), "whichever host it is");
    let wrong = call(Identity::of_host("b")).await.unwrap_err();
    let said = WrongPeer::behind(&wrong).unwrap();
    assert_eq!(said.code(), Code::PermissionDenied);
    assert_eq!(
        said.message(),
        "the host-agent of b was called, and the certificate is of the host-agent of a"
    );
    assert!(WrongPeer::behind(&Status::unavailable("down")).is_none());
}

/// Every file of a fleet in three steps: trust in the next CA, new leaves, no trust in the old one. Calls go on meanwhile,
/// over one channel that stays and over new ones.
#[tokio::test]
async fn certificates_and_the_ca_change_under_calls_and_none_fails() {
    let (world, next) = (World::new(), World::new());
    let server = world.serve().await;
    let admin = world.identity(Role::Admin);
    let address = server.address.to_string();
    let connect = || HostServiceClient::new(rpc::channel(&admin, &address, Role::Scheduler).unwrap());
    let call = async |client: &mut HostServiceClient<Channel>| {
        client.list_hosts(ListHostsRequest::default()).await.unwrap();
    };
    let mut standing = connect();
    call(&mut standing).await;
    let put = |name: &str, content: &[u8]| {
        let new = world.directory.path().join("new");
        std::fs::write(&new, content).unwrap();
        std::fs::rename(new, world.directory.path().join(name)).unwrap();
    };
    let of = |world: &World, name: &str| std::fs::read(world.directory.path().join(name)).unwrap();
    let (old_ca, new_ca) = (of(&world, "ca.pem"), of(&next, "ca.pem"));
    // Who has a certificate of one of the CAs and trusts both sees which the server takes.
    let trusting_both = |world: &World| {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), [&old_ca[..], &new_ca].concat()).unwrap();
        for name in ["admin.pem", "admin.key"] {
            std::fs::write(directory.path().join(name), of(world, name)).unwrap();
        }
        certificates::identity(directory.path(), Role::Admin)
    };
    let (former, probe) = (trusting_both(&world), trusting_both(&next));
    let taken = async |identity: &Arc<TlsIdentity>| {
        let channel = rpc::channel(identity, &address, Role::Scheduler).unwrap();
        HostServiceClient::new(channel).list_hosts(ListHostsRequest::default()).await.is_ok()
    };
    let going_on = async |standing: &mut HostServiceClient<Channel>| {
        call(standing).await;
        call(&mut connect()).await;
    };
    assert!(!taken(&probe).await, "the next CA is not trusted yet");
    put("ca.pem", &[&old_ca[..], &new_ca].concat());
    while !taken(&probe).await {
        going_on(&mut standing).await;
    }
    for name in ["scheduler", "admin"] {
        for end in ["key", "pem"] {
            put(&format!("{name}.{end}"), &of(&next, &format!("{name}.{end}")));
            going_on(&mut standing).await;
        }
    }
    let stranger = next.identity(Role::Admin);
    while !taken(&stranger).await {
        // It trusts the next CA only, so the server shows its new certificate now.
        going_on(&mut standing).await;
    }
    put("ca.pem", &new_ca);
    while taken(&former).await {
        going_on(&mut standing).await;
    }
    going_on(&mut standing).await;
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

#[tokio::test]
async fn metrics_say_what_is_shown_and_trusted() {
    let world = World::new();
    let identity = world.identity(Role::Admin);
    // As a service has it.
    let registry = prometheus_client::registry::Registry::with_prefix("torpor");
    let shared = std::sync::Mutex::new(registry);
    identity.register(&shared);
    let text = || {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &shared.lock().unwrap()).unwrap();
        text
    };
    let before = InUse::in_metrics(&text()).unwrap();
    assert_eq!(before, identity.in_use());
    assert_eq!((before.certificate.len(), before.authorities.len()), (64, 1), "{}", text());
    certificates::issue(world.directory.path(), "admin", &[Role::Admin.dns_name()]);
    let after = InUse::in_metrics(&text()).unwrap();
    assert_ne!(after.certificate, before.certificate, "whoever asks has the latest");
    assert_eq!(after.authorities, before.authorities);
    assert!(text().contains("\ntorpor_certificate_end_seconds "), "{}", text());
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
