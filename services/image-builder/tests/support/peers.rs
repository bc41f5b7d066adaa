//! A scheduler with one host, scripted. They speak the real protocol; only what stands behind it is missing.

use std::path::Path;
use std::sync::{Arc, Mutex};

use api::common::v1::{LogLine, LogSource};
use api::errors;
use api::host::v1::*;
use api::hostagent::v1::*;
use api::image::v1::SnapshotRef;
use api::microvm::v1::*;
use futures::future;
use futures::stream::{self, BoxStream, StreamExt as _};
use object_store::Store;
use rpc::Role;
use snapshot::{FileKind, FileSource, ManifestHead, SnapshotKind};
use testkit::Script;
use testkit::certificates::{host, identity};
use tonic::{Code, Status};

use crate::world::SNAPSHOTS;

/// What every bake that succeeds has to say.
pub const WARNING: &str = "The application was not up.";

/// How the next bakes go, in order; then they succeed.
#[derive(Default)]
pub struct State {
    pub bakes: Vec<BakeEnd>,
    pub requests: Vec<BakeRequest>,
    pub released: usize,
    pub evicted: Vec<String>,
    pub microvms: Vec<Microvm>,
}

#[derive(Clone)]
pub enum BakeEnd {
    /// Never ends.
    Hang,
    Break,
    /// Ends with this reason and metadata.
    Refuse(Code, &'static str, Vec<(&'static str, &'static str)>),
}

/// The scheduler and its host; they stop when they are dropped.
pub struct Peers {
    pub scheduler: Script,
    _host: Script,
}

impl Peers {
    pub async fn start(directory: &Path, store: Store, state: &Arc<Mutex<State>>) -> Self {
        let baker = Script::start(&host(directory, "h1"), &[Role::ImageBuilder]).await;
        let shared = Arc::clone(state);
        baker.stream("Bake", move |request: BakeRequest| Ok(bake(&shared, store.clone(), request)));
        let shared = Arc::clone(state);
        baker.react("EvictImage", move |request: EvictImageRequest| {
            shared.lock().unwrap().evicted.push(request.manifest_key);
            Ok(EvictImageResponse {})
        });
        let grpc_address = baker.address.to_string();
        let scheduler = Script::start(&identity(directory, Role::Scheduler), &[Role::ImageBuilder]).await;
        let spec =
            HostSpec { host_id: "h1".into(), grpc_address: grpc_address.clone(), ..HostSpec::default() };
        let hosts = vec![Host { spec: Some(spec), ..Host::default() }];
        scheduler.answer("ListHosts", Ok(ListHostsResponse { hosts, ..Default::default() }));
        let placed = PlaceBakeResponse { host_id: "h1".into(), grpc_address, chipset: "EMULATED".into() };
        scheduler.answer("PlaceBake", Ok(placed));
        let shared = Arc::clone(state);
        scheduler.react("ReleaseBake", move |_: ReleaseBakeRequest| {
            shared.lock().unwrap().released += 1;
            Ok(ReleaseBakeResponse {})
        });
        let shared = Arc::clone(state);
        scheduler.react("ListMicrovms", move |_: ListMicrovmsRequest| {
            let microvms = shared.lock().unwrap().microvms.clone();
            Ok(ListMicrovmsResponse { microvms, next_page_token: String::new() })
        });
        Self { scheduler, _host: baker }
    }
}

fn bake(
    state: &Mutex<State>,
    store: Store,
    request: BakeRequest,
) -> BoxStream<'static, Result<BakeResponse, Status>> {
    let end = {
        let mut state = state.lock().unwrap();
        state.requests.push(request.clone());
        if state.bakes.is_empty() { None } else { Some(state.bakes.remove(0)) }
    };
    let line =
        LogLine { source: LogSource::Stdout.into(), text: "hello from the app".into(), ..LogLine::default() };
    let first = BakeResponse { lines: vec![line], step: "boot".into(), result: None };
    let last = async move {
        match end {
            None => Ok(BakeResponse { result: Some(publish(&store, &request).await), ..Default::default() }),
            Some(BakeEnd::Hang) => future::pending().await,
            Some(BakeEnd::Break) => Err(Status::unavailable("the host went")),
            Some(BakeEnd::Refuse(code, reason, metadata)) => {
                Err(errors::status(code, reason, "it broke", &metadata))
            }
        }
    };
    stream::iter([Ok(first)]).chain(stream::once(last)).boxed()
}

/// What a host leaves in S3, small.
async fn publish(store: &Store, request: &BakeRequest) -> BakeResult {
    let disk = request.disk.as_ref().unwrap();
    let (manifest, _) =
        snapshot::read_manifest(store, SNAPSHOTS, &disk.manifest_key, Some(&disk.manifest_digest))
            .await
            .expect("the disk is there");
    assert_eq!(manifest.head.disk_size_bytes, disk.size_bytes);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![7; 5000]).unwrap();
    let head = ManifestHead {
        kind: SnapshotKind::Image,
        engine: "qemu 7.2".into(),
        platform_fingerprint: "test".into(),
        guest_bundle_version: "g1".into(),
        memory_mib: request.memory_mib,
        vcpu_count: request.vcpu_count,
        disk_size_bytes: disk.size_bytes,
        image_name: request.image_name.clone(),
        image_version: request.image_version.clone(),
        generation: Some(request.generation),
        ..ManifestHead::default()
    };
    let sources = [FileSource { kind: FileKind::Memory, path: file.path().to_owned() }];
    let prefix = &request.destination_prefix;
    let published = snapshot::upload(store, SNAPSHOTS, prefix, &head, &sources, &|_, _| {}).await.unwrap();
    BakeResult {
        snapshot: Some(SnapshotRef {
            manifest_key: published.manifest_key,
            manifest_digest: published.manifest_digest,
            engine: "qemu".into(),
            guest_bundle_version: "g1".into(),
            memory_mib: request.memory_mib,
            vcpu_count: request.vcpu_count,
            disk_size_bytes: disk.size_bytes,
        }),
        memory_bytes: 5000,
        disk_difference_bytes: 4096,
        stored_bytes: published.stored_bytes,
        phases: Vec::new(),
        warnings: vec![WARNING.to_owned()],
    }
}
