//! `torpor.access.v1.AccessKeyService`. For operators only: who holds a key
//! makes no keys.

use std::time::SystemTime;

use api::access::v1::access_key_service_server::AccessKeyService;
use api::access::v1::{
    CreateAccessKeyRequest, CreateAccessKeyResponse, DeleteAccessKeyRequest, DeleteAccessKeyResponse,
    ListAccessKeysRequest, ListAccessKeysResponse,
};
use rpc::Role::Admin;
use rpc::authorize;
use tonic::{Request, Response, Status};

use super::{Shared, fitting, validation};

/// Largest page of keys.
const PAGE_MAX: u32 = 100;

type Answer<T> = Result<Response<T>, Status>;

/// The service.
#[derive(Debug)]
pub struct AccessKeys {
    shared: Shared,
}

impl AccessKeys {
    /// The service over the running term.
    pub(super) fn new(shared: Shared) -> Self {
        Self { shared }
    }
}

#[tonic::async_trait]
impl AccessKeyService for AccessKeys {
    async fn create_access_key(
        &self,
        request: Request<CreateAccessKeyRequest>,
    ) -> Answer<CreateAccessKeyResponse> {
        authorize(&request, &[Admin])?;
        let term = self.shared.term()?;
        let asked = validation::access::create(request.get_ref(), SystemTime::now());
        let asked = asked.map_err(|r| self.shared.refuse(r))?;
        let stored = term.create_access_key(asked).await;
        let stored = stored.map_err(|r| self.shared.refuse(r))?;
        Ok(Response::new(CreateAccessKeyResponse {
            access_key: stored.access_key,
            secret_access_key: stored.secret_access_key,
        }))
    }

    async fn list_access_keys(
        &self,
        request: Request<ListAccessKeysRequest>,
    ) -> Answer<ListAccessKeysResponse> {
        authorize(&request, &[Admin])?;
        let term = self.shared.term()?;
        let request = request.get_ref();
        let size = validation::page_size(request.page_size, PAGE_MAX).map_err(|r| self.shared.refuse(r))?;
        let after = match request.page_token.as_str() {
            "" => String::new(),
            token => validation::access::id(token, "pageToken").map_err(|r| self.shared.refuse(r))?,
        };
        let mut keys = term.access_keys().await.map_err(|r| self.shared.refuse(r))?;
        keys.retain(|key| key.access_key_id > after);
        let all = keys.len();
        keys.truncate(size);
        let keys = fitting(keys);
        let last = keys.last().filter(|_| keys.len() < all);
        Ok(Response::new(ListAccessKeysResponse {
            next_page_token: last.map(|key| key.access_key_id.clone()).unwrap_or_default(),
            access_keys: keys,
        }))
    }

    async fn delete_access_key(
        &self,
        request: Request<DeleteAccessKeyRequest>,
    ) -> Answer<DeleteAccessKeyResponse> {
        authorize(&request, &[Admin])?;
        let term = self.shared.term()?;
        let id = validation::access::id(&request.get_ref().access_key_id, "accessKeyId");
        let id = id.map_err(|r| self.shared.refuse(r))?;
        term.delete_access_key(id).await.map_err(|r| self.shared.refuse(r))?;
        Ok(Response::new(DeleteAccessKeyResponse {}))
    }
}
