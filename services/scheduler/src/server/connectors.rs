//! `torpor.connector.v1.NetworkConnectorService`.

use std::collections::BTreeMap;

use api::connector::v1::network_connector_service_server::NetworkConnectorService;
use api::connector::v1::*;
use model::Violations;
use model::limits::CONNECTOR_PAGES;
use model::state::ConnectorState;
use rpc::Role::{self, Admin, EdgeProxy, ImageBuilder};
use tonic::Request;

use super::validation::connectors as validation;
use super::{Answer, Handlers, fitting, validation as common, wire};
use crate::domain::connectors::Entry;
use crate::refusal::Refusal;
use crate::term::Term;
use crate::term::connectors::ConnectorRef;

const CALLERS: &[Role] = &[Admin, EdgeProxy];
/// Who only reads: image-builder asks what a build may use.
const READERS: &[Role] = &[Admin, EdgeProxy, ImageBuilder];
/// Page size a caller gets who asks for none.
const PAGE_DEFAULT: u32 = 50;

impl Handlers {
    fn show_connector(&self, term: &Term, entry: &Entry, version: Option<u64>) -> NetworkConnector {
        wire::connector(&entry.connector, version, &self.config, term.wall())
    }

    fn named(&self, text: &str) -> Result<ConnectorRef, Refusal> {
        validation::unqualified(text, &self.config)
    }
}

#[tonic::async_trait]
impl NetworkConnectorService for Handlers {
    async fn create_network_connector(
        &self,
        request: Request<CreateNetworkConnectorRequest>,
    ) -> Answer<CreateNetworkConnectorResponse> {
        self.answer(request, CALLERS, |term, request| async move {
            let entry = term.create_connector(validation::create(&request)?).await?;
            Ok(CreateNetworkConnectorResponse { connector: Some(self.show_connector(&term, &entry, None)) })
        })
        .await
    }

    async fn get_network_connector(
        &self,
        request: Request<GetNetworkConnectorRequest>,
    ) -> Answer<GetNetworkConnectorResponse> {
        self.answer(request, READERS, |term, request| async move {
            let named = validation::identifier(&request.identifier, &self.config)?;
            let entry = term.connector(&named)?;
            let latest = entry.connector.usable(term.wall()).map_or(0, |(number, _)| number);
            Ok(GetNetworkConnectorResponse {
                connector: Some(self.show_connector(&term, &entry, named.version)),
                latest_version: latest,
            })
        })
        .await
    }

    async fn list_network_connectors(
        &self,
        request: Request<ListNetworkConnectorsRequest>,
    ) -> Answer<ListNetworkConnectorsResponse> {
        self.answer(request, READERS, |term, request| async move {
            let size = page_size(request.page_size)?.min(CONNECTOR_PAGES.0 as usize);
            let after = match request.page_token.as_str() {
                "" => None,
                token => Some(token.parse().map_err(|_| bad_token())?),
            };
            let state = validation::state(request.state());
            let now = term.wall();
            let (page, more) = term.connectors.all().page(after.as_ref(), state, size, now);
            let shown = page.iter().map(|entry| self.show_connector(&term, entry, None)).collect();
            let connectors: Vec<NetworkConnector> = fitting(shown);
            let last = connectors.last().filter(|_| more || connectors.len() < page.len());
            Ok(ListNetworkConnectorsResponse {
                next_page_token: last.map_or_else(String::new, |connector| connector.name.clone()),
                connectors,
            })
        })
        .await
    }

    async fn update_network_connector(
        &self,
        request: Request<UpdateNetworkConnectorRequest>,
    ) -> Answer<UpdateNetworkConnectorResponse> {
        self.answer(request, CALLERS, |term, request| async move {
            let (change, used) = validation::update(&request)?;
            let entry = term.update_connector(self.named(&request.identifier)?, change, used).await?;
            Ok(UpdateNetworkConnectorResponse { connector: Some(self.show_connector(&term, &entry, None)) })
        })
        .await
    }

    async fn delete_network_connector(
        &self,
        request: Request<DeleteNetworkConnectorRequest>,
    ) -> Answer<DeleteNetworkConnectorResponse> {
        self.answer(request, CALLERS, |term, request| async move {
            let named = validation::identifier(&request.identifier, &self.config)?;
            let version = named.version;
            let entry = term.delete_connector(named).await?;
            Ok(DeleteNetworkConnectorResponse {
                connector: Some(self.show_connector(&term, &entry, version)),
            })
        })
        .await
    }

    async fn list_network_connector_versions(
        &self,
        request: Request<ListNetworkConnectorVersionsRequest>,
    ) -> Answer<ListNetworkConnectorVersionsResponse> {
        self.answer(request, READERS, |term, request| async move {
            let size = page_size(request.page_size)?;
            let named = self.named(&request.identifier)?;
            let before: u64 = match request.page_token.as_str() {
                "" => u64::MAX,
                token => token.parse().map_err(|_| bad_token())?,
            };
            let wanted = validation::state(request.state());
            let entry = term.connector(&named)?;
            let now = term.wall();
            let fits = |state: ConnectorState| wanted.is_none_or(|wanted| wanted == state);
            let older = entry.connector.versions.range(..before).rev();
            let mut found = older.filter(|(_, version)| fits(version.life.state(now)));
            let page: Vec<u64> = found.by_ref().take(size).map(|(number, _)| *number).collect();
            let more = found.next().is_some();
            let shown = page.iter().map(|number| self.show_connector(&term, &entry, Some(*number))).collect();
            let versions: Vec<NetworkConnector> = fitting(shown);
            let last = versions.last().filter(|_| more || versions.len() < page.len());
            Ok(ListNetworkConnectorVersionsResponse {
                next_page_token: last.map_or_else(String::new, |version| version.version.to_string()),
                versions,
            })
        })
        .await
    }

    async fn tag_network_connector(
        &self,
        request: Request<TagNetworkConnectorRequest>,
    ) -> Answer<TagNetworkConnectorResponse> {
        self.answer(request, CALLERS, |term, request| async move {
            let tags = validation::tags_to_set(&request.tags)?;
            let entry = term.tag_connector(self.named(&request.identifier)?, tags, Vec::new()).await?;
            Ok(TagNetworkConnectorResponse { connector: Some(self.show_connector(&term, &entry, None)) })
        })
        .await
    }

    async fn untag_network_connector(
        &self,
        request: Request<UntagNetworkConnectorRequest>,
    ) -> Answer<UntagNetworkConnectorResponse> {
        self.answer(request, CALLERS, |term, request| async move {
            let keys = validation::tags_to_remove(&request.tag_keys)?;
            let named = self.named(&request.identifier)?;
            let entry = term.tag_connector(named, BTreeMap::new(), keys).await?;
            Ok(UntagNetworkConnectorResponse { connector: Some(self.show_connector(&term, &entry, None)) })
        })
        .await
    }
}

fn page_size(asked: u32) -> Result<usize, Refusal> {
    common::page_size(if asked == 0 { PAGE_DEFAULT } else { asked }, CONNECTOR_PAGES.1)
}

fn bad_token() -> Refusal {
    let mut violations = Violations::default();
    violations.add("pageToken", "is not a page token");
    Refusal::Invalid(violations)
}
