//! Who may read and write what in etcd: invariant 1 of ARCHITECTURE.md as a table, which etcd enforces. `docs/SECURITY.md`
//! shows it, and a test compares the two.
//!
//! Every `torpor up` applies it before a service starts, also to a fleet that had no rights before. A step that was not
//! reached is taken by the next.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use records::{Access, Keys, Right, Store, User};
use rpc::{Identity, Role};
use settings::{EtcdSettings, TlsSettings};

use super::authority;
use super::credentials::ETCD_ROOT;
use super::plan::Plan;
use crate::error::CliError;

/// How long etcd is asked again while it does not answer in time, as on a machine where everything starts at once.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(100);

/// A service's rights: what it reads and writes, and what it only reads. A name that ends in "/" is of all keys that start
/// with it. The operator's certificate and etcd's own have none.
const SERVICES: [(Role, &[&str], &[&str]); 3] = [
    (
        Role::Scheduler,
        &[
            "access-keys/",
            "clock",
            "connectors/",
            "domains/",
            "drains/",
            "elections/",
            "invitations/",
            "keys/",
            "microvms/",
            "usage-counted",
            "usage/",
            "vouchers/",
        ],
        &["hosts/", "images/", "versions/"],
    ),
    (
        Role::ImageBuilder,
        &[
            "base-images/",
            "build-owners/",
            "build-queue/",
            "builds/",
            "image-admission",
            "image-tokens/",
            "images/",
            "version-builds/",
            "versions/",
        ],
        &[],
    ),
    (Role::EdgeProxy, &[], &["access-keys/", "domains/", "keys/"]),
];

/// Every user of etcd, with all that it may do.
pub fn users(hosts: &BTreeSet<String>) -> Vec<User> {
    let service = |(role, written, read): &(Role, &[&str], &[&str])| {
        let of =
            |access: Access, keys: &[&str]| keys.iter().map(|key| right(access, key)).collect::<Vec<_>>();
        let rights = [of(Access::ReadWrite, written), of(Access::Read, read)].concat();
        User { name: Identity::from(*role).dns_name(), rights }
    };
    SERVICES.iter().map(service).chain(hosts.iter().map(|id| host(id))).collect()
}

/// A host writes its own record, and reads nothing else.
pub fn host(id: &str) -> User {
    let own = right(Access::ReadWrite, &format!("hosts/{id}"));
    User { name: Identity::of_host(id).dns_name(), rights: vec![own] }
}

fn right(access: Access, key: &str) -> Right {
    let keys = match key.ends_with('/') {
        true => Keys::Under(key.to_owned()),
        false => Keys::One(key.to_owned()),
    };
    Right { access, keys }
}

/// Gives everybody in the fleet their rights, and returns the store of whoever may do everything.
pub async fn enforce(plan: &Plan) -> Result<Store, CliError> {
    let store = as_root(&plan.path("ca"), plan.etcd_urls(1)).await?;
    let users = users(&authority::issued_hosts(&plan.path("ca"))?);
    patiently(async || store.enforce(&users).await).await?;
    Ok(store)
}

/// Gives a host that comes later its right.
pub async fn permit_host(ca: &Path, endpoints: Vec<String>, id: &str) -> Result<(), CliError> {
    let (store, users) = (as_root(ca, endpoints).await?, [host(id)]);
    patiently(async || store.permit(&users).await).await
}

async fn patiently(give: impl AsyncFn() -> records::Result<()>) -> Result<(), CliError> {
    let started = Instant::now();
    loop {
        match give().await {
            Err(error) if error.is_unavailable() && started.elapsed() < PATIENCE => {
                tokio::time::sleep(PAUSE).await;
            }
            given => return given.map_err(not_given),
        }
    }
}

async fn as_root(ca: &Path, endpoints: Vec<String>) -> Result<Store, CliError> {
    let file = |end: &str| ca.join(format!("{}.{end}", authority::ETCD_ROOT));
    let tls = TlsSettings { ca: ca.join("ca.pem"), cert: file("pem"), key: file("key") };
    let etcd = EtcdSettings { endpoints, root: ETCD_ROOT.to_owned(), tls: Some(tls) };
    Store::connect(&etcd).await.map_err(not_given)
}

fn not_given(error: records::Error) -> CliError {
    CliError::failed(format!("cannot give rights in etcd: {:#}", anyhow::Error::new(error)))
        .next("they are given as etcd's user root, whose certificate is ca/etcd-root.pem")
}

#[cfg(test)]
mod tests {
    use records::{Error, Expect};
    use testkit::{Etcd, certificates};

    use super::*;

    /// Every key that somebody in the fleet keeps, as an example of its kind.
    const KINDS: [&str; 21] = [
        "access-keys/AKIA1",
        "base-images/b",
        "build-owners/1",
        "build-queue/1",
        "builds/1",
        "clock",
        "connectors/c",
        "domains/d",
        "drains/h1",
        "elections/scheduler",
        "hosts/h1",
        "hosts/h2",
        "image-admission",
        "image-tokens/t",
        "images/i",
        "invitations/i",
        "keys/k",
        "microvms/m",
        "usage/u",
        "versions/i/1.0",
        "vouchers/h1",
    ];

    struct World {
        directory: tempfile::TempDir,
        etcd: Etcd,
    }

    impl World {
        async fn start() -> Self {
            let directory = tempfile::tempdir().unwrap();
            certificates::write(
                directory.path(),
                &[("server", &["127.0.0.1"]), (authority::ETCD_ROOT, &["root"])],
            );
            let etcd = Etcd::start_with(Some(certificates::files(directory.path(), "server"))).await;
            Self { directory, etcd }
        }

        async fn store(&self, tls: TlsSettings) -> Store {
            Store::connect(&EtcdSettings { tls: Some(tls), ..self.etcd.settings() }).await.unwrap()
        }

        async fn of(&self, role: Role) -> Store {
            self.store(certificates::files(self.directory.path(), role.name())).await
        }

        async fn host(&self, id: &str) -> Store {
            self.store(certificates::host_files(self.directory.path(), id)).await
        }

        async fn root(&self) -> Store {
            as_root(self.directory.path(), vec![self.etcd.endpoint()]).await.unwrap()
        }
    }

    fn hosts() -> BTreeSet<String> {
        ["h1", "h2"].map(str::to_owned).into()
    }

    /// What somebody may do with a key: "-", "r" or "rw".
    async fn allowed(store: &Store, key: &str) -> &'static str {
        let refused = |error: &Error| matches!(error, Error::Refused { .. });
        let read = match store.get(key).await {
            Ok(_) => true,
            Err(error) => {
                assert!(refused(&error), "{key}: {error}");
                false
            }
        };
        match (read, store.put_if(key, "x", Expect::Any, None).await) {
            (true, Ok(_)) => "rw",
            (true, Err(error)) if refused(&error) => "r",
            (false, Err(error)) if refused(&error) => "-",
            (_, other) => panic!("{key}: {other:?}"),
        }
    }

    #[tokio::test]
    async fn everybody_has_the_rights_of_the_table_and_no_others() {
        let mut world = World::start().await;
        let root = world.root().await;
        // A fleet from before, with records and without rights.
        let earlier = world.of(Role::Admin).await;
        earlier.put_if("keys/k", "secret", Expect::Absent, None).await.unwrap();
        // Broken off before they are looked at: everybody goes on.
        root.permit(&users(&hosts())).await.unwrap();
        earlier.put_if("keys/k", "secret", Expect::Any, None).await.unwrap();
        for _ in 0..2 {
            root.enforce(&users(&hosts())).await.unwrap();
        }
        let parties = [
            ("scheduler", world.of(Role::Scheduler).await),
            ("image-builder", world.of(Role::ImageBuilder).await),
            ("edge-proxy", world.of(Role::EdgeProxy).await),
            ("h1", world.host("h1").await),
            ("admin", earlier),
            ("a host without a name", world.of(Role::HostAgent).await),
            ("etcd", world.of(Role::Etcd).await),
        ];
        for round in 0..2 {
            for (party, store) in &parties {
                let mut found = BTreeSet::new();
                for key in KINDS {
                    let may = allowed(store, key).await;
                    found.extend((may != "-").then(|| format!("{may} {key}")));
                }
                let wanted = |access: &str, kinds: &[&str]| -> Vec<String> {
                    let under = |key: &&str| kinds.iter().any(|kind| key.starts_with(kind));
                    KINDS.into_iter().filter(under).map(|key| format!("{access} {key}")).collect()
                };
                let row = SERVICES.iter().find(|(role, ..)| role.name() == *party);
                let expected: BTreeSet<String> = match (row, *party) {
                    (Some((_, written, read)), _) => {
                        wanted("rw", written).into_iter().chain(wanted("r", read)).collect()
                    }
                    (None, "h1") => ["rw hosts/h1".to_owned()].into(),
                    (None, _) => BTreeSet::new(),
                };
                assert_eq!(found, expected, "{party}, round {round}");
            }
            // Rights and users are etcd's own records; nobody logs in again after a restart.
            world.etcd.restart().await;
        }
    }

    #[tokio::test]
    async fn services_can_do_their_work() {
        let world = World::start().await;
        let root = world.root().await;
        root.enforce(&users(&hosts())).await.unwrap();
        let (scheduler, host) = (world.of(Role::Scheduler).await, world.host("h1").await);
        let ttl = std::time::Duration::from_secs(5);
        // A host's lease: taken, tied to its record, given back.
        let lease = host.lease(ttl).await.unwrap();
        host.put_leased("hosts/h1", "here", &lease).await.unwrap();
        assert!(host.put_leased("hosts/h2", "here", &lease).await.is_err(), "another's record");
        let mut seen = scheduler.watch("hosts/");
        while !matches!(seen.next().await, records::Event::Snapshot(found) if found.len() == 1) {}
        lease.revoke().await.unwrap();
        while !matches!(seen.next().await, records::Event::Delete(key) if key == "hosts/h1") {}
        // A leader: elected, writes under its guard, compacts, resigns.
        let leader = scheduler.campaign("scheduler", "one", ttl).await.unwrap();
        scheduler.put_if("microvms/m", "x", Expect::Absent, Some(&leader)).await.unwrap();
        let size = scheduler.size().await.unwrap();
        scheduler.compact(size.revision).await.unwrap();
        let invited = scheduler.lease(ttl).await.unwrap();
        scheduler.put_leased("invitations/i", "x", &invited).await.unwrap();
        leader.resign().await.unwrap();
        // An edge follows.
        scheduler.put_if("keys/k", "x", Expect::Absent, None).await.unwrap();
        let mut keys = world.of(Role::EdgeProxy).await.watch("keys/");
        while !matches!(keys.next().await, records::Event::Snapshot(found) if found.len() == 1) {}
        // A builder takes a build.
        let builder = world.of(Role::ImageBuilder).await;
        let lease = builder.lease(ttl).await.unwrap();
        builder.put_leased("build-owners/1", "me", &lease).await.unwrap();
        // Nobody but root gives rights.
        assert!(scheduler.permit(&[super::host("h3")]).await.is_err());
        assert!(host.enforce(&users(&hosts())).await.is_err());
        root.permit(&[super::host("h3")]).await.unwrap();
        assert_eq!(allowed(&world.host("h3").await, "hosts/h3").await, "rw");
    }

    #[tokio::test]
    async fn a_right_that_is_no_longer_in_the_table_goes() {
        let world = World::start().await;
        let root = world.root().await;
        let user = |keys: &[&str]| User {
            name: Identity::of_host("h1").dns_name(),
            rights: keys.iter().map(|key| right(Access::ReadWrite, key)).collect(),
        };
        root.enforce(&[user(&["hosts/h1", "keys/"])]).await.unwrap();
        let host = world.host("h1").await;
        assert_eq!(allowed(&host, "keys/k").await, "rw");
        root.enforce(&[user(&["hosts/h1"])]).await.unwrap();
        assert_eq!(allowed(&host, "keys/k").await, "-");
        assert_eq!(allowed(&host, "hosts/h1").await, "rw");
    }

    #[test]
    fn the_document_shows_the_table() {
        let text = include_str!("../../../../docs/SECURITY.md");
        let shown = |keys: &[&str]| match keys {
            [] => "nothing".to_owned(),
            keys => keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", "),
        };
        for (role, written, read) in SERVICES {
            let row = format!("| {} | {} | {} |", role.name(), shown(written), shown(read));
            assert!(text.contains(&row), "docs/SECURITY.md needs the row\n{row}");
        }
    }
}
