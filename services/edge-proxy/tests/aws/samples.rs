//! Answers of the services, as they could be.

use api::common::v1::{Architecture, Resources};
use api::image::v1::{
    BuildState, CodeArtifact, Image, ImageBuild, ImageConfiguration, ImageState, ImageVersion, SnapshotBuild,
    VersionState, VersionStatus,
};
use api::microvm::v1::{Microvm, MicrovmState};
use prost_types::{Duration, Timestamp};

use crate::world::{image as arn, managed_connector};

pub const MICROVM: &str = "microvm-0190a5e2-7c3b-3f00-8000-000000000001";
pub const BUILD: &str = "0190a5e2-7c3b-3f00-8000-00000000000b";
/// 2026-07-30T05:20:00.250Z.
pub const CREATED: Timestamp = Timestamp { seconds: 1_785_388_800, nanos: 250_000_000 };
/// 2026-07-30T06:00:00Z.
pub const UPDATED: Timestamp = Timestamp { seconds: 1_785_391_200, nanos: 0 };

pub fn microvm() -> Microvm {
    Microvm {
        microvm_id: MICROVM.into(),
        state: MicrovmState::Running.into(),
        endpoint: "68cf7c1b-70f5-a080-8000-000000000002.lambda-microvm.us-east-2.on.aws".into(),
        endpoint_url: "https://68cf7c1b-70f5-a080-8000-000000000002.lambda-microvm.us-east-2.on.aws/".into(),
        image_arn: arn("app"),
        image_name: "app".into(),
        image_version: "1.0".into(),
        maximum_duration: Some(Duration { seconds: 28_800, nanos: 0 }),
        start_time: Some(CREATED),
        state_time: Some(UPDATED),
        ingress_network_connectors: vec![managed_connector("HTTP_INGRESS")],
        egress_network_connectors: vec![managed_connector("INTERNET_EGRESS")],
        host_id: "host-1".into(),
        generation: 1,
        memory_mib: 2048,
        ..Microvm::default()
    }
}

pub fn image() -> Image {
    Image {
        name: "app".into(),
        image_arn: arn("app"),
        id: "0190a5e2-7c3b-3f00-8000-0000000000aa".into(),
        state: ImageState::Created.into(),
        latest_active_image_version: "1.0".into(),
        latest_image_version: "1.0".into(),
        create_time: Some(CREATED),
        update_time: Some(UPDATED),
        ..Image::default()
    }
}

pub fn configuration() -> ImageConfiguration {
    ImageConfiguration {
        code_artifact: Some(CodeArtifact { uri: "s3://m80-conformance-000000000000-use2/code.zip".into() }),
        base_image_arn: "arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1".into(),
        base_image_version: "1.0".into(),
        build_role_arn: "arn:aws:iam::000000000000:role/m80-conformance-build".into(),
        resources: Some(Resources { minimum_memory_mib: 2048 }),
        egress_network_connectors: vec![managed_connector("INTERNET_EGRESS")],
        ..ImageConfiguration::default()
    }
}

pub fn version() -> ImageVersion {
    ImageVersion {
        image_name: "app".into(),
        image_arn: arn("app"),
        image_version: "1.0".into(),
        state: VersionState::Successful.into(),
        status: VersionStatus::Active.into(),
        configuration: Some(configuration()),
        create_time: Some(CREATED),
        update_time: Some(UPDATED),
        ..ImageVersion::default()
    }
}

pub fn build(chipset_generation: &str) -> ImageBuild {
    ImageBuild {
        build_id: BUILD.into(),
        image_name: "app".into(),
        image_version: "1.0".into(),
        architecture: Architecture::Arm64.into(),
        chipset: "EMULATED".into(),
        chipset_generation: chipset_generation.into(),
        state: BuildState::Successful.into(),
        create_time: Some(CREATED),
        snapshot_build: Some(SnapshotBuild {
            memory_snapshot_size_bytes: 609_087_488,
            code_install_size_bytes: 186_400_768,
            disk_snapshot_size_bytes: 25_600_000,
            stored_size_bytes: 1,
        }),
        ..ImageBuild::default()
    }
}
