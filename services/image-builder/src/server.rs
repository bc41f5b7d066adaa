//! The gRPC face: decode, one call, encode.

use std::pin::Pin;

use api::image::v1::image_service_server::ImageService;
use api::image::v1::*;
use futures::{Stream, StreamExt as _};
use rpc::{Role, authorize};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::bases::BaseImages;
use crate::images::{BuildRequest, Images};
use crate::log::BuildLogs;
use crate::refusal::Refusal;

mod status;

use status::status;

const READERS: [Role; 3] = [Role::Admin, Role::EdgeProxy, Role::Scheduler];
const WRITERS: [Role; 2] = [Role::Admin, Role::EdgeProxy];

#[derive(Debug, Clone)]
pub struct Service {
    pub images: Images,
    pub bases: BaseImages,
    pub logs: BuildLogs,
}

type Answer<T> = Result<Response<T>, Status>;

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn messages<T: Send + 'static>(receiver: mpsc::Receiver<Result<T, Refusal>>) -> Answer<Messages<T>> {
    Ok(Response::new(Box::pin(ReceiverStream::new(receiver).map(|message| message.map_err(status)))))
}

#[tonic::async_trait]
impl ImageService for Service {
    async fn create_image(&self, request: Request<CreateImageRequest>) -> Answer<CreateImageResponse> {
        authorize(&request, &WRITERS)?;
        let CreateImageRequest { name, configuration, tags, client_token } = request.into_inner();
        let request = BuildRequest { name, configuration, tags, client_token, create: true };
        let (image, version) = self.images.build(request).await.map_err(status)?;
        Ok(Response::new(CreateImageResponse { image: Some(image), version: Some(version) }))
    }

    async fn update_image(&self, request: Request<UpdateImageRequest>) -> Answer<UpdateImageResponse> {
        authorize(&request, &WRITERS)?;
        let UpdateImageRequest { image_identifier: name, configuration, client_token } = request.into_inner();
        let tags = Default::default();
        let request = BuildRequest { name, configuration, tags, client_token, create: false };
        let (image, version) = self.images.build(request).await.map_err(status)?;
        Ok(Response::new(UpdateImageResponse { image: Some(image), version: Some(version) }))
    }

    async fn get_image(&self, request: Request<GetImageRequest>) -> Answer<GetImageResponse> {
        authorize(&request, &READERS)?;
        let image = self.images.get(&request.into_inner().image_identifier).await.map_err(status)?;
        Ok(Response::new(GetImageResponse { image: Some(image.value) }))
    }

    async fn list_images(&self, request: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        authorize(&request, &READERS)?;
        let request = request.into_inner();
        let page = (request.page_size, request.page_token.as_str());
        let listed = self.images.list(&request.name_filter, page).await;
        let (images, next_page_token) = listed.map_err(status)?;
        Ok(Response::new(ListImagesResponse { images, next_page_token }))
    }

    async fn delete_image(&self, request: Request<DeleteImageRequest>) -> Answer<DeleteImageResponse> {
        authorize(&request, &WRITERS)?;
        let image = self.images.delete(&request.into_inner().image_identifier).await.map_err(status)?;
        Ok(Response::new(DeleteImageResponse { image: Some(image) }))
    }

    async fn get_image_version(
        &self,
        request: Request<GetImageVersionRequest>,
    ) -> Answer<GetImageVersionResponse> {
        authorize(&request, &READERS)?;
        let request = request.into_inner();
        let version = self.images.get_version(&request.image_identifier, &request.image_version).await;
        Ok(Response::new(GetImageVersionResponse { version: Some(version.map_err(status)?.value) }))
    }

    async fn list_image_versions(
        &self,
        request: Request<ListImageVersionsRequest>,
    ) -> Answer<ListImageVersionsResponse> {
        authorize(&request, &READERS)?;
        let request = request.into_inner();
        let page = (request.page_size, request.page_token.as_str());
        let listed = self.images.list_versions(&request.image_identifier, page).await;
        let (versions, next_page_token) = listed.map_err(status)?;
        Ok(Response::new(ListImageVersionsResponse { versions, next_page_token }))
    }

    async fn update_image_version(
        &self,
        request: Request<UpdateImageVersionRequest>,
    ) -> Answer<UpdateImageVersionResponse> {
        authorize(&request, &WRITERS)?;
        let request = request.into_inner();
        let wanted = request.status();
        let version = self.images.set_status(&request.image_identifier, &request.image_version, wanted).await;
        Ok(Response::new(UpdateImageVersionResponse { version: Some(version.map_err(status)?) }))
    }

    async fn delete_image_version(
        &self,
        request: Request<DeleteImageVersionRequest>,
    ) -> Answer<DeleteImageVersionResponse> {
        authorize(&request, &WRITERS)?;
        let request = request.into_inner();
        let version = self.images.delete_version(&request.image_identifier, &request.image_version).await;
        Ok(Response::new(DeleteImageVersionResponse { version: Some(version.map_err(status)?) }))
    }

    async fn get_image_build(&self, request: Request<GetImageBuildRequest>) -> Answer<GetImageBuildResponse> {
        authorize(&request, &READERS)?;
        let build = self.images.get_build(&request.into_inner().build_id).await.map_err(status)?;
        Ok(Response::new(GetImageBuildResponse { build: Some(build) }))
    }

    async fn list_image_builds(
        &self,
        request: Request<ListImageBuildsRequest>,
    ) -> Answer<ListImageBuildsResponse> {
        authorize(&request, &READERS)?;
        let request = request.into_inner();
        let page = (request.page_size, request.page_token.as_str());
        let listed = self.images.list_builds(&request.image_identifier, &request.image_version, page).await;
        let (builds, next_page_token) = listed.map_err(status)?;
        Ok(Response::new(ListImageBuildsResponse { builds, next_page_token }))
    }

    async fn tag_image(&self, request: Request<TagImageRequest>) -> Answer<TagImageResponse> {
        authorize(&request, &WRITERS)?;
        let TagImageRequest { image_identifier, tags } = request.into_inner();
        let image = self.images.tag(&image_identifier, &tags).await.map_err(status)?;
        Ok(Response::new(TagImageResponse { image: Some(image) }))
    }

    async fn untag_image(&self, request: Request<UntagImageRequest>) -> Answer<UntagImageResponse> {
        authorize(&request, &WRITERS)?;
        let UntagImageRequest { image_identifier, tag_keys } = request.into_inner();
        let image = self.images.untag(&image_identifier, &tag_keys).await;
        Ok(Response::new(UntagImageResponse { image: Some(image.map_err(status)?) }))
    }

    type FollowBuildLogStream = Messages<FollowBuildLogResponse>;

    async fn follow_build_log(
        &self,
        request: Request<FollowBuildLogRequest>,
    ) -> Answer<Self::FollowBuildLogStream> {
        authorize(&request, &READERS)?;
        let request = request.into_inner();
        let build = self.images.get_build(&request.build_id).await.map_err(status)?;
        messages(self.logs.follow(build, &request))
    }

    async fn list_base_images(
        &self,
        request: Request<ListBaseImagesRequest>,
    ) -> Answer<ListBaseImagesResponse> {
        authorize(&request, &READERS)?;
        let request = request.into_inner();
        let page = (request.page_size, request.page_token.as_str());
        let (base_images, next_page_token) = self.bases.list(page).await.map_err(status)?;
        Ok(Response::new(ListBaseImagesResponse { base_images, next_page_token }))
    }

    async fn list_base_image_versions(
        &self,
        request: Request<ListBaseImageVersionsRequest>,
    ) -> Answer<ListBaseImageVersionsResponse> {
        authorize(&request, &READERS)?;
        let request = request.into_inner();
        let page = (request.page_size, request.page_token.as_str());
        let listed = self.bases.list_versions(&request.base_image_identifier, page).await;
        let (versions, next_page_token) = listed.map_err(status)?;
        Ok(Response::new(ListBaseImageVersionsResponse { versions, next_page_token }))
    }

    type BuildBaseImageStream = Messages<BuildBaseImageResponse>;

    async fn build_base_image(
        &self,
        request: Request<BuildBaseImageRequest>,
    ) -> Answer<Self::BuildBaseImageStream> {
        authorize(&request, &WRITERS)?;
        messages(self.bases.make(request.into_inner()).map_err(status)?)
    }
}
