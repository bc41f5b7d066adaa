use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use api::host::v1::{HostSpec, VouchForHostResponse};
use testkit::{Etcd, PATIENCE, Script, certificates};

use super::*;
use crate::adapters::lease;

const TTL: Duration = Duration::from_secs(4);
/// How long a vouch holds, and more rounds of asking than fit into it.
const VOUCH: Duration = Duration::from_secs(4);
const ROUNDS: usize = 12;

/// Two schedulers that vouch as long as each may, a host with a lease on a real etcd, and its standing.
struct World {
    etcd: Etcd,
    vouch: [Arc<AtomicBool>; 2],
    asked: Arc<AtomicUsize>,
    standing: watch::Sender<Standing>,
    _schedulers: Vec<Script>,
    _directory: tempfile::TempDir,
    _tasks: tokio::task::JoinSet<()>,
}

impl World {
    async fn open() -> Self {
        rpc::install_crypto_provider();
        let directory = tempfile::tempdir().unwrap();
        certificates::write(directory.path(), &[]);
        let identity = |role| certificates::identity(directory.path(), role);
        let vouch = [true, true].map(|may| Arc::new(AtomicBool::new(may)));
        let (mut schedulers, mut addresses) = (Vec::new(), Vec::new());
        let asked = Arc::new(AtomicUsize::new(0));
        for may in &vouch {
            let script = Script::start(&identity(Role::Scheduler), &[Role::HostAgent]).await;
            let (may, asked, scheduler) = (Arc::clone(may), Arc::clone(&asked), script.address.to_string());
            addresses.push(scheduler.clone());
            script.react("VouchForHost", move |_: VouchForHostRequest| {
                if !may.load(Ordering::Relaxed) {
                    return Err(Status::unavailable("cut off"));
                }
                asked.fetch_add(1, Ordering::Relaxed);
                let valid_for = Some(api::duration_proto(VOUCH));
                Ok(VouchForHostResponse { scheduler: scheduler.clone(), valid_for })
            });
            schedulers.push(script);
        }
        let etcd = Etcd::start().await;
        let (standing, seat) = (watch::Sender::new(Standing::default()), LeaseSeat::default());
        let mut tasks = tokio::task::JoinSet::new();
        let spec = HostSpec { host_id: "h1".to_owned(), ..HostSpec::default() };
        tasks.spawn(lease::keep(etcd.store().await, spec, TTL, (standing.clone(), Arc::clone(&seat))));
        let (clock, identity) = (Clock::system(), identity(Role::HostAgent));
        let vouches =
            Vouches::new(("h1", &clock), (&standing, &seat, TTL), (&identity, addresses.as_slice()));
        tasks.spawn(vouches.unwrap().keep());
        let world = Self {
            etcd,
            vouch,
            asked,
            standing,
            _schedulers: schedulers,
            _directory: directory,
            _tasks: tasks,
        };
        world.until("a lease", |standing| standing.lease().is_some()).await;
        world.told();
        world
    }

    /// A scheduler says what is stale.
    fn told(&self) {
        self.standing.send_modify(|standing| {
            let lease = standing.lease().unwrap();
            standing.told(lease);
        });
    }

    async fn until(&self, what: &str, wanted: impl Fn(&Standing) -> bool) {
        let mut standing = self.standing.subscribe();
        let reached = standing.wait_for(wanted);
        assert!(tokio::time::timeout(PATIENCE, reached).await.is_ok(), "{what}: {:?}", self.standing);
    }
}

#[tokio::test]
async fn a_host_goes_on_while_every_scheduler_vouches_and_stops_when_one_does_not() {
    let mut world = World::open().await;
    world.standing.send_modify(|standing| standing.go_by_vouches(true));
    world.etcd.kill();
    world.until("the lease to end", |standing| standing.lease().is_none()).await;
    assert!(!world.standing.borrow().is_fenced(), "all vouch");
    let before = world.asked.load(Ordering::Relaxed);
    testkit::eventually("vouches after vouches", || {
        let asked = world.asked.load(Ordering::Relaxed);
        async move { (asked > before + 2 * ROUNDS).then_some(()) }
    })
    .await;
    assert!(!world.standing.borrow().is_fenced(), "all go on vouching");
    world.etcd.restart().await;
    world.until("a lease again", |standing| standing.lease().is_some()).await;
    assert!(!world.standing.borrow().is_fenced() && !world.standing.borrow().is_open_by_lease());
    world.told();
    assert!(world.standing.borrow().is_open_by_lease());

    // The second time one of the two is out of reach: it may lead on the other side.
    world.vouch[1].store(false, Ordering::Relaxed);
    world.etcd.kill();
    world.until("the fence", |standing| standing.is_fenced()).await;
}

#[tokio::test]
async fn vouches_that_no_leader_has_recorded_are_not_gone_by() {
    let mut world = World::open().await;
    world.etcd.kill();
    world.until("the lease to end", |standing| standing.lease().is_none()).await;
    assert!(world.standing.borrow().is_fenced());
}
