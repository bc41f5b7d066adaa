//! `torpor.connector.v1.NetworkConnectorService`.

use std::collections::BTreeMap;

use api::connector::v1::network_connector_service_server::NetworkConnectorService;
use api::connector::v1::{
    CreateNetworkConnectorRequest, CreateNetworkConnectorResponse, DeleteNetworkConnectorRequest,
    DeleteNetworkConnectorResponse, GetNetworkConnectorRequest, GetNetworkConnectorResponse,
    ListNetworkConnectorVersionsRequest, ListNetworkConnectorVersionsResponse, ListNetworkConnectorsRequest,
    ListNetworkConnectorsResponse, NetworkConnector, TagNetworkConnectorRequest, TagNetworkConnectorResponse,
    UntagNetworkConnectorRequest, UntagNetworkConnectorResponse, UpdateNetworkConnectorRequest,
    UpdateNetworkConnectorResponse,
};
use model::Violations;
use model::limits::CONNECTOR_PAGES;
use model::state::ConnectorState;
use rpc::Role::{Admin, EdgeProxy, ImageBuilder};
use rpc::{Role, authorize};
use tonic::{Request, Response, Status};

use super::validation::connectors as validation;
use super::{Shared, fitting, validation as common, wire};
use crate::domain::connectors::Entry;
use crate::refusal::Refusal;
use crate::term::connectors::ConnectorRef;

/// Who changes connectors.
const CALLERS: &[Role] = &[Admin, EdgeProxy];
/// Who only reads: image-builder asks what a build may use.
const READERS: &[Role] = &[Admin, EdgeProxy, ImageBuilder];
/// Page size a caller gets who asks for none.
const PAGE_DEFAULT: u32 = 50;

type Answer<T> = Result<Response<T>, Status>;

/// The service.
#[derive(Debug)]
pub struct NetworkConnectors {
    shared: Shared,
}

impl NetworkConnectors {
    /// The service over the running term.
    pub(super) fn new(shared: Shared) -> Self {
        Self { shared }
    }

    fn refuse(&self, refusal: Refusal) -> Status {
        self.shared.refuse(refusal)
    }

    fn show(&self, entry: &Entry, version: Option<u64>) -> NetworkConnector {
        wire::connector(&entry.connector, version, &self.shared.settings)
    }

    fn named(&self, text: &str) -> Result<ConnectorRef, Status> {
        validation::unqualified(text, &self.shared.settings).map_err(|r| self.refuse(r))
    }

    fn page_size(&self, asked: u32) -> Result<usize, Status> {
        let asked = if asked == 0 { PAGE_DEFAULT } else { asked };
        common::page_size(asked, CONNECTOR_PAGES.1).map_err(|r| self.refuse(r))
    }

    fn bad_token(&self) -> Status {
        let mut violations = Violations::default();
        violations.add("pageToken", "is not a page token");
        self.refuse(Refusal::Invalid(violations))
    }
}

#[tonic::async_trait]
impl NetworkConnectorService for NetworkConnectors {
    async fn create_network_connector(
        &self,
        request: Request<CreateNetworkConnectorRequest>,
    ) -> Answer<CreateNetworkConnectorResponse> {
        authorize(&request, CALLERS)?;
        let term = self.shared.term()?;
        let asked = validation::create(request.get_ref()).map_err(|r| self.refuse(r))?;
        let entry = term.create_connector(asked).await.map_err(|r| self.refuse(r))?;
        Ok(Response::new(CreateNetworkConnectorResponse { connector: Some(self.show(&entry, None)) }))
    }

    async fn get_network_connector(
        &self,
        request: Request<GetNetworkConnectorRequest>,
    ) -> Answer<GetNetworkConnectorResponse> {
        authorize(&request, READERS)?;
        let term = self.shared.term()?;
        let named = validation::identifier(&request.get_ref().identifier, &self.shared.settings);
        let named = named.map_err(|r| self.refuse(r))?;
        let entry = term.connector(&named).map_err(|r| self.refuse(r))?;
        let latest = entry.connector.usable().map_or(0, |(number, _)| number);
        Ok(Response::new(GetNetworkConnectorResponse {
            connector: Some(self.show(&entry, named.version)),
            latest_version: latest,
        }))
    }

    async fn list_network_connectors(
        &self,
        request: Request<ListNetworkConnectorsRequest>,
    ) -> Answer<ListNetworkConnectorsResponse> {
        authorize(&request, READERS)?;
        let term = self.shared.term()?;
        let request = request.get_ref();
        let size = self.page_size(request.page_size)?.min(CONNECTOR_PAGES.0 as usize);
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(token.parse().map_err(|_| self.bad_token())?),
        };
        let state = validation::state(request.state());
        let (page, more) = term.connectors.all().page(after.as_ref(), state, size);
        let shown = page.iter().map(|entry| self.show(entry, None)).collect();
        let connectors: Vec<NetworkConnector> = fitting(shown);
        let last = connectors.last().filter(|_| more || connectors.len() < page.len());
        Ok(Response::new(ListNetworkConnectorsResponse {
            next_page_token: last.map_or_else(String::new, |connector| connector.name.clone()),
            connectors,
        }))
    }

    async fn update_network_connector(
        &self,
        request: Request<UpdateNetworkConnectorRequest>,
    ) -> Answer<UpdateNetworkConnectorResponse> {
        authorize(&request, CALLERS)?;
        let term = self.shared.term()?;
        let request = request.get_ref();
        let (change, used) = validation::update(request).map_err(|r| self.refuse(r))?;
        let named = self.named(&request.identifier)?;
        let entry = term.update_connector(named, change, used).await;
        let entry = entry.map_err(|r| self.refuse(r))?;
        Ok(Response::new(UpdateNetworkConnectorResponse { connector: Some(self.show(&entry, None)) }))
    }

    async fn delete_network_connector(
        &self,
        request: Request<DeleteNetworkConnectorRequest>,
    ) -> Answer<DeleteNetworkConnectorResponse> {
        authorize(&request, CALLERS)?;
        let term = self.shared.term()?;
        let named = validation::identifier(&request.get_ref().identifier, &self.shared.settings);
        let named = named.map_err(|r| self.refuse(r))?;
        let version = named.version;
        let entry = term.delete_connector(named).await.map_err(|r| self.refuse(r))?;
        Ok(Response::new(DeleteNetworkConnectorResponse { connector: Some(self.show(&entry, version)) }))
    }

    async fn list_network_connector_versions(
        &self,
        request: Request<ListNetworkConnectorVersionsRequest>,
    ) -> Answer<ListNetworkConnectorVersionsResponse> {
        authorize(&request, READERS)?;
        let term = self.shared.term()?;
        let request = request.get_ref();
        let size = self.page_size(request.page_size)?;
        let named = self.named(&request.identifier)?;
        let before: u64 = match request.page_token.as_str() {
            "" => u64::MAX,
            token => token.parse().map_err(|_| self.bad_token())?,
        };
        let wanted = validation::state(request.state());
        let entry = term.connector(&named).map_err(|r| self.refuse(r))?;
        let fits = |state: ConnectorState| wanted.is_none_or(|wanted| wanted == state);
        let older = entry.connector.versions.range(..before).rev();
        let mut found = older.filter(|(_, version)| fits(version.state));
        let page: Vec<u64> = found.by_ref().take(size).map(|(number, _)| *number).collect();
        let more = found.next().is_some();
        let shown = page.iter().map(|number| self.show(&entry, Some(*number))).collect();
        let versions: Vec<NetworkConnector> = fitting(shown);
        let last = versions.last().filter(|_| more || versions.len() < page.len());
        Ok(Response::new(ListNetworkConnectorVersionsResponse {
            next_page_token: last.map_or_else(String::new, |version| version.version.to_string()),
            versions,
        }))
    }

    async fn tag_network_connector(
        &self,
        request: Request<TagNetworkConnectorRequest>,
    ) -> Answer<TagNetworkConnectorResponse> {
        authorize(&request, CALLERS)?;
        let term = self.shared.term()?;
        let request = request.get_ref();
        let tags = validation::tags_to_set(&request.tags).map_err(|r| self.refuse(r))?;
        let named = self.named(&request.identifier)?;
        let entry = term.tag_connector(named, tags, Vec::new()).await;
        let entry = entry.map_err(|r| self.refuse(r))?;
        Ok(Response::new(TagNetworkConnectorResponse { connector: Some(self.show(&entry, None)) }))
    }

    async fn untag_network_connector(
        &self,
        request: Request<UntagNetworkConnectorRequest>,
    ) -> Answer<UntagNetworkConnectorResponse> {
        authorize(&request, CALLERS)?;
        let term = self.shared.term()?;
        let request = request.get_ref();
        let keys = validation::tags_to_remove(&request.tag_keys).map_err(|r| self.refuse(r))?;
        let named = self.named(&request.identifier)?;
        let entry = term.tag_connector(named, BTreeMap::new(), keys).await;
        let entry = entry.map_err(|r| self.refuse(r))?;
        Ok(Response::new(UntagNetworkConnectorResponse { connector: Some(self.show(&entry, None)) }))
    }
}
