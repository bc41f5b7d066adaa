//! What a rotation leaves on disk, wherever it is broken off.

use std::collections::BTreeMap;

use super::*;
use crate::fleet::bringup::first_record;
use crate::fleet::plan::Plan;
use crate::fleet::plan::tests::plan;
use crate::fleet::record::FleetState;

/// A fleet without processes: what a rotation leaves on disk.
struct World {
    directory: tempfile::TempDir,
    plan: Plan,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let plan = Plan { data_dir: directory.path().to_owned(), ..plan(&[]) };
        for name in ["run", "config"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        authority::ensure(&plan).unwrap();
        let record = first_record(&plan, &[], None, Vec::new());
        let record = FleetRecord { state: FleetState::Running, ..record };
        record.save(&plan.run_dir()).unwrap();
        Self { directory, plan }
    }

    fn rotation(&self) -> Rotation<'_> {
        let files = Files { directory: self.plan.path("ca") };
        let next = files.next().unwrap();
        let parts = Parts { services: Vec::new(), etcd: Vec::new(), edge: None };
        Rotation { data_dir: self.directory.path(), domain: self.plan.domain.clone(), parts, files, next }
    }

    fn read(&self) -> BTreeMap<String, String> {
        let entries = std::fs::read_dir(self.plan.path("ca")).unwrap();
        let entries = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
        entries
            .map(|path| {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                (name, std::fs::read_to_string(path).unwrap())
            })
            .collect()
    }

    /// Every certificate is good, and of the CA that is trusted.
    fn is_whole(&self) {
        for name in ["scheduler", "admin", "etcd-root", "host-agent.host-1"] {
            let (certificate, key) = authority::pair(&self.plan, name);
            load(&self.plan.path("ca/ca.pem"), &certificate, &key).unwrap();
        }
        let trusted = self.rotation().files.authorities("ca.pem").unwrap();
        assert_eq!(trusted.len(), 1);
        let before = self.read();
        authority::issue(&self.plan.path("ca"), &"host-1".parse().unwrap()).unwrap();
        assert_eq!(self.read()["host-agent.host-1.pem"], before["host-agent.host-1.pem"]);
    }
}

#[test]
fn a_rotation_that_was_broken_off_is_finished_by_the_next_start() {
    // What a call had done when it died: nothing yet, both trusted, some certificates, all, the old CA dropped, its key gone.
    for died_after in 0..6 {
        let world = World::new();
        let before = world.read();
        let rotation = world.rotation();
        let files = &rotation.files;
        if died_after >= 1 {
            files.keep_old().unwrap();
            files.trust(&["ca-old.pem", "ca-next.pem"]).unwrap();
        }
        let leaves = rotation.leaves().unwrap();
        let made = [0, 0, 2, leaves.len(), leaves.len(), leaves.len()][died_after];
        for leaf in &leaves[..made] {
            authority::ensure_leaf(&files.directory, leaf, &rotation.next).unwrap();
        }
        if died_after >= 4 {
            files.trust(&["ca-next.pem"]).unwrap();
        }
        if died_after >= 5 {
            std::fs::copy(files.path("ca-next.key"), files.path("ca.key")).unwrap();
        }
        let step = [Step::Trust, Step::Certificates, Step::Certificates, Step::Drop, Step::Drop, Step::Drop];
        assert_eq!(rotation.step().unwrap(), step[died_after], "{died_after}");
        authority::ensure(&world.plan).unwrap();
        let after = world.read();
        assert!(!after.keys().any(|name| name.starts_with("ca-")), "{died_after}: {:?}", after.keys());
        for name in ["ca.pem", "ca.key", "scheduler.pem", "endpoints.pem", "host-agent.host-1.pem"] {
            assert_ne!(after[name], before[name], "{died_after}: {name}");
        }
        world.is_whole();
    }
}

#[tokio::test]
async fn the_old_ca_goes_last_and_what_was_issued_before_stays_good_until_then() {
    let world = World::new();
    let old = world.read();
    let rotation = world.rotation();
    rotation.files.keep_old().unwrap();
    rotation.files.trust(&["ca-old.pem", "ca-next.pem"]).unwrap();
    assert!(rotation.files.old().unwrap().is_some(), "it can still be tried who trusts it");
    let both = world.read();
    assert!(both["ca.pem"].starts_with(&old["ca.pem"]), "what is issued meanwhile is by the old one");
    assert_eq!(both["scheduler.pem"], old["scheduler.pem"]);
    rotation.renew().await.unwrap();
    assert_ne!(world.read()["scheduler.pem"], old["scheduler.pem"]);
    assert_eq!(world.read()["ca.pem"], both["ca.pem"]);
    // Once more from the beginning, as after a crash: nothing is made twice.
    let again = world.read();
    rotation.renew().await.unwrap();
    assert_eq!(world.read(), again);
    rotation.files.promote().unwrap();
    world.is_whole();
}
