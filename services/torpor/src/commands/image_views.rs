//! Images, versions and builds as tables.

use std::time::{Duration, SystemTime};

use api::image::v1::{BuildState, Image, ImageBuild, ImageVersion};

use super::follow::step_name;
use crate::durations;
use crate::error::CliError;
use crate::output::{self, json};

/// Full names of the messages shown here.
pub const IMAGE: &str = "torpor.image.v1.Image";
pub const VERSION: &str = "torpor.image.v1.ImageVersion";
pub const BUILD: &str = "torpor.image.v1.ImageBuild";

fn image_state(image: &Image) -> String {
    json::short_name(image.state().as_str_name(), "ImageState")
}

/// What becomes of a version's connections at a suspend.
fn connections(version: &ImageVersion) -> &'static str {
    match &version.configuration {
        Some(chosen) if chosen.end_connections_at_suspend => "end at a suspend",
        _ => "sleep and wake",
    }
}

/// An image, with what is to be known of its active version.
pub fn image(image: &Image, active: Option<&ImageVersion>) -> Result<(), CliError> {
    let warnings = active.map_or(&[][..], |version| &version.warnings);
    let mut tags: Vec<String> = image.tags.iter().map(|(key, value)| format!("{key}={value}")).collect();
    tags.sort();
    output::fields(vec![
        ("name", image.name.clone()),
        ("arn", image.image_arn.clone()),
        ("state", image_state(image)),
        ("active version", image.latest_active_image_version.clone()),
        ("newest version", image.latest_image_version.clone()),
        ("failed version", image.latest_failed_image_version.clone()),
        ("created", durations::rfc3339(image.create_time.as_ref())),
        ("changed", durations::rfc3339(image.update_time.as_ref())),
        ("tags", tags.join(", ")),
        ("connections", active.map(connections).unwrap_or_default().to_owned()),
        ("warning", warnings.join(" ")),
    ])
}

pub fn images(images: &[Image]) -> Result<(), CliError> {
    let now = SystemTime::now();
    let row = |image: &Image| {
        [
            image.name.clone(),
            image_state(image),
            image.latest_active_image_version.clone(),
            image.latest_image_version.clone(),
            durations::age(image.update_time.as_ref(), now),
        ]
    };
    let empty = "no images; build one: torpor image create NAME --artifact DIR";
    output::table(["name", "state", "active", "newest", "changed"], images, row, empty)
}

pub fn versions(versions: &[ImageVersion]) -> Result<(), CliError> {
    let now = SystemTime::now();
    let row = |version: &ImageVersion| {
        let asked = version.configuration.as_ref().and_then(|configuration| configuration.resources);
        let baseline = asked.map_or(0, |resources| resources.minimum_memory_mib);
        let peak = version.snapshot.as_ref().map_or(0, |snapshot| snapshot.memory_mib);
        [
            version.image_version.clone(),
            json::short_name(version.state().as_str_name(), "VersionState"),
            json::short_name(version.status().as_str_name(), "VersionStatus"),
            output::memory(baseline, peak),
            durations::age(version.create_time.as_ref(), now),
            version.state_reason.clone(),
        ]
    };
    let header = ["version", "state", "status", "guest memory", "created", "reason"];
    output::table(header, versions, row, "no versions")
}

pub fn builds(builds: &[ImageBuild]) -> Result<(), CliError> {
    let row = |build: &ImageBuild| {
        let sizes = build.snapshot_build.unwrap_or_default();
        let size = |bytes: u64| {
            if bytes == 0 { "-".to_owned() } else { output::bytes(bytes) }
        };
        let took = match (build.create_time, build.end_time) {
            (Some(from), Some(to)) => durations::short(durations::between(&from, &to)),
            _ => "-".to_owned(),
        };
        [
            build.build_id.clone(),
            build.image_version.clone(),
            json::short_name(build.state().as_str_name(), "BuildState"),
            step_name(build.step()).to_owned(),
            took,
            size(sizes.code_install_size_bytes),
            size(sizes.memory_snapshot_size_bytes),
            size(sizes.disk_snapshot_size_bytes),
            size(sizes.stored_size_bytes),
            build.state_reason.clone(),
        ]
    };
    let header = ["build", "version", "state", "step", "took", "code", "memory", "disk", "stored", "reason"];
    output::table(header, builds, row, "no builds")
}

/// What a build that has just ended made.
pub fn finished_build(image: &Image, build: &ImageBuild, took: Duration) -> Result<(), CliError> {
    let sizes = build.snapshot_build.unwrap_or_default();
    let steps: Vec<String> = build
        .phases
        .iter()
        // "bake/boot" is a part of "bake".
        .filter(|phase| !phase.name.contains('/'))
        .map(|phase| format!("{} {}", phase.name, durations::short(durations::of(phase.duration.as_ref()))))
        .collect();
    output::fields(vec![
        ("image", image.name.clone()),
        ("version", build.image_version.clone()),
        ("state", json::short_name(build.state().as_str_name(), "BuildState")),
        ("took", durations::short(took)),
        ("steps", steps.join(", ")),
        ("code", output::bytes(sizes.code_install_size_bytes)),
        ("memory", output::bytes(sizes.memory_snapshot_size_bytes)),
        ("disk", output::bytes(sizes.disk_snapshot_size_bytes)),
        ("stored in S3", output::bytes(sizes.stored_size_bytes)),
    ])?;
    for warning in &build.warnings {
        output::remark(format_args!("warning: {warning}"));
    }
    if build.state() == BuildState::Successful {
        output::remark(format_args!("next: torpor run {} --idle 60s", image.name));
    }
    Ok(())
}
