//! `torpor open`: a link that begins a browser session.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use api::domain::v1::{Domain, domain::Target};
use api::microvm::v1::{CreateMicrovmInvitationRequest, Microvm};
use client::{EndpointClient, HttpVersion};
use model::domains::is_within;

use super::Session;
use super::calls::microvm_id;
use super::domain;
use super::microvm::fetch;
use crate::cli::microvm::Open;
use crate::error::CliError;
use crate::fleet::roots;
use crate::output;
use crate::{durations, flags};

const INVITATION: &str = "torpor.microvm.v1.CreateMicrovmInvitationResponse";
/// Longest look at whether a browser will get through.
const LOOK: Duration = Duration::from_secs(3);

pub async fn run(session: &Session, arguments: Open) -> Result<(), CliError> {
    let id = microvm_id(session, &arguments.id).await?;
    let microvm = fetch(session, &id).await?;
    let host = match &arguments.domain {
        Some(name) => own_host(domain::get(session, name.clone()).await?, &microvm)?,
        None => microvm.endpoint.clone(),
    };
    let request = CreateMicrovmInvitationRequest {
        microvm_id: id.clone(),
        port: arguments.port.into(),
        path: arguments.path,
        session_duration: Some(api::duration_proto(arguments.session)),
    };
    let mut answer = session.call(request).await.map_err(|error| error.in_flags(flags::OPEN))?;
    // The link is good under every name of the microVM, the session under the one that the browser begins it with.
    answer.url = answer.url.replacen(&microvm.endpoint, &host, 1);
    session.show(INVITATION, &answer, |answer| output::line(&answer.url))?;
    if session.json() {
        return Ok(());
    }
    let lasts = durations::short(arguments.session);
    output::remark(format_args!("the link works once, within a minute; the session lasts {lasts}"));
    for obstacle in [name(session, &host).await, certificate(session, &host).await].into_iter().flatten() {
        output::remark(obstacle);
    }
    if !arguments.print && has_display() {
        open(&answer.url)?;
    }
    Ok(())
}

/// The name that the microVM has under an own domain.
fn own_host(domain: Domain, microvm: &Microvm) -> Result<String, CliError> {
    let label = microvm.endpoint.split('.').next().unwrap_or_default();
    let host = match domain.target {
        Some(Target::MicrovmId(id)) if id == microvm.microvm_id => Some(domain.name.clone()),
        Some(Target::ImageName(image)) if image == microvm.image_name => {
            domain.name.strip_prefix('*').map(|rest| format!("{label}{rest}"))
        }
        _ => None,
    };
    host.ok_or_else(|| {
        CliError::usage(format!("--domain {}: does not lead to {}", domain.name, microvm.microvm_id))
            .next("see torpor domain list")
    })
}

/// What is in the way of a browser that looks for the endpoint's name.
async fn name(session: &Session, host: &str) -> Option<String> {
    // Browsers take every name under localhost for this machine, whatever the resolver says.
    if host.ends_with(".localhost") {
        return None;
    }
    let found = tokio::time::timeout(LOOK, tokio::net::lookup_host((host, 0))).await;
    let known = found.is_ok_and(|found| found.is_ok_and(|mut addresses| addresses.next().is_some()));
    let edge = &session.context.edge;
    let fleet = &session.context.endpoint_domain;
    let names = if is_within(host, fleet) { format!("*.{fleet}") } else { host.to_owned() };
    (!known).then(|| {
        format!(
            "this machine cannot resolve {host}; next: have DNS lead {names} to the edge at {edge}, or add the name to \
             /etc/hosts"
        )
    })
}

/// What is in the way of a browser that checks the edge's certificate. Edges that cannot be reached say so by themselves.
async fn certificate(session: &Session, host: &str) -> Option<String> {
    let context = &session.context;
    let trusted = async |ca: &Path| {
        let client = EndpointClient::new(ca).ok()?;
        client.open(&context.edge, host, HttpVersion::Http1).await.ok()
    };
    let of_the_system = async {
        match roots::system() {
            Some(system) => trusted(system).await,
            None => None,
        }
    };
    let look = async { of_the_system.await.is_none() && trusted(context.ca.as_path()).await.is_some() };
    let own = tokio::time::timeout(LOOK, look).await.unwrap_or(false);
    own.then(|| {
        format!(
            "the certificate is the fleet's own, and a browser warns of it; next: trust {ca} as an authority for sites, in the \
             browser's settings or with certutil -d sql:$HOME/.pki/nssdb -A -t C,, -n torpor -i {ca}",
            ca = context.ca.display()
        )
    })
}

fn has_display() -> bool {
    ["DISPLAY", "WAYLAND_DISPLAY"]
        .iter()
        .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
}

/// Hands the link to the desktop in a file, since every user of the machine reads the arguments of programs. The file is of
/// no use once the link was used.
fn open(url: &str) -> Result<(), CliError> {
    let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|directory| !directory.is_empty());
    let directory = own.map_or_else(std::env::temp_dir, PathBuf::from);
    let path = directory.join(format!("torpor-open-{}.html", uuid::Uuid::new_v4()));
    let failed = |error: std::io::Error| {
        CliError::failed(format!("cannot open a browser: {error}"))
            .next("open the link yourself, or leave the browser alone with --print")
    };
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
    // An endpoint's URL and a code: nothing in it has to be escaped.
    let page = format!(
        "<!doctype html><meta charset=\"utf-8\"><meta http-equiv=\"refresh\" content=\"0;url={url}\">\n"
    );
    file.write_all(page.as_bytes()).map_err(failed)?;
    let mut opener = Command::new("xdg-open");
    opener.arg(&path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    opener.spawn().map(drop).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_for_a_name_of_the_microvm() {
        let microvm = Microvm {
            microvm_id: "microvm-1".to_owned(),
            endpoint: "label.microvms.localhost".to_owned(),
            image_name: "web".to_owned(),
            ..Microvm::default()
        };
        let host = |name: &str, target| {
            let domain = Domain { name: name.to_owned(), target: Some(target), ..Domain::default() };
            own_host(domain, &microvm).map_err(|error| error.message)
        };
        let of = |id: &str| Target::MicrovmId(id.to_owned());
        let all = |image: &str| Target::ImageName(image.to_owned());
        assert_eq!(host("app.example.com", of("microvm-1")).as_deref(), Ok("app.example.com"));
        assert_eq!(host("*.apps.example.com", all("web")).as_deref(), Ok("label.apps.example.com"));
        for refused in [host("app.example.com", of("microvm-2")), host("*.apps.example.com", all("other"))] {
            assert!(refused.unwrap_err().contains("does not lead to microvm-1"));
        }
    }
}
