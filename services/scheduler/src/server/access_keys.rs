//! `torpor.access.v1.AccessKeyService`. For operators only: who holds a key makes no keys.

use api::access::v1::access_key_service_server::AccessKeyService;
use api::access::v1::*;
use rpc::Role::Admin;
use tonic::Request;

use super::validation::access_keys as validation;
use super::{Answer, Handlers, fitting, validation as common};

const PAGE_MAX: u32 = 100;

#[tonic::async_trait]
impl AccessKeyService for Handlers {
    async fn create_access_key(
        &self,
        request: Request<CreateAccessKeyRequest>,
    ) -> Answer<CreateAccessKeyResponse> {
        self.answer(request, &[Admin], |term, request| async move {
            let asked = validation::create(&request, term.wall())?;
            let stored = term.create_access_key(asked).await?;
            Ok(CreateAccessKeyResponse {
                access_key: stored.access_key,
                secret_access_key: stored.secret_access_key,
            })
        })
        .await
    }

    async fn list_access_keys(
        &self,
        request: Request<ListAccessKeysRequest>,
    ) -> Answer<ListAccessKeysResponse> {
        self.answer(request, &[Admin], |term, request| async move {
            let size = common::page_size(request.page_size, PAGE_MAX)?;
            let after = match request.page_token.as_str() {
                "" => String::new(),
                token => validation::id(token, "pageToken")?,
            };
            let mut keys = term.access_keys().await?;
            keys.retain(|key| key.access_key_id > after);
            let all = keys.len();
            keys.truncate(size);
            let keys = fitting(keys);
            let last = keys.last().filter(|_| keys.len() < all);
            Ok(ListAccessKeysResponse {
                next_page_token: last.map(|key| key.access_key_id.clone()).unwrap_or_default(),
                access_keys: keys,
            })
        })
        .await
    }

    async fn delete_access_key(
        &self,
        request: Request<DeleteAccessKeyRequest>,
    ) -> Answer<DeleteAccessKeyResponse> {
        self.answer(request, &[Admin], |term, request| async move {
            term.delete_access_key(validation::id(&request.access_key_id, "accessKeyId")?).await?;
            Ok(DeleteAccessKeyResponse {})
        })
        .await
    }
}
