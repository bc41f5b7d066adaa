//! Changes of images, versions and builds as their records hold them. Which change is possible is decided by
//! the state tables of [`model::state`]; here they meet the wire's enums and the fields that change along.

use std::time::SystemTime;

use api::image::v1::{
    BuildState, BuildStep, Image, ImageBuild, ImageState, ImageVersion, VersionState, VersionStatus,
};
use model::VersionNumber;
use model::state::{self, BuildEvent, IllegalTransition, ImageEvent, VersionEvent};
use prost_types::Timestamp;

use crate::domain::build_error::BuildError;

/// The state of the tables that a wire name with this prefix means.
fn table_state<S: Copy>(
    all: &'static [S],
    name: impl Fn(S) -> &'static str,
    wire: &str,
    prefix: &str,
) -> Option<S> {
    all.iter().copied().find(|state| wire.strip_prefix(prefix) == Some(name(*state)))
}

/// Name of an image's state as the API spells it, "CREATING".
pub fn image_state_name(state: ImageState) -> &'static str {
    state.as_str_name().trim_start_matches("IMAGE_STATE_")
}

/// Name of a version's state as the API spells it, "PENDING".
pub fn version_state_name(state: VersionState) -> &'static str {
    state.as_str_name().trim_start_matches("VERSION_STATE_")
}

const UNKNOWN: &str = "UNKNOWN";

pub fn image(image: &mut Image, event: ImageEvent, now: SystemTime) -> Result<(), IllegalTransition> {
    let wire = image.state().as_str_name();
    let state = table_state(state::ImageState::ALL, state::ImageState::name, wire, "IMAGE_STATE_")
        .ok_or(IllegalTransition { state: UNKNOWN, event: event.name() })?
        .next(event)?;
    let next = ImageState::from_str_name(&format!("IMAGE_STATE_{}", state.name()));
    image.set_state(next.expect("both lists have the same states, which a test checks"));
    image.update_time = Some(api::timestamp(now));
    Ok(())
}

pub fn version(
    version: &mut ImageVersion,
    event: VersionEvent,
    now: SystemTime,
) -> Result<(), IllegalTransition> {
    let wire = version.state().as_str_name();
    let state = table_state(state::VersionState::ALL, state::VersionState::name, wire, "VERSION_STATE_")
        .ok_or(IllegalTransition { state: UNKNOWN, event: event.name() })?
        .next(event)?;
    let next = VersionState::from_str_name(&format!("VERSION_STATE_{}", state.name()));
    version.set_state(next.expect("both lists have the same states, which a test checks"));
    version.update_time = Some(api::timestamp(now));
    Ok(())
}

pub fn build(build: &mut ImageBuild, event: BuildEvent, now: SystemTime) -> Result<(), IllegalTransition> {
    let wire = build.state().as_str_name();
    let state = table_state(state::BuildState::ALL, state::BuildState::name, wire, "BUILD_STATE_")
        .ok_or(IllegalTransition { state: UNKNOWN, event: event.name() })?
        .next(event)?;
    let next = BuildState::from_str_name(&format!("BUILD_STATE_{}", state.name()));
    build.set_state(next.expect("both lists have the same states, which a test checks"));
    if is_over(build) {
        build.end_time = Some(api::timestamp(now));
    }
    Ok(())
}

pub fn is_over(build: &ImageBuild) -> bool {
    matches!(build.state(), BuildState::Successful | BuildState::Failed)
}

/// Begins (again) a build and its version.
pub fn begin(
    of_build: &mut ImageBuild,
    of_version: &mut ImageVersion,
    now: SystemTime,
) -> Result<(), IllegalTransition> {
    build(of_build, BuildEvent::Began, now)?;
    version(of_version, VersionEvent::BuildBegan, now)?;
    of_build.set_step(BuildStep::Unspecified);
    of_build.phases.clear();
    of_build.snapshot_build = None;
    of_build.warnings.clear();
    Ok(())
}

/// Ends a build, its version and its image's change: all successful.
pub fn succeed(
    of_build: &mut ImageBuild,
    of_version: &mut ImageVersion,
    of_image: &mut Image,
    now: SystemTime,
) -> Result<(), IllegalTransition> {
    build(of_build, BuildEvent::Succeeded, now)?;
    version(of_version, VersionEvent::BuildSucceeded, now)?;
    image(of_image, ImageEvent::BuildSucceeded, now)?;
    of_version.set_status(VersionStatus::Active);
    of_image.latest_active_image_version.clone_from(&of_version.image_version);
    Ok(())
}

/// Ends a build, its version and its image's change: all failed. The reason is on the build.
pub fn fail(
    of_build: &mut ImageBuild,
    of_version: &mut ImageVersion,
    of_image: &mut Image,
    failure: &BuildError,
    now: SystemTime,
) -> Result<(), IllegalTransition> {
    build(of_build, BuildEvent::Failed, now)?;
    version(of_version, VersionEvent::BuildFailed, now)?;
    image(of_image, ImageEvent::BuildFailed, now)?;
    of_build.state_reason.clone_from(&failure.sentence);
    failure.reason.code().clone_into(&mut of_build.reason_code);
    of_build.set_step(failure.step);
    of_image.latest_failed_image_version.clone_from(&of_version.image_version);
    Ok(())
}

/// Sets the versions an image names, from all versions it has. The newest of all only ever rises.
pub fn recount(image: &mut Image, versions: &[ImageVersion]) {
    let newest = |wanted: &dyn Fn(&ImageVersion) -> bool| {
        let numbers = versions.iter().filter(|version| wanted(version));
        let newest = numbers.filter_map(|version| version.image_version.parse::<VersionNumber>().ok()).max();
        newest.map(|number| number.to_string()).unwrap_or_default()
    };
    let launchable = |version: &ImageVersion| {
        version.state() == VersionState::Successful && version.status() == VersionStatus::Active
    };
    image.latest_active_image_version = newest(&launchable);
    image.latest_failed_image_version = newest(&|version| version.state() == VersionState::Failed);
    // Numbers are never used twice, so a deleted one stays the newest.
    let before = image.latest_image_version.parse::<VersionNumber>().ok();
    let now = newest(&|_| true).parse::<VersionNumber>().ok();
    image.latest_image_version = before.max(now).map(|number| number.to_string()).unwrap_or_default();
}

/// Orders times; one that was never set comes first.
pub fn earlier(one: Option<&Timestamp>, other: Option<&Timestamp>) -> std::cmp::Ordering {
    let key = |time: Option<&Timestamp>| time.map_or((0, 0), |time| (time.seconds, time.nanos));
    key(one).cmp(&key(other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::build_error::Reason;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn new() -> (Image, ImageVersion, ImageBuild) {
        let image = Image { state: ImageState::Creating.into(), ..Image::default() };
        let version = ImageVersion {
            image_version: "1.0".to_owned(),
            state: VersionState::Pending.into(),
            ..ImageVersion::default()
        };
        let build = ImageBuild { state: BuildState::Pending.into(), ..ImageBuild::default() };
        (image, version, build)
    }

    #[test]
    fn wire_and_tables_have_the_same_states() {
        for state in state::ImageState::ALL {
            assert!(ImageState::from_str_name(&format!("IMAGE_STATE_{state}")).is_some(), "{state}");
        }
        for state in state::VersionState::ALL {
            assert!(VersionState::from_str_name(&format!("VERSION_STATE_{state}")).is_some(), "{state}");
        }
        for state in state::BuildState::ALL {
            assert!(BuildState::from_str_name(&format!("BUILD_STATE_{state}")).is_some(), "{state}");
        }
        assert_eq!(image_state_name(ImageState::DeleteFailed), "DELETE_FAILED");
        assert_eq!(version_state_name(VersionState::InProgress), "IN_PROGRESS");
    }

    #[test]
    fn a_build_that_works_makes_its_version_active() {
        let (mut image, mut version, mut build) = new();
        begin(&mut build, &mut version, NOW).unwrap();
        begin(&mut build, &mut version, NOW).expect("another builder may begin again");
        succeed(&mut build, &mut version, &mut image, NOW).unwrap();
        assert_eq!((image.state(), version.status()), (ImageState::Created, VersionStatus::Active));
        assert_eq!(image.latest_active_image_version, "1.0");
        assert!(build.end_time.is_some());
        assert!(begin(&mut build, &mut version, NOW).is_err(), "what is over stays over");
    }

    #[test]
    fn a_build_that_fails_says_why_on_the_build() {
        let (mut image, mut version, mut build) = new();
        begin(&mut build, &mut version, NOW).unwrap();
        let failure = BuildError::new(BuildStep::Fetch, Reason::S3NoSuchKey, "gone");
        fail(&mut build, &mut version, &mut image, &failure, NOW).unwrap();
        assert_eq!((image.state(), version.state_reason.as_str()), (ImageState::CreateFailed, ""));
        assert_eq!((build.state_reason.as_str(), build.reason_code.as_str()), ("gone", "S3_NO_SUCH_KEY"));
        assert_eq!((build.step(), image.latest_failed_image_version.as_str()), (BuildStep::Fetch, "1.0"));
    }

    #[test]
    fn images_name_their_newest_versions() {
        let version = |number: &str, state: VersionState, status: VersionStatus| ImageVersion {
            image_version: number.to_owned(),
            state: state.into(),
            status: status.into(),
            ..ImageVersion::default()
        };
        let mut image = Image::default();
        recount(
            &mut image,
            &[
                version("2.0", VersionState::Successful, VersionStatus::Active),
                version("10.0", VersionState::Successful, VersionStatus::Inactive),
                version("9.0", VersionState::Failed, VersionStatus::Unspecified),
            ],
        );
        assert_eq!(image.latest_active_image_version, "2.0");
        assert_eq!(image.latest_failed_image_version, "9.0");
        assert_eq!(image.latest_image_version, "10.0");
    }
}
