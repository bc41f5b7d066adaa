//! `Debug` for messages that carry environment variables, payloads, tokens or
//! entropy: the fields that identify them, never the secrets. Deriving it would
//! put secrets into logs the first time somebody writes `{:?}`.

use std::fmt;

macro_rules! redacted {
    ($type:path, $name:literal, $($field:ident),*) => {
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct($name)$(.field(stringify!($field), &self.$field))*.finish_non_exhaustive()
            }
        }
    };
}

redacted!(crate::guest::v1::RepairIdentityRequest, "RepairIdentityRequest", microvm_id, restore_count);
redacted!(crate::guest::v1::StartAppRequest, "StartAppRequest", working_directory, user);
redacted!(crate::guest::v1::CallHookRequest, "CallHookRequest", kind, port, timeout);
redacted!(
    crate::image::v1::ImageConfiguration,
    "ImageConfiguration",
    code_artifact,
    base_image_arn,
    resources
);
redacted!(crate::image::v1::AppConfiguration, "AppConfiguration", exposed_ports, user);
redacted!(crate::hostagent::v1::BakeRequest, "BakeRequest", build_id, generation, image_name, image_version);
redacted!(crate::hostagent::v1::MicrovmSpec, "MicrovmSpec", microvm_id, image_name, image_version);
redacted!(crate::microvm::v1::RunMicrovmRequest, "RunMicrovmRequest", image_identifier, image_version);
redacted!(crate::microvm::v1::CreateMicrovmAuthTokenResponse, "CreateMicrovmAuthTokenResponse", expire_time);
redacted!(
    crate::microvm::v1::CreateMicrovmShellAuthTokenResponse,
    "CreateMicrovmShellAuthTokenResponse",
    expire_time
);
redacted!(
    crate::microvm::v1::CreateMicrovmInvitationResponse,
    "CreateMicrovmInvitationResponse",
    expire_time
);
redacted!(
    crate::microvm::v1::RedeemMicrovmInvitationRequest,
    "RedeemMicrovmInvitationRequest",
    endpoint_label
);
redacted!(
    crate::microvm::v1::RedeemMicrovmInvitationResponse,
    "RedeemMicrovmInvitationResponse",
    session_duration
);
redacted!(crate::access::v1::StoredAccessKey, "StoredAccessKey", access_key);
redacted!(crate::access::v1::CreateAccessKeyResponse, "CreateAccessKeyResponse", access_key);
redacted!(crate::domain::v1::StoredDomain, "StoredDomain", domain);
redacted!(crate::domain::v1::CreateDomainRequest, "CreateDomainRequest", name);
redacted!(crate::domain::v1::UpdateDomainRequest, "UpdateDomainRequest", name);
