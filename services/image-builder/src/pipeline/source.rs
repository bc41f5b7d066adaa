//! FETCH and UNPACK: the artifact becomes a directory.

use api::image::v1::BuildStep;
use object_store::Error as ObjectError;

use super::StepError;
use super::job::Job;
use crate::adapters::unpack::{Error as UnpackError, unpack};
use crate::domain::archive::Refusal;
use crate::domain::build_error::{BuildError, Reason};
use crate::domain::configuration::S3Uri;

impl Job {
    pub(super) async fn fetch(&mut self) -> Result<(), StepError> {
        let step = BuildStep::Fetch;
        let configuration = self.version.configuration.as_ref();
        let uri = configuration.and_then(|c| c.code_artifact.as_ref()).map_or("", |artifact| &artifact.uri);
        let place =
            S3Uri::parse(uri).ok_or_else(|| BuildError::internal(step, "the artifact has no address"))?;
        let limit = self.context.config.archive.bytes_max;
        self.note(format!("Fetching {uri}."));
        let objects = &self.context.objects;
        let fetched =
            objects.get_file(&place.bucket, &place.key, &self.work.artifact(), limit, &|_, _| {}).await;
        let fetched = match fetched {
            Ok(bytes) => bytes,
            // A missing bucket looks like a missing key to a request without an
            // answer body; a listing tells them apart.
            Err(error @ ObjectError::NotFound { .. }) => {
                let listed = objects.list_prefix(&place.bucket, &place.key, 1).await;
                let error = match listed {
                    Err(missing @ ObjectError::NoSuchBucket { .. }) => missing,
                    _ => error,
                };
                return Err(refused(error, uri, limit).into());
            }
            Err(error) => return Err(refused(error, uri, limit).into()),
        };
        self.note(format!("Fetched {fetched} bytes."));
        Ok(())
    }

    pub(super) async fn unpack(&mut self) -> Result<(), StepError> {
        let step = BuildStep::Unpack;
        let (archive, target) = (self.work.artifact(), self.work.context());
        let limits = self.context.config.archive.clone();
        let owner = self.context.config.build.uid_base;
        let unpacked = tokio::task::spawn_blocking(move || unpack(&archive, &target, &limits, owner))
            .await
            .map_err(|error| BuildError::internal(step, error))?;
        match unpacked {
            Ok(unpacked) => {
                let left_out = match unpacked.left_out {
                    0 => String::new(),
                    count => format!("; {count} entries that say nothing of it are left out"),
                };
                self.note(format!(
                    "Unpacked {} entries, {} bytes{left_out}.",
                    unpacked.entries, unpacked.bytes
                ));
                Ok(())
            }
            Err(UnpackError::Io(error)) => {
                Err(BuildError::io(step, "cannot unpack the artifact", &error).into())
            }
            Err(UnpackError::Refused(refusal)) => {
                let reason = match &refusal {
                    Refusal::Invalid(_) => Reason::ArchiveInvalid,
                    Refusal::TooLarge(_) => Reason::ArchiveTooLarge,
                    Refusal::DockerfileNotFound(_) => Reason::ArchiveDockerfileNotFound,
                };
                Err(BuildError::new(step, reason, refusal.to_string()).into())
            }
        }
    }
}

fn refused(error: ObjectError, uri: &str, limit: u64) -> BuildError {
    let (reason, sentence) = match &error {
        ObjectError::NotFound { .. } => (Reason::S3NoSuchKey, format!("The artifact {uri} does not exist.")),
        ObjectError::NoSuchBucket { bucket } => {
            (Reason::S3NoSuchBucket, format!("The bucket {bucket} of the artifact {uri} does not exist."))
        }
        ObjectError::AccessDenied { .. } => {
            (Reason::S3AccessDenied, format!("Access to the artifact {uri} was denied."))
        }
        ObjectError::TooLarge { .. } => {
            (Reason::ArchiveTooLarge, format!("The artifact {uri} is larger than {limit} bytes."))
        }
        ObjectError::Unavailable { .. } => {
            (Reason::DependencyUnavailable, format!("S3 did not give out the artifact {uri}: {error}."))
        }
        ObjectError::File { source, .. } => {
            return BuildError::io(BuildStep::Fetch, "cannot store the artifact", source);
        }
        other => (Reason::InternalPlatformError, format!("The artifact {uri} cannot be fetched: {other}.")),
    };
    BuildError::new(BuildStep::Fetch, reason, sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_store_says_has_a_documented_code() {
        let (bucket, key) = ("artifacts".to_owned(), "app.zip".to_owned());
        for (error, code) in [
            (ObjectError::NotFound { bucket: bucket.clone(), key: key.clone() }, "S3_NO_SUCH_KEY"),
            (ObjectError::NoSuchBucket { bucket: bucket.clone() }, "S3_NO_SUCH_BUCKET"),
            (
                ObjectError::AccessDenied {
                    bucket: bucket.clone(),
                    key: key.clone(),
                    code: "AccessDenied".to_owned(),
                },
                "S3_ACCESS_DENIED",
            ),
            (ObjectError::TooLarge { bucket, key, limit: 1 }, "ARCHIVE_TOO_LARGE"),
        ] {
            let failure = refused(error, "s3://artifacts/app.zip", 1);
            assert_eq!(failure.reason.code(), code);
            assert!(failure.sentence.contains("artifacts"), "{}", failure.sentence);
        }
    }
}
