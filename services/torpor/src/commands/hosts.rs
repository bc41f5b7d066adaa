//! `torpor hosts`.

use api::host::v1::{DrainHostRequest, Host, HostState, ListHostsRequest, UndrainHostRequest};

use super::Session;
use super::calls::{QUICK, SLOW, call, request};
use crate::cli::fleet::{HostCommand, Hosts};
use crate::error::{CliError, Kind};
use crate::output::{self, json};

/// Most hosts a CLI shows (500 a page).
const HOST_PAGES_MAX: usize = 100;

/// Runs the command.
pub async fn run(session: &Session, arguments: Hosts) -> Result<(), CliError> {
    let client = session.context.hosts()?;
    let host = match arguments.command {
        None => {
            let hosts = list(session).await?;
            if session.json() {
                return output::value(&json::messages("torpor.host.v1.Host", &hosts));
            }
            return output::table(&HEADER, rows(&hosts), "no hosts");
        }
        Some(HostCommand::Drain { id }) => {
            let host_id = resolve(session, &id).await?;
            call(|| {
                let (mut client, host_id) = (client.clone(), host_id.clone());
                async move { client.drain_host(request(DrainHostRequest { host_id }, SLOW)).await }
            })
            .await?
            .host
        }
        Some(HostCommand::Undrain { id }) => {
            let host_id = resolve(session, &id).await?;
            call(|| {
                let (mut client, host_id) = (client.clone(), host_id.clone());
                async move { client.undrain_host(request(UndrainHostRequest { host_id }, QUICK)).await }
            })
            .await?
            .host
        }
    };
    let host = host.unwrap_or_default();
    if session.json() {
        output::value(&json::message("torpor.host.v1.Host", &host))
    } else {
        output::table(&HEADER, rows(&[host]), "no hosts")
    }
}

/// Every host, by id.
pub async fn list(session: &Session) -> Result<Vec<Host>, CliError> {
    let client = session.context.hosts()?;
    let mut hosts = Vec::new();
    let mut page_token = String::new();
    for _ in 0..HOST_PAGES_MAX {
        let message = ListHostsRequest { page_size: 0, page_token };
        let page = call(|| {
            let (mut client, message) = (client.clone(), message.clone());
            async move { client.list_hosts(request(message, QUICK)).await }
        })
        .await?;
        hosts.extend(page.hosts);
        if page.next_page_token.is_empty() {
            break;
        }
        page_token = page.next_page_token;
    }
    Ok(hosts)
}

async fn resolve(session: &Session, given: &str) -> Result<String, CliError> {
    let hosts = list(session).await?;
    let ids: Vec<String> = hosts.into_iter().filter_map(|host| host.spec).map(|spec| spec.host_id).collect();
    if ids.iter().any(|id| id == given) {
        return Ok(given.to_owned());
    }
    let matches: Vec<&String> = ids.iter().filter(|id| id.starts_with(given)).collect();
    match matches.as_slice() {
        [id] => Ok((*id).clone()),
        [] => Err(CliError::new(Kind::NotFound, format!("host not found: {given}")).next("see torpor hosts")),
        _ => Err(CliError::new(Kind::Usage, format!("'{given}' is not unique among the hosts"))
            .next("see torpor hosts")),
    }
}

/// Columns of [`rows`].
pub const HEADER: [&str; 8] =
    ["host", "state", "running", "suspended", "memory", "slots", "disk free", "engines"];

/// Hosts as table rows.
pub fn rows(hosts: &[Host]) -> Vec<Vec<String>> {
    let row = |host: &Host| {
        let spec = host.spec.clone().unwrap_or_default();
        let usage = host.usage.clone().unwrap_or_default();
        vec![
            spec.host_id,
            json::short_name(host.state().as_str_name(), "HostState"),
            usage.running.to_string(),
            usage.suspended.to_string(),
            format!("{}/{} MiB", usage.memory_used_mib, spec.memory_capacity_mib),
            format!("{}/{}", usage.slots_used, spec.slot_capacity),
            output::bytes(usage.disk_free_bytes),
            spec.engines.join(", "),
        ]
    };
    hosts.iter().map(row).collect()
}

/// True when a host takes placements and has reported lately.
pub fn ready(host: &Host) -> bool {
    host.state() == HostState::Ready
}
