//! The gRPC face: decode, one call, encode.

use std::sync::Arc;

use api::image::v1::image_service_server::ImageService;
use api::image::v1::*;
use model::VersionNumber;
use rpc::{Role, authorize};
use tonic::{Request, Response, Status};

use crate::images::{Images, Order};
use crate::pipeline::Context;

mod base;
mod follow;
mod paging;
mod refusal;

use paging::{falling, page};
use refusal::status;

/// Who may read.
const READERS: [Role; 3] = [Role::Admin, Role::EdgeProxy, Role::Scheduler];
/// Who may change something.
const WRITERS: [Role; 2] = [Role::Admin, Role::EdgeProxy];

/// The service.
#[derive(Debug, Clone)]
pub struct Service {
    images: Images,
    context: Arc<Context>,
}

impl Service {
    /// The service over images and builds.
    #[must_use]
    pub fn new(images: Images, context: Arc<Context>) -> Self {
        Self { images, context }
    }
}

type Answer<T> = Result<Response<T>, Status>;

/// What is to be built: an image's first version, or unless `create` its next one.
fn order(request: CreateImageRequest, create: bool) -> Order {
    let CreateImageRequest { name, configuration, tags, client_token } = request;
    Order { name, configuration, tags, client_token, create }
}

#[tonic::async_trait]
impl ImageService for Service {
    async fn create_image(&self, request: Request<CreateImageRequest>) -> Answer<CreateImageResponse> {
        authorize(&request, &WRITERS)?;
        let order = order(request.into_inner(), true);
        let (image, version) = self.images.build(order).await.map_err(status)?;
        Ok(Response::new(CreateImageResponse { image: Some(image), version: Some(version) }))
    }

    async fn update_image(&self, request: Request<UpdateImageRequest>) -> Answer<UpdateImageResponse> {
        authorize(&request, &WRITERS)?;
        let UpdateImageRequest { image_identifier: name, configuration, client_token } = request.into_inner();
        let request = CreateImageRequest { name, configuration, client_token, tags: Default::default() };
        let order = order(request, false);
        let (image, version) = self.images.build(order).await.map_err(status)?;
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
        let images = self.images.catalog.images().await.map_err(|error| status(error.into()))?;
        let wanted = images.into_iter().map(|record| record.value);
        let wanted = wanted.filter(|image| image.name.contains(&request.name_filter)).collect();
        let (images, next_page_token) =
            page("images", wanted, request.page_size, &request.page_token, |image: &Image| {
                image.name.clone()
            })?;
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
        let image = self.images.get(&request.image_identifier).await.map_err(status)?.value;
        let versions =
            self.images.catalog.versions(&image.name).await.map_err(|error| status(error.into()))?;
        let versions = versions.into_iter().map(|record| record.value).collect();
        let (versions, next_page_token) = page(
            &format!("versions/{}", image.id),
            versions,
            request.page_size,
            &request.page_token,
            version_key,
        )?;
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
        let build = follow::build(&self.context, &request.into_inner().build_id).await?;
        Ok(Response::new(GetImageBuildResponse { build: Some(build) }))
    }

    async fn list_image_builds(
        &self,
        request: Request<ListImageBuildsRequest>,
    ) -> Answer<ListImageBuildsResponse> {
        authorize(&request, &READERS)?;
        let request = request.into_inner();
        let image = self.images.get(&request.image_identifier).await.map_err(status)?.value;
        let number = match request.image_version.as_str() {
            "" => image.latest_image_version.as_str(),
            given => given,
        };
        let version = self.images.version_of(&image, number).await.map_err(status)?.value;
        let number = version.image_version;
        let builds =
            self.images.catalog.builds(&image.name, &number).await.map_err(|error| status(error.into()))?;
        let builds = builds.into_iter().map(|record| record.value).collect();
        let list = format!("builds/{}/{number}", image.id);
        let (builds, next_page_token) =
            page(&list, builds, request.page_size, &request.page_token, build_key)?;
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

    type FollowBuildLogStream = follow::LogStream;

    async fn follow_build_log(&self, request: Request<FollowBuildLogRequest>) -> Answer<follow::LogStream> {
        authorize(&request, &READERS)?;
        Ok(Response::new(follow::start(Arc::clone(&self.context), request.into_inner()).await?))
    }

    async fn list_base_images(
        &self,
        request: Request<ListBaseImagesRequest>,
    ) -> Answer<ListBaseImagesResponse> {
        authorize(&request, &READERS)?;
        let request = request.into_inner();
        let bases = self.images.bases().await.map_err(status)?;
        let key = |base: &BaseImage| base.name.clone();
        let (base_images, next_page_token) =
            page("bases", bases, request.page_size, &request.page_token, key)?;
        Ok(Response::new(ListBaseImagesResponse { base_images, next_page_token }))
    }

    async fn list_base_image_versions(
        &self,
        request: Request<ListBaseImageVersionsRequest>,
    ) -> Answer<ListBaseImageVersionsResponse> {
        authorize(&request, &READERS)?;
        let request = request.into_inner();
        let versions = self.images.base_versions(&request.base_image_identifier).await.map_err(status)?;
        let list = versions.first().map(|version| format!("bases/{}", version.name));
        let key = |version: &BaseImageVersion| falling(version.version.parse().unwrap_or(0));
        let (versions, next_page_token) =
            page(&list.unwrap_or_default(), versions, request.page_size, &request.page_token, key)?;
        Ok(Response::new(ListBaseImageVersionsResponse { versions, next_page_token }))
    }

    type BuildBaseImageStream = base::BaseStream;

    async fn build_base_image(&self, request: Request<BuildBaseImageRequest>) -> Answer<base::BaseStream> {
        authorize(&request, &WRITERS)?;
        Ok(Response::new(base::start(Arc::clone(&self.context), self.images.clone(), request.into_inner())?))
    }
}

/// Newest first.
fn version_key(version: &ImageVersion) -> String {
    let number = version.image_version.parse::<VersionNumber>();
    let (major, minor) = number.map_or((0, 0), |number| (number.major, number.minor));
    format!("{}.{}", falling(major.into()), falling(minor.into()))
}

/// Newest first; those of one moment by their ids, as the catalog has them.
fn build_key(build: &ImageBuild) -> String {
    let time = build.create_time.unwrap_or_default();
    let seconds = falling(u64::try_from(time.seconds).unwrap_or(0));
    let nanos = falling(u64::try_from(time.nanos).unwrap_or(0));
    format!("{seconds}.{nanos}/{}", build.build_id)
}
