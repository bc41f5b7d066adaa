//! Engines made ahead: processes that have a slot, map an image's memory and wait for the state of a microVM that does not
//! exist yet. Starting such a process is the longest step of a launch, and the same for every microVM of an image.
//!
//! ```text
//!  launch or wake --take--> engine of its image? yes: move its files, fill its disk, load the state
//!                                                no:  start a process, as on the first launch of an image
//!        \--it is under way no more--> keep_filled: makes what is missing, gives back what is too much
//! ```
//!
//! An engine made ahead belongs to no microVM, and then to one, for good. Its disk starts as the image's, which is what a
//! launch wants; a wake puts the microVM's own content into the same file before the state is loaded, which is when the
//! engine reads the disk first.
//!
//! None of this is written down. When the agent dies, the next one finds these processes by the data directory in their
//! command line, as it finds every engine that no journal names, and ends them; their slots and files go with the other
//! leftovers.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use clock::Clock;
use snapshot::FileKind;
use tokio::sync::Notify;

use crate::adapters::files::{self, MicrovmFiles};
use crate::adapters::image_snapshots::{fetch_error, file_name};
use crate::domain::HostError;
use crate::domain::capacity::Capacity;
use crate::host::Host;
use crate::microvm::{clone_disk, engine_error};
use crate::resources::{BACKGROUND_DELAY, EngineHeld, Resources, SlotHeld};

const DISK: &str = "disk";
const RUN: &str = "run";
/// Host memory accounted for one waiting engine: the process itself. Guest memory is the image's page cache until the
/// guest writes.
const ENGINE_MIB: u64 = 32;
/// How often images that are not used any more are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Longest wait for launches and wakes under way to end before an engine is made all the same.
const PATIENCE: Duration = Duration::from_secs(2);
const PATIENCE_POLL: Duration = Duration::from_millis(20);
/// Below this part of the machine's memory, engines are given back and none is made.
const AVAILABLE_PART_MIN: u64 = 16;

pub struct EnginesAhead {
    clock: Clock,
    state: Mutex<State>,
    /// A launch or a wake has ended.
    wanted: Notify,
    starts: AtomicUsize,
}

#[derive(Default)]
struct State {
    /// By digest of the manifest of the image's snapshot.
    images: HashMap<String, Image>,
    closed: bool,
}

struct Image {
    size: (u32, u32),
    ready: VecDeque<EngineAhead>,
    used: Instant,
}

/// One engine that waits. Dropping it gives everything back.
pub struct EngineAhead {
    resources: Resources,
    directory: PathBuf,
}

/// A launch or wake under way: while there is one, no engine is made.
pub struct Start<'a>(&'a EnginesAhead);

impl Drop for Start<'_> {
    fn drop(&mut self) {
        self.0.starts.fetch_sub(1, Ordering::Relaxed);
        self.0.wanted.notify_one();
    }
}

impl EnginesAhead {
    pub fn new(clock: Clock) -> Self {
        Self { clock, state: Mutex::default(), wanted: Notify::new(), starts: AtomicUsize::new(0) }
    }

    /// Notes that a launch or a wake began; it ends with what is returned.
    pub fn starting(&self) -> Start<'_> {
        self.starts.fetch_add(1, Ordering::Relaxed);
        Start(self)
    }

    /// An engine of this image, if one waits. Also notes that the image is in use.
    pub fn take(&self, digest: &str, size: (u32, u32)) -> Option<EngineAhead> {
        let mut state = self.state();
        let now = self.clock.instant();
        let new = || Image { size, ready: VecDeque::new(), used: now };
        let image = state.images.entry(digest.to_owned()).or_insert_with(new);
        image.used = now;
        // One that something outside has killed is dropped, which gives back what it held.
        std::iter::from_fn(|| image.ready.pop_front()).find(EngineAhead::is_alive)
    }

    /// Gives back one engine of the image used longest ago; false when none waits.
    pub async fn give_one_back(&self) -> bool {
        let engine = self.state().pop_oldest(None);
        give_back(engine).await
    }

    /// With all engines there may be, gives back one of an image used before this one; false when there is none.
    async fn make_room_for(&self, digest: &str) -> bool {
        let engine = {
            let mut state = self.state();
            let used = state.images.get(digest).map(|image| image.used);
            used.and_then(|used| state.pop_oldest(Some(used)))
        };
        give_back(engine).await
    }

    /// Gives back engines until the microVMs' memory and theirs fit.
    pub async fn make_room(&self, capacity: &Capacity) {
        while capacity.is_over() && self.give_one_back().await {}
    }

    pub fn count(&self) -> usize {
        self.state().count()
    }

    /// Gives back every engine, for good.
    pub async fn close(&self) {
        self.state().closed = true;
        while self.give_one_back().await {}
    }

    /// Gives back the engines of images that are not in the cache any more.
    pub async fn forget_evicted(&self, host: &Host) {
        self.forget(|digest, _| !host.image_snapshots.holds(digest)).await;
    }

    async fn forget(&self, unwanted: impl Fn(&str, &Image) -> bool) {
        let gone: Vec<Image> = {
            let mut state = self.state();
            state.images.extract_if(|digest, image| unwanted(digest, image)).map(|(_, image)| image).collect()
        };
        for engine in gone.into_iter().flat_map(|image| image.ready) {
            engine.resources.release().await;
        }
    }

    /// The image that an engine is to be made of next: of those that lack one, the one used last.
    fn next_short(&self, per_image: usize) -> Option<(String, (u32, u32))> {
        let state = self.state();
        let short = state.images.iter().filter(|(_, image)| image.ready.len() < per_image);
        let (digest, image) = short.max_by_key(|(_, image)| image.used)?;
        (!state.closed).then(|| (digest.clone(), image.size))
    }

    /// Adds an engine, or gives it back when its image was forgotten meanwhile.
    fn add(&self, digest: &str, engine: EngineAhead) -> Option<EngineAhead> {
        let mut state = self.state();
        let State { images, closed } = &mut *state;
        match images.get_mut(digest) {
            Some(image) if !*closed => {
                image.ready.push_back(engine);
                None
            }
            _ => Some(engine),
        }
    }

    /// Waits until nothing is being started, so that making an engine takes no processor from it; on a host that always
    /// starts something, not for ever.
    async fn quiet(&self) {
        tokio::time::sleep(BACKGROUND_DELAY).await;
        let began = Instant::now();
        while self.starts.load(Ordering::Relaxed) > 0 && began.elapsed() < PATIENCE {
            tokio::time::sleep(PATIENCE_POLL).await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn count(&self) -> usize {
        self.images.values().map(|image| image.ready.len()).sum()
    }

    /// An engine of the image used longest ago, and before `than`.
    fn pop_oldest(&mut self, than: Option<Instant>) -> Option<EngineAhead> {
        let waiting = self
            .images
            .values_mut()
            .filter(|image| !image.ready.is_empty() && than.is_none_or(|than| image.used < than));
        waiting.min_by_key(|image| image.used)?.ready.pop_front()
    }
}

impl EngineAhead {
    async fn make(host: &Host, digest: &str, size: (u32, u32)) -> Result<Self, HostError> {
        let mut resources = Resources::new(&host.pool);
        let memory = host.capacity.reserve_idle(ENGINE_MIB);
        resources.memory = Some(memory.map_err(|_| HostError::Capacity("no memory is to spare".to_owned()))?);
        let slot = host.pool.reserve();
        let slot = slot.ok_or_else(|| HostError::Capacity("no slot is to spare".to_owned()))?;
        let netns = slot.name().to_owned();
        resources.slot = SlotHeld::Reserved(slot);
        let directory = host.data.ahead().join(&netns);
        resources.paths.push(directory.clone());
        let mut this = Self { resources, directory };
        let prepared = this.prepare(host, digest, size, &netns).await;
        match prepared {
            Ok(prepared) => {
                this.resources.engine = EngineHeld::Prepared(prepared);
                Ok(this)
            }
            Err(failure) => {
                this.resources.release().await;
                Err(failure)
            }
        }
    }

    async fn prepare(
        &self,
        host: &Host,
        digest: &str,
        size: (u32, u32),
        netns: &str,
    ) -> Result<Box<dyn vmm::Prepared>, HostError> {
        let (disk, run) = (self.directory.join(DISK), self.directory.join(RUN));
        // No lease: nothing of the cache waits for an engine that nobody uses. An eviction meanwhile fails this, or
        // leaves a process on deleted files, which the next sweep ends.
        let image = host.data.image_snapshot(digest);
        let (from, to, run_directory) = (image.join(file_name(FileKind::Disk)), disk.clone(), run.clone());
        files::blocking(move || {
            files::remove(&run_directory)?;
            files::make_directory(&run_directory)?;
            clone_disk(&from, &to)
        })
        .await?;
        let spec = host.template.machine(&format!("ahead-{netns}"), size, netns, disk, run);
        let memory = image.join(file_name(FileKind::Memory));
        host.engine.prepare(&spec, &memory).await.map_err(|error| engine_error(&error))
    }

    fn is_alive(&self) -> bool {
        matches!(&self.resources.engine, EngineHeld::Prepared(prepared) if prepared.is_alive())
    }

    /// What it holds, and the directory that [`move_files`] empties.
    pub fn into_parts(self) -> (Resources, Option<PathBuf>) {
        (self.resources, Some(self.directory))
    }
}

/// Whether there was one to give back.
async fn give_back(engine: Option<EngineAhead>) -> bool {
    let Some(engine) = engine else { return false };
    engine.resources.release().await;
    true
}

/// Makes the files of an engine in `directory` one microVM's: they go to its places, and with `content` the disk gets what
/// that file has.
pub fn move_files(directory: &Path, to: &MicrovmFiles, content: Option<&Path>) -> Result<(), HostError> {
    for (from, to) in [(RUN, to.run()), (DISK, to.live_disk())] {
        files::remove(&to)?;
        std::fs::rename(directory.join(from), &to).map_err(|error| HostError::io(&to, &error))?;
    }
    if let Some(content) = content {
        let disk = to.live_disk();
        snapshot::disk::refill(content, &disk).map_err(|error| fetch_error(&error, &disk))?;
    }
    files::remove(directory)
}

/// Keeps engines ready for every image in use, until it is dropped. Makes one at a time: each is half a processor's work
/// of some tens of milliseconds, and there is no hurry.
pub async fn keep_filled(host: Arc<Host>) {
    let ahead = &host.ahead;
    let limits = &host.config.limits;
    let idle = Duration::from_millis(host.config.timeouts.engine_ahead_idle_ms);
    loop {
        tokio::select! {
            () = ahead.wanted.notified() => {}
            () = tokio::time::sleep(SWEEP_INTERVAL) => {}
        }
        let now = ahead.clock.instant();
        ahead
            .forget(|digest, image| {
                now.duration_since(image.used) > idle || !host.image_snapshots.holds(digest)
            })
            .await;
        while is_memory_short() && ahead.give_one_back().await {}
        ahead.make_room(&host.capacity).await;
        while let Some((digest, size)) = ahead.next_short(limits.engines_ahead) {
            ahead.quiet().await;
            if ahead.count() >= limits.engines_ahead_total && !ahead.make_room_for(&digest).await {
                break;
            }
            if is_memory_short() || host.capacity.is_over() {
                break;
            }
            match EngineAhead::make(&host, &digest, size).await {
                Ok(engine) => {
                    give_back(ahead.add(&digest, engine)).await;
                }
                Err(failure) => {
                    // The next launch, wake or sweep tries again; until then launches start their own process.
                    tracing::debug!(digest, error = %failure, "no engine was made ahead");
                    break;
                }
            }
        }
    }
}

/// Whether the machine itself is about to run out of memory, whatever the host has handed out.
fn is_memory_short() -> bool {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok()
    };
    match (kib("MemTotal:"), kib("MemAvailable:")) {
        (Some(total), Some(available)) => available < total / AVAILABLE_PART_MIN,
        _ => false,
    }
}
