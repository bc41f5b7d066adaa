//! Own domains: who may bind which name, and when it goes again.

use std::time::{Duration, UNIX_EPOCH};

use api::domain::v1::create_domain_request::Target;
use api::domain::v1::domain::Target as Bound;
use api::domain::v1::*;
use api::errors::reason;
use api::image::v1::{Image, ImageState, VersionStatus};
use prost::Message as _;
use records::Expect;
use rpc::Role;
use testkit::certificates::chain;
use tonic::Status;

use crate::world::*;

const NAME: &str = "app.example.com";
const WILDCARD: &str = "*.apps.example.com";
const YEARS: std::ops::Range<i32> = 2020..2100;

/// A request with a good certificate for the name.
fn asked(name: &str, target: Target) -> CreateDomainRequest {
    let (certificate_chain, private_key) = chain(&[name], YEARS);
    CreateDomainRequest { name: name.into(), target: Some(target), certificate_chain, private_key }
}

fn of(microvm_id: &str) -> Target {
    Target::MicrovmId(microvm_id.into())
}

fn of_image(name: &str) -> Target {
    Target::ImageIdentifier(name.into())
}

async fn create(domains: &Domains, request: CreateDomainRequest) -> Result<Domain, Status> {
    Ok(domains.clone().create_domain(request).await?.into_inner().domain.unwrap())
}

async fn get_domain(domains: &Domains, name: &str) -> Result<Domain, Status> {
    let request = GetDomainRequest { name: name.into() };
    Ok(domains.clone().get_domain(request).await?.into_inner().domain.unwrap())
}

async fn names(domains: &Domains) -> Vec<String> {
    let (mut found, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListDomainsRequest { page_size: 1, page_token };
        let page = domains.clone().list_domains(request).await.unwrap().into_inner();
        found.extend(page.domains.into_iter().map(|domain| domain.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return found;
        }
    }
}

async fn delete(domains: &Domains, name: &str) -> Result<(), Status> {
    domains.clone().delete_domain(DeleteDomainRequest { name: name.into() }).await.map(drop)
}

async fn stored(world: &World, name: &str) -> StoredDomain {
    let found = world.store.get(&format!("domains/{name}")).await.unwrap().unwrap();
    StoredDomain::decode(found.value.as_slice()).unwrap()
}

/// Waits until no domain is bound.
async fn all_gone(world: &World) {
    eventually("the domains to go", || async { world.listed("domains/").await.is_empty().then_some(()) })
        .await;
}

#[tokio::test]
async fn a_name_is_bound_shown_changed_and_removed() {
    let filter = "telemetry.log_filter='scheduler=trace,records=trace,debug'";
    let (world, scheduler, _host, client) = World::with_process(&[filter]).await;
    let domains = world.domains(&scheduler, Role::Admin);
    let microvm = running(&client).await;
    let request = asked(NAME, of(&microvm.microvm_id));
    let domain = create(&domains, request.clone()).await.unwrap();
    assert_eq!(domain.target, Some(Bound::MicrovmId(microvm.microvm_id.clone())));
    assert_eq!(
        (domain.url.as_str(), domain.account_id.as_str()),
        ("https://app.example.com:8443/", "000000000000")
    );
    assert_eq!(domain.certificate_sha256.len(), 64);
    let expires = api::system_time(domain.certificate_expire_time.as_ref().unwrap()).unwrap();
    assert!(expires > UNIX_EPOCH + Duration::from_secs(4_000_000_000));
    assert_eq!(get_domain(&domains, NAME).await.unwrap(), domain);
    // What the edges watch.
    let first = stored(&world, NAME).await;
    assert_eq!(
        (microvm.endpoint.split('.').next(), first.certificates.len()),
        (Some(&*first.endpoint_label), 2)
    );
    assert!(!first.private_key.is_empty());

    let other = running(&client).await;
    let taken = create(&domains, asked(NAME, of(&other.microvm_id))).await;
    refused(taken, reason::ALREADY_EXISTS, "'app.example.com' is bound already");
    let (certificate_chain, private_key) = chain(&[NAME], YEARS);
    let update =
        UpdateDomainRequest { name: NAME.into(), certificate_chain, private_key: private_key.clone() };
    let changed = domains.clone().update_domain(update.clone()).await.unwrap().into_inner().domain.unwrap();
    assert_ne!(changed.certificate_sha256, domain.certificate_sha256);
    assert_eq!((&changed.target, changed.create_time), (&domain.target, domain.create_time));
    let second = stored(&world, NAME).await;
    assert_eq!(second.endpoint_label, first.endpoint_label);
    assert_ne!(second.private_key, first.private_key);

    delete(&domains, NAME).await.unwrap();
    assert!(world.listed("domains/").await.is_empty());
    for gone in [
        delete(&domains, NAME).await,
        get_domain(&domains, NAME).await.map(drop),
        domains.clone().update_domain(update).await.map(drop),
    ] {
        refused(gone, reason::NOT_FOUND, "Own domain not found: app.example.com");
    }
    create(&domains, asked(NAME, of(&other.microvm_id))).await.unwrap();
    let log = world.log(&scheduler);
    assert!(log.contains("own domain removed") && log.contains(NAME));
    for key in [&request.private_key, &private_key] {
        let line = key.lines().nth(1).unwrap();
        assert!(!log.contains(line), "a private key is in the log");
    }
}

#[tokio::test]
async fn rules_that_share_a_world() {
    let (world, scheduler, _host, client) = World::with_roomy_host().await;
    let domains = world.domains(&scheduler, Role::Admin);
    let microvm = running(&client).await;
    what_is_wrong_names_the_field(&domains, &microvm.microvm_id).await;
    only_operators_may_call(&world, &scheduler, &microvm.microvm_id).await;
    domains_go_with_their_microvm(&world, &scheduler, &client).await;
    domains_go_with_their_image(&world, &scheduler).await;
    another_accounts_domain_is_unknown_and_taken(&world, &scheduler).await;
}

async fn what_is_wrong_names_the_field(domains: &Domains, id: &str) {
    let good = || asked(NAME, of(id));
    let nobody = "microvm-0190a5e2-7c3b-3f00-8000-000000000001";
    for (request, reason, text) in [
        (
            CreateDomainRequest { name: "App.example".into(), ..good() },
            reason::INVALID_ARGUMENT,
            "name: must be",
        ),
        (
            asked("a.microvms.localhost", of(id)),
            reason::INVALID_ARGUMENT,
            "the fleet's own domain microvms.localhost",
        ),
        (asked(WILDCARD, of(id)), reason::INVALID_ARGUMENT, "name: must be one name for a microVM"),
        (asked(NAME, of_image("app")), reason::INVALID_ARGUMENT, "name: must be a wildcard for an image"),
        (CreateDomainRequest { target: None, ..good() }, reason::INVALID_ARGUMENT, "target: must be"),
        (asked(NAME, of("x")), reason::INVALID_ARGUMENT, "microvmIdentifier: "),
        (
            CreateDomainRequest { name: "b.example.com".into(), ..good() },
            reason::INVALID_ARGUMENT,
            "certificateChain: is not for b.example.com but for app.example.com",
        ),
        (
            CreateDomainRequest { private_key: chain(&[NAME], YEARS).1, ..good() },
            reason::INVALID_ARGUMENT,
            "privateKey: is not the key of the first certificate",
        ),
        (asked(NAME, of(nobody)), reason::NOT_FOUND, nobody),
        (asked(WILDCARD, of_image("other")), reason::NOT_FOUND, "MicroVM image not found: other"),
    ] {
        refused(create(domains, request).await, reason, text);
    }
    let request = ListDomainsRequest { page_size: 0, page_token: "x".into() };
    refused(domains.clone().list_domains(request).await, reason::INVALID_ARGUMENT, "pageToken");
    refused(delete(domains, "../keys").await, reason::INVALID_ARGUMENT, "name: must be");
    assert!(names(domains).await.is_empty());
}

async fn only_operators_may_call(world: &World, scheduler: &Scheduler, id: &str) {
    for role in [Role::EdgeProxy, Role::ImageBuilder, Role::HostAgent, Role::Scheduler] {
        let domains = world.domains(scheduler, role);
        let denied = reason::PERMISSION_DENIED;
        refused(create(&domains, asked(NAME, of(id))).await, denied, role.name());
        refused(get_domain(&domains, NAME).await, denied, role.name());
        refused(delete(&domains, NAME).await, denied, role.name());
        refused(domains.clone().list_domains(ListDomainsRequest::default()).await, denied, role.name());
        refused(domains.clone().update_domain(UpdateDomainRequest::default()).await, denied, role.name());
    }
}

async fn domains_go_with_their_microvm(world: &World, scheduler: &Scheduler, client: &Client) {
    let domains = world.domains(scheduler, Role::Admin);
    let microvm = running(client).await;
    for name in [NAME, "second.example.com"] {
        create(&domains, asked(name, of(&microvm.microvm_id))).await.unwrap();
    }
    assert_eq!(names(&domains).await, [NAME, "second.example.com"]);
    terminate(client, &microvm.microvm_id).await.unwrap();
    all_gone(world).await;
    let late = create(&domains, asked(NAME, of(&microvm.microvm_id))).await;
    refused(late, reason::TERMINATED, &microvm.microvm_id);
}

async fn domains_go_with_their_image(world: &World, scheduler: &Scheduler) {
    let domains = world.domains(scheduler, Role::Admin);
    let image = |id: &str, state: ImageState| {
        Image { name: "web".into(), id: id.into(), state: state.into(), ..Default::default() }.encode_to_vec()
    };
    let put = async |value| world.store.put_if("images/web", value, Expect::Any, None).await.unwrap();
    // By deletion, and by another image of the name, as after a leader's absence.
    for gone in [None, Some(image("2", ImageState::Created))] {
        put(image("1", ImageState::Created)).await;
        let bound = eventually("the image to be known", || async {
            create(&domains, asked(WILDCARD, of_image("web"))).await.ok()
        })
        .await;
        assert_eq!((bound.target, bound.url.as_str()), (Some(Bound::ImageName("web".into())), ""));
        // A deletion may fail yet.
        put(image("1", ImageState::Deleting)).await;
        let update = async {
            let (certificate_chain, private_key) = chain(&[WILDCARD], YEARS);
            let request = UpdateDomainRequest { name: WILDCARD.into(), certificate_chain, private_key };
            domains.clone().update_domain(request).await
        };
        update.await.unwrap();
        match gone {
            None => drop(world.store.delete_if("images/web", Expect::Any, None).await.unwrap()),
            Some(value) => drop(put(value).await),
        }
        all_gone(world).await;
    }
}

async fn another_accounts_domain_is_unknown_and_taken(world: &World, scheduler: &Scheduler) {
    let domains = world.domains(scheduler, Role::Admin);
    let client = world.client(scheduler, Role::Admin);
    let microvm = running(&client).await;
    create(&domains, asked(NAME, of(&microvm.microvm_id))).await.unwrap();
    let mut theirs = stored(world, NAME).await;
    theirs.domain.as_mut().unwrap().account_id = "111111111111".into();
    let value = theirs.encode_to_vec();
    world.store.put_if(&format!("domains/{NAME}"), value, Expect::Any, None).await.unwrap();
    // Found out by the first write.
    refused(delete(&domains, NAME).await, reason::STORE_UNAVAILABLE, "changed by somebody else");
    refused(delete(&domains, NAME).await, reason::NOT_FOUND, NAME);
    assert!(names(&domains).await.is_empty());
    let taken = create(&domains, asked(NAME, of(&microvm.microvm_id))).await;
    refused(taken, reason::ALREADY_EXISTS, "is bound already");
}

#[tokio::test]
async fn domains_are_limited_and_outlive_their_leader() {
    let (world, mut scheduler, _host, client) = World::with_process(&["quotas.domains_max=3"]).await;
    world.image("web", "1.0", VersionStatus::Active, false).await;
    let domains = world.domains(&scheduler, Role::Admin);
    let microvm = running(&client).await;
    let requests = (1..=6).map(|number| asked(&format!("{number}.example.com"), of(&microvm.microvm_id)));
    let made = futures::future::join_all(requests.map(|request| create(&domains, request))).await;
    let (good, bad): (Vec<_>, Vec<_>) = made.into_iter().partition(Result::is_ok);
    assert_eq!((good.len(), bad.len()), (3, 3), "the limit holds at once");
    for answer in bad {
        refused(answer, reason::QUOTA_EXCEEDED, "The limit of 3 own domains is reached");
    }
    let kept = names(&domains).await;
    delete(&domains, &kept[0]).await.unwrap();
    eventually("the image to be known", || async {
        create(&domains, asked(WILDCARD, of_image("web"))).await.ok()
    })
    .await;

    world.depose().await;
    refused(delete(&domains, &kept[1]).await, reason::NOT_LEADER, "does not lead");
    scheduler.kill();
    // What goes while nobody leads is gone before the next leader serves.
    world.store.delete_if("images/web", Expect::Any, None).await.unwrap();
    world.store.delete_if("elections/scheduler", Expect::Any, None).await.unwrap();
    let next = world.scheduler(&[]);
    world.ready(&world.client(&next, Role::Admin)).await;
    assert_eq!(names(&world.domains(&next, Role::Admin)).await, &kept[1..]);
}
