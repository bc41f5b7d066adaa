//! Requests about own domains.

use std::time::SystemTime;

use api::domain::v1::create_domain_request::Target as AskedTarget;
use api::domain::v1::{CreateDomainRequest, UpdateDomainRequest};
use model::{DomainName, Violations};

use super::Findings;
use crate::adapters::certificates::{self, Certificate, Fault};
use crate::config::Config;
use crate::refusal::Refusal;
use crate::term::domains::{NewDomain, Target};

const NAME: &str = "name";

pub fn create(request: &CreateDomainRequest, config: &Config, now: SystemTime) -> Result<NewDomain, Refusal> {
    let mut findings = Findings::default();
    let name = findings.violations.keep(NAME, request.name.parse::<DomainName>());
    let target = target(request.target.as_ref(), config, &mut findings);
    let found = &mut findings.violations;
    if let Some(name) = &name {
        let fleet = &config.endpoint_domain;
        found.check(
            !name.shadows(fleet),
            NAME,
            format!("must neither lie in the fleet's own domain {fleet} nor cover it"),
        );
        match (&target, name.wildcard()) {
            (Some(Target::Microvm(_)), Some(_)) => found.add(
                NAME,
                "must be one name for a microVM, like app.example.com; wildcards are for images",
            ),
            (Some(Target::Image(_)), None) => found.add(
                NAME,
                "must be a wildcard for an image, like *.apps.example.com: the first label says which of its microVMs is \
                 meant",
            ),
            _ => {}
        }
    }
    let pem = (request.certificate_chain.as_str(), request.private_key.as_str());
    let certificate = name.as_ref().and_then(|name| certificate(pem, name, now, found));
    let whole = name.zip(target).zip(certificate);
    findings.finish(whole.map(|((name, target), certificate)| NewDomain { name, target, certificate }))
}

pub fn update(request: &UpdateDomainRequest, now: SystemTime) -> Result<(DomainName, Certificate), Refusal> {
    let name = name(&request.name)?;
    let mut findings = Findings::default();
    let pem = (request.certificate_chain.as_str(), request.private_key.as_str());
    let certificate = certificate(pem, &name, now, &mut findings.violations);
    findings.finish(certificate.map(|certificate| (name, certificate)))
}

pub fn name(text: &str) -> Result<DomainName, Refusal> {
    let mut violations = Violations::default();
    let name = violations.keep(NAME, text.parse());
    name.ok_or(Refusal::Invalid(violations))
}

/// The last name of the page before.
pub fn after(token: &str) -> Result<String, Refusal> {
    let mut violations = Violations::default();
    let known = token.is_empty() || token.parse::<DomainName>().is_ok();
    violations.check(known, "pageToken", "is not a page token");
    violations.finish().map_err(Refusal::Invalid)?;
    Ok(token.to_owned())
}

fn target(asked: Option<&AskedTarget>, config: &Config, findings: &mut Findings) -> Option<Target> {
    match asked {
        Some(AskedTarget::MicrovmId(id)) => {
            findings.violations.keep("microvmIdentifier", id.parse()).map(Target::Microvm)
        }
        Some(AskedTarget::ImageIdentifier(named)) => super::image(named, config, findings).map(Target::Image),
        None => {
            findings.violations.add("target", "must be a microVM or an image");
            None
        }
    }
}

fn certificate(
    (chain, key): (&str, &str),
    name: &DomainName,
    now: SystemTime,
    violations: &mut Violations,
) -> Option<Certificate> {
    match certificates::read(chain, key, name, now) {
        Ok(certificate) => Some(certificate),
        Err(fault) => {
            let (field, message) = match fault {
                Fault::Chain(message) => ("certificateChain", message),
                Fault::Key(message) => ("privateKey", message),
            };
            violations.add(field, message);
            None
        }
    }
}
