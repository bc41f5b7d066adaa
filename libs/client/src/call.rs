//! The unary calls of a fleet's services, each by its request message. The methods
//! are compiled here, once, not in every program and test that calls.

use futures::future::BoxFuture;
use rpc::{CallBounds, Replicas, Role};
use tonic::Status;

/// A request that a service answers with one message.
pub trait Call: Clone + Send + Sized + 'static {
    type Answer: Send + 'static;
    const ROLE: Role;

    /// Makes the call.
    fn send(self, replicas: &Replicas, bounds: CallBounds) -> BoxFuture<'_, Result<Self::Answer, Status>>;
}

macro_rules! calls {
    ($($role:ident $package:ident::$module:ident::$client:ident {
        $($method:ident($request:ident) -> $answer:ident;)*
    })*) => {
        $($(
            impl Call for api::$package::v1::$request {
                type Answer = api::$package::v1::$answer;
                const ROLE: Role = Role::$role;

                fn send(
                    self,
                    replicas: &Replicas,
                    bounds: CallBounds,
                ) -> BoxFuture<'_, Result<Self::Answer, Status>> {
                    Box::pin(replicas.call(bounds, self, |channel, request| async move {
                        api::$package::v1::$module::$client::new(channel).$method(request).await
                    }))
                }
            }
        )*)*
    };
}

calls! {
    Scheduler microvm::microvm_service_client::MicrovmServiceClient {
        run_microvm(RunMicrovmRequest) -> RunMicrovmResponse;
        get_microvm(GetMicrovmRequest) -> GetMicrovmResponse;
        list_microvms(ListMicrovmsRequest) -> ListMicrovmsResponse;
        get_usage(GetUsageRequest) -> GetUsageResponse;
        suspend_microvm(SuspendMicrovmRequest) -> SuspendMicrovmResponse;
        resume_microvm(ResumeMicrovmRequest) -> ResumeMicrovmResponse;
        checkpoint_microvm(CheckpointMicrovmRequest) -> CheckpointMicrovmResponse;
        keep_microvm_awake(KeepMicrovmAwakeRequest) -> KeepMicrovmAwakeResponse;
        terminate_microvm(TerminateMicrovmRequest) -> TerminateMicrovmResponse;
        create_microvm_auth_token(CreateMicrovmAuthTokenRequest) -> CreateMicrovmAuthTokenResponse;
        create_microvm_shell_auth_token(CreateMicrovmShellAuthTokenRequest) -> CreateMicrovmShellAuthTokenResponse;
        revoke_microvm_auth_tokens(RevokeMicrovmAuthTokensRequest) -> RevokeMicrovmAuthTokensResponse;
        create_microvm_invitation(CreateMicrovmInvitationRequest) -> CreateMicrovmInvitationResponse;
    }
    Scheduler host::host_service_client::HostServiceClient {
        list_hosts(ListHostsRequest) -> ListHostsResponse;
        drain_host(DrainHostRequest) -> DrainHostResponse;
        undrain_host(UndrainHostRequest) -> UndrainHostResponse;
    }
    Scheduler access::access_key_service_client::AccessKeyServiceClient {
        create_access_key(CreateAccessKeyRequest) -> CreateAccessKeyResponse;
        list_access_keys(ListAccessKeysRequest) -> ListAccessKeysResponse;
        delete_access_key(DeleteAccessKeyRequest) -> DeleteAccessKeyResponse;
    }
    Scheduler connector::network_connector_service_client::NetworkConnectorServiceClient {
        create_network_connector(CreateNetworkConnectorRequest) -> CreateNetworkConnectorResponse;
        get_network_connector(GetNetworkConnectorRequest) -> GetNetworkConnectorResponse;
        delete_network_connector(DeleteNetworkConnectorRequest) -> DeleteNetworkConnectorResponse;
    }
    Scheduler domain::domain_service_client::DomainServiceClient {
        create_domain(CreateDomainRequest) -> CreateDomainResponse;
        get_domain(GetDomainRequest) -> GetDomainResponse;
        list_domains(ListDomainsRequest) -> ListDomainsResponse;
        update_domain(UpdateDomainRequest) -> UpdateDomainResponse;
        delete_domain(DeleteDomainRequest) -> DeleteDomainResponse;
    }
    ImageBuilder image::image_service_client::ImageServiceClient {
        create_image(CreateImageRequest) -> CreateImageResponse;
        update_image(UpdateImageRequest) -> UpdateImageResponse;
        get_image(GetImageRequest) -> GetImageResponse;
        list_images(ListImagesRequest) -> ListImagesResponse;
        delete_image(DeleteImageRequest) -> DeleteImageResponse;
        get_image_version(GetImageVersionRequest) -> GetImageVersionResponse;
        list_image_versions(ListImageVersionsRequest) -> ListImageVersionsResponse;
        delete_image_version(DeleteImageVersionRequest) -> DeleteImageVersionResponse;
        list_image_builds(ListImageBuildsRequest) -> ListImageBuildsResponse;
        list_base_images(ListBaseImagesRequest) -> ListBaseImagesResponse;
    }
}
