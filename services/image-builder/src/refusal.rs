//! Why a call was refused, as callers read it.

use model::Violations;

use crate::adapters::catalog::Error as CatalogError;

#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("{0}")]
    Invalid(Violations),
    /// No image, or base, has this ARN.
    #[error("MicroVMImage not found for MicroVMImageID: {0}")]
    ImageNotFound(String),
    /// The image with this ARN has no such version.
    #[error("MicroVMImage not found for MicroVMImage: {0}, Version: {1}")]
    VersionNotFound(String, String),
    /// No build has this id.
    #[error("MicroVM image build not found: {0}")]
    BuildNotFound(String),
    #[error("A MicroVM image with the name '{0}' already exists in this account")]
    AlreadyExists(String),
    #[error("The client token was used with other parameters")]
    TokenConflict,
    /// The state of the image with this ARN forbids it.
    #[error("{sentence}")]
    State { arn: String, sentence: String },
    /// The image with this ARN, or a version of it, cannot be deleted as it is.
    #[error("{sentence}")]
    NotDeletable { arn: String, sentence: String },
    /// MicroVMs of the image, or of its version, are alive: the text is nothing, or " version".
    #[error("Cannot delete microvm image{0} with running microvms.")]
    InUse(&'static str),
    #[error("No active version found for MicroVM image {0}")]
    NoActiveVersion(String),
    #[error("{sentence}")]
    Quota { quota: &'static str, limit: usize, sentence: String },
    /// A base image could not be made; the sentence says why.
    #[error("{0}")]
    BaseImage(String),
    /// Records changed between the call's reads and its write. Nothing was written; the call may start over.
    #[error("The image changes too often; try again")]
    Conflict,
    /// A peer or a store did not answer.
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    Internal(String),
}

impl Refusal {
    /// One field that breaks a rule.
    pub fn invalid(field: &str, message: impl Into<String>) -> Self {
        let mut violations = Violations::default();
        violations.add(field, message);
        Self::Invalid(violations)
    }
}

impl From<CatalogError> for Refusal {
    fn from(error: CatalogError) -> Self {
        match &error {
            CatalogError::Store(store) if store.is_unavailable() => Self::Unavailable(error.to_string()),
            _ if error.is_conflict() => Self::Conflict,
            _ => Self::Internal(error.to_string()),
        }
    }
}
