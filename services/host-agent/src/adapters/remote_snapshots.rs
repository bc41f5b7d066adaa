//! What the snapshot bucket has of microVMs, whichever host made it.
//!
//! ```text
//! microvms/<id>/g<generation>/s<sequence>/manifest.json and chunks
//! ```
//!
//! Who may remove what, and when, is decided elsewhere: a driver for what it superseded (`microvm::upload`), the scheduler for
//! everything of a microVM.

use std::time::{Duration, SystemTime};

use model::SnapshotNumber;
use model::ids::MicrovmId;
use object_store::Store;

use crate::domain::HostError;

/// Where everything of microVMs is.
const ROOT: &str = "microvms/";
/// Most microVMs in a page of a list.
pub const PAGE_MAX: usize = 1000;
/// Most objects of one microVM whose age is looked at: several snapshots of the largest size.
const OBJECTS_MAX: usize = object_store::LIST_KEYS_MAX;

/// Where everything of one microVM is.
pub fn prefix(id: &str) -> String {
    format!("{ROOT}{id}/")
}

/// Where one of its snapshots is. The number is the maker's own: another placement writes elsewhere.
pub fn snapshot_prefix(id: &str, number: SnapshotNumber) -> String {
    format!("{ROOT}{id}/{number}")
}

/// One page of the microVMs that have anything, at most `count`, and the token of the next page. Names that are no ids are left
/// out: whatever put them there is not ours to judge.
pub async fn list(
    store: &Store,
    bucket: &str,
    token: Option<String>,
    count: usize,
) -> Result<(Vec<MicrovmId>, Option<String>), HostError> {
    let listed = store.list_folders(bucket, ROOT, token, count.min(PAGE_MAX)).await;
    let page = listed.map_err(|error| unavailable(&error))?;
    Ok((page.names.iter().filter_map(|name| name.parse().ok()).collect(), page.next))
}

/// Removes everything of a microVM, unless anything of it is younger than `minimum_age`. Returns how many objects that were.
pub async fn remove(
    store: &Store,
    bucket: &str,
    id: &MicrovmId,
    minimum_age: Duration,
    now: SystemTime,
) -> Result<u64, HostError> {
    let prefix = prefix(id.as_str());
    if !minimum_age.is_zero() {
        let listed = store.list_prefix(bucket, &prefix, OBJECTS_MAX).await;
        let objects = listed.map_err(|error| unavailable(&error))?;
        if !all_older(objects.iter().map(|object| object.modified), minimum_age, now) {
            return Ok(0);
        }
    }
    store.delete_prefix(bucket, &prefix).await.map_err(|error| unavailable(&error))
}

/// Whether everything was written at least `age` ago. What does not say when it was written is young.
fn all_older(mut written: impl Iterator<Item = Option<SystemTime>>, age: Duration, now: SystemTime) -> bool {
    written.all(|time| time.is_some_and(|time| time + age <= now))
}

fn unavailable(error: &object_store::Error) -> HostError {
    HostError::StoreUnavailable(HostError::chain(error).0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_young_object_keeps_all() {
        let at = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        let (age, now) = (Duration::from_secs(100), at(1000).unwrap());
        for (written, expected) in [
            (vec![at(1), at(900)], true),
            (vec![at(1), at(901)], false),
            (vec![at(1), at(2000)], false),
            (vec![at(1), None], false),
        ] {
            assert_eq!(all_older(written.clone().into_iter(), age, now), expected, "{written:?}");
        }
    }
}
