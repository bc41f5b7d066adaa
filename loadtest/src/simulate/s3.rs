//! S3: whole snapshots by microVM, generation and sequence.

use std::collections::BTreeMap;
use std::sync::Mutex;

use host_agent::simulated::HostError;
use model::SnapshotNumber;
use tokio::time::Instant;

use super::machine::Guest;
use super::plan::Plant;
use super::world::{Node, Process, Shared, lock};

/// A snapshot in S3.
#[derive(Debug, Clone)]
pub struct Object {
    pub guest: Guest,
    stored: Instant,
}

#[derive(Debug, Default)]
pub struct Bucket {
    objects: Mutex<BTreeMap<(String, SnapshotNumber), Object>>,
}

/// Key of a snapshot's manifest.
pub fn manifest_key(id: &str, number: SnapshotNumber) -> String {
    format!("microvms/{id}/{}-{}/manifest.json", number.generation, number.sequence)
}

impl Bucket {
    pub fn holds(&self, id: &str, number: SnapshotNumber) -> bool {
        lock(&self.objects).contains_key(&(id.to_owned(), number))
    }

    /// The microVMs that there is anything of.
    pub fn ids(&self) -> Vec<String> {
        let mut ids: Vec<String> = lock(&self.objects).keys().map(|(id, _)| id.clone()).collect();
        ids.dedup();
        ids
    }
}

/// Makes a call to S3: it may fail, and it may succeed without anybody hearing of it.
async fn call<T>(world: &Shared, process: &Process, act: impl FnOnce(&Shared) -> T) -> Result<T, HostError> {
    world.step(process).await;
    let fate = world.fate(process.node, Node::S3);
    tokio::time::sleep(fate.there * 20).await;
    let away = || HostError::StoreUnavailable("S3 does not answer".to_owned());
    if fate.refused || fate.lost || !world.reaches(process.node, Node::S3) {
        return Err(away());
    }
    let answer = act(world);
    tokio::time::sleep(fate.back).await;
    world.step(process).await;
    if fate.answer_lost { Err(away()) } else { Ok(answer) }
}

pub async fn store(
    world: &Shared,
    process: &Process,
    id: &str,
    number: SnapshotNumber,
    guest: Guest,
) -> Result<(), HostError> {
    call(world, process, |world| {
        if world.is_planted(Plant::UploadLies) && world.draw(|chance| chance.per_mille(300)) {
            return;
        }
        world.tell(process.node, format_args!("S3 has {id} {number}"));
        let object = Object { guest, stored: Instant::now() };
        lock(&world.bucket.objects).insert((id.to_owned(), number), object);
    })
    .await
}

pub async fn fetch(
    world: &Shared,
    process: &Process,
    id: &str,
    number: SnapshotNumber,
) -> Result<Guest, HostError> {
    let found = call(world, process, |world| {
        lock(&world.bucket.objects).get(&(id.to_owned(), number)).map(|object| object.guest.clone())
    });
    found.await?.ok_or_else(|| HostError::Missing { object: manifest_key(id, number) })
}

/// Removes one snapshot, which no record may name any more.
pub async fn remove(
    world: &Shared,
    process: &Process,
    id: &str,
    number: SnapshotNumber,
) -> Result<(), HostError> {
    call(world, process, |world| {
        if lock(&world.bucket.objects).remove(&(id.to_owned(), number)).is_some() {
            world.tell(process.node, format_args!("S3 loses {id} {number}"));
            world.check_removed(id, number);
        }
    })
    .await
}

/// Removes everything of a microVM that is older than `age`; returns how many objects that was.
pub async fn remove_all(
    world: &Shared,
    process: &Process,
    id: &str,
    age: std::time::Duration,
) -> Result<u64, HostError> {
    call(world, process, |world| {
        let mut objects = lock(&world.bucket.objects);
        let all: Vec<_> = objects.iter().filter(|((of, _), _)| of == id).collect();
        if all.iter().any(|(_, object)| object.stored.elapsed() < age) {
            return 0;
        }
        let numbers: Vec<SnapshotNumber> = all.into_iter().map(|((_, number), _)| *number).collect();
        objects.retain(|(of, _), _| of != id);
        drop(objects);
        for number in &numbers {
            world.tell(process.node, format_args!("S3 loses {id} {number}"));
            world.check_removed(id, *number);
        }
        u64::try_from(numbers.len()).unwrap_or(0)
    })
    .await
}

pub async fn list(world: &Shared, process: &Process) -> Result<Vec<String>, HostError> {
    call(world, process, |world| world.bucket.ids()).await
}
