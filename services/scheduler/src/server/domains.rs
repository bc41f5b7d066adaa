//! `torpor.domain.v1.DomainService`. For operators only, as access keys are: private keys pass here.

use api::domain::v1::domain_service_server::DomainService;
use api::domain::v1::*;
use rpc::Role::Admin;
use tonic::Request;

use super::validation::domains as validation;
use super::{Answer, Handlers, fitting, validation as common, wire};

const PAGE_MAX: u32 = 100;

impl Handlers {
    fn show_domain(&self, domain: Domain) -> Domain {
        wire::domain(domain, &self.config)
    }
}

#[tonic::async_trait]
impl DomainService for Handlers {
    async fn create_domain(&self, request: Request<CreateDomainRequest>) -> Answer<CreateDomainResponse> {
        self.answer(request, &[Admin], |term, request| async move {
            let domain = term.create_domain(validation::create(&request, &self.config, term.wall())?).await?;
            Ok(CreateDomainResponse { domain: Some(self.show_domain(domain)) })
        })
        .await
    }

    async fn get_domain(&self, request: Request<GetDomainRequest>) -> Answer<GetDomainResponse> {
        self.answer(request, &[Admin], |term, request| async move {
            let domain = term.domain(&validation::name(&request.name)?)?;
            Ok(GetDomainResponse { domain: Some(self.show_domain(domain)) })
        })
        .await
    }

    async fn list_domains(&self, request: Request<ListDomainsRequest>) -> Answer<ListDomainsResponse> {
        self.answer(request, &[Admin], |term, request| async move {
            let size = common::page_size(request.page_size, PAGE_MAX)?;
            let after = validation::after(&request.page_token)?;
            let mut domains = term.domains();
            domains.retain(|domain| domain.name > after);
            let all = domains.len();
            domains.truncate(size);
            let domains = fitting(domains.into_iter().map(|domain| self.show_domain(domain)).collect());
            let last = domains.last().filter(|_| domains.len() < all);
            Ok(ListDomainsResponse {
                next_page_token: last.map(|domain: &Domain| domain.name.clone()).unwrap_or_default(),
                domains,
            })
        })
        .await
    }

    async fn update_domain(&self, request: Request<UpdateDomainRequest>) -> Answer<UpdateDomainResponse> {
        self.answer(request, &[Admin], |term, request| async move {
            let (name, certificate) = validation::update(&request, term.wall())?;
            let domain = term.update_domain(name, certificate).await?;
            Ok(UpdateDomainResponse { domain: Some(self.show_domain(domain)) })
        })
        .await
    }

    async fn delete_domain(&self, request: Request<DeleteDomainRequest>) -> Answer<DeleteDomainResponse> {
        self.answer(request, &[Admin], |term, request| async move {
            term.delete_domain(validation::name(&request.name)?).await?;
            Ok(DeleteDomainResponse {})
        })
        .await
    }
}
