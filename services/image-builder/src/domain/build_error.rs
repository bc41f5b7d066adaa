//! Why a build failed: the step, a reason for machines, a sentence for people.

use std::fmt;
use std::time::Duration;

use api::image::v1::BuildStep;

/// Longest sentence kept in a record, in bytes.
const SENTENCE_BYTES_MAX: usize = 1024;

/// Reasons, `ImageBuild.reason_code`. Part of the API: never renamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    S3AccessDenied,
    S3NoSuchKey,
    S3NoSuchBucket,
    ArchiveInvalid,
    ArchiveTooLarge,
    ArchiveDockerfileNotFound,
    ContainerBuildFailed,
    /// The image of a FROM line is in no registry, nor here.
    BaseImageNotFound,
    /// The image says nothing to run.
    NoStartCommand,
    /// The build needs more disk than there is or the class has.
    DiskStorageFull,
    ReadyHookTimeout,
    HookFailed,
    AppExited,
    /// The guest could not be booted or did not answer.
    GuestFailed,
    InsufficientCapacity,
    BuildTimeout,
    /// Builders died under the build too often.
    BuilderLost,
    /// A neighbour (S3, etcd, scheduler, host) was out of reach for too long.
    DependencyUnavailable,
    /// A bug or a broken machine.
    InternalPlatformError,
}

impl Reason {
    pub fn code(self) -> &'static str {
        match self {
            Self::S3AccessDenied => "S3_ACCESS_DENIED",
            Self::S3NoSuchKey => "S3_NO_SUCH_KEY",
            Self::S3NoSuchBucket => "S3_NO_SUCH_BUCKET",
            Self::ArchiveInvalid => "ARCHIVE_INVALID",
            Self::ArchiveTooLarge => "ARCHIVE_TOO_LARGE",
            Self::ArchiveDockerfileNotFound => "ARCHIVE_DOCKERFILE_NOT_FOUND",
            Self::ContainerBuildFailed => "CONTAINER_BUILD_FAILED",
            Self::BaseImageNotFound => "BASE_IMAGE_NOT_FOUND",
            Self::NoStartCommand => "NO_START_COMMAND",
            Self::DiskStorageFull => "DISK_STORAGE_FULL",
            Self::ReadyHookTimeout => "READY_HOOK_TIMEOUT",
            Self::HookFailed => "HOOK_FAILED",
            Self::AppExited => "APP_EXITED",
            Self::GuestFailed => "GUEST_FAILED",
            Self::InsufficientCapacity => "INSUFFICIENT_CAPACITY",
            Self::BuildTimeout => "BUILD_TIMEOUT",
            Self::BuilderLost => "BUILDER_LOST",
            Self::DependencyUnavailable => "DEPENDENCY_UNAVAILABLE",
            Self::InternalPlatformError => "INTERNAL_PLATFORM_ERROR",
        }
    }
}

/// Why a build ended without a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildError {
    pub step: BuildStep,
    pub reason: Reason,
    /// For people; at most 1 KiB.
    pub sentence: String,
}

impl BuildError {
    /// A failure in `step`; an overlong sentence is cut.
    pub fn new(step: BuildStep, reason: Reason, sentence: impl Into<String>) -> Self {
        Self { step, reason, sentence: clipped(sentence.into(), SENTENCE_BYTES_MAX) }
    }

    /// A bug or a broken machine.
    pub fn internal(step: BuildStep, detail: impl fmt::Display) -> Self {
        Self::new(step, Reason::InternalPlatformError, format!("The platform failed: {detail}."))
    }

    /// A full disk is what people can do something about; every other I/O error is ours.
    pub fn io(step: BuildStep, what: &str, error: &std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::StorageFull {
            return Self::disk_full(step);
        }
        Self::internal(step, format!("{what}: {error}"))
    }

    pub fn disk_full(step: BuildStep) -> Self {
        Self::new(step, Reason::DiskStorageFull, "The build machine ran out of disk space.")
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason.code(), self.sentence)
    }
}

impl std::error::Error for BuildError {}

/// `text`, cut at a character boundary to at most `bytes_max` bytes.
pub fn clipped(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        let mut end = bytes_max.saturating_sub('…'.len_utf8());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

/// ISO-8601 form of whole seconds: 300 s is "PT5M".
pub fn iso8601(duration: Duration) -> String {
    let (hours, minutes, seconds) =
        (duration.as_secs() / 3600, duration.as_secs() / 60 % 60, duration.as_secs() % 60);
    let mut text = "PT".to_owned();
    for (count, unit) in [(hours, 'H'), (minutes, 'M'), (seconds, 'S')] {
        if count > 0 || (unit == 'S' && text.len() == 2) {
            text.push_str(&format!("{count}{unit}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_the_api_writes_them() {
        for (seconds, text) in [(0, "PT0S"), (30, "PT30S"), (300, "PT5M"), (3600, "PT1H"), (3661, "PT1H1M1S")]
        {
            assert_eq!(iso8601(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn sentences_are_cut_between_characters() {
        assert_eq!(clipped("short".to_owned(), 10), "short");
        let cut = clipped("é".repeat(600), 1001);
        assert!(cut.len() <= 1001 && cut.ends_with('…'), "{}", cut.len());
    }
}
