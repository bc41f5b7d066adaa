//! `torpor hosts`.

use std::cell::RefCell;

use api::host::v1::{
    Alarm, Host, HostState, HostUsage, ListHostsRequest, ListHostsResponse, UndrainHostRequest,
};

use super::{Session, drain};
use crate::cli::fleet::{HostCommand, Hosts};
use crate::error::{CliError, Kind};
use crate::output::{self, json};

/// Full name of the message shown here.
pub const HOST: &str = "torpor.host.v1.Host";

pub async fn run(session: &Session, arguments: Hosts) -> Result<(), CliError> {
    let hosts = match arguments.command {
        None => list(session).await?,
        Some(HostCommand::Drain { id, wait, timeout }) => {
            let host_id = resolve(session, &id).await?;
            let host = match wait {
                true => drain::wait(session, &host_id, timeout).await?,
                false => drain::ask(session, &host_id).await?,
            };
            return one(session, &host);
        }
        Some(HostCommand::Undrain { id }) => {
            let host_id = resolve(session, &id).await?;
            let host = session.call(UndrainHostRequest { host_id }).await?.host;
            return one(session, &host.unwrap_or_default());
        }
    };
    session.show_all(HOST, &hosts, table)
}

fn one(session: &Session, host: &Host) -> Result<(), CliError> {
    session.show(HOST, host, |host| table(std::slice::from_ref(host)))
}

pub fn table(hosts: &[Host]) -> Result<(), CliError> {
    let header =
        ["host", "state", "running", "suspended", "memory", "slots", "disk free", "engines", "version"];
    output::table(header, hosts, row, "no hosts")?;
    for host in hosts.iter().filter(|host| !host.state_reason.is_empty()) {
        let id = host.spec.as_ref().map_or("", |spec| spec.host_id.as_str());
        output::remark(format_args!("note: {id}: {}", host.state_reason));
    }
    for host in hosts {
        let id = host.spec.as_ref().map_or("", |spec| spec.host_id.as_str());
        if let Some(progress) = &host.drain {
            output::remark(format_args!("{id}: {}", drain::sentence(progress)));
            for left in progress.left.iter().filter(|left| left.refused) {
                output::remark(format_args!("{id}: {} stays: {}", left.microvm_id, left.reason));
            }
        }
        let unreadable = host.usage.as_ref().map_or(0, |usage| usage.unreadable_microvm_ids.len());
        if unreadable > 0 {
            output::remark(format_args!(
                "note: {id} could not read the files of {unreadable} microVMs; they are in quarantine/ of its data directory"
            ));
        }
    }
    Ok(())
}

pub async fn list(session: &Session) -> Result<Vec<Host>, CliError> {
    Ok(list_with_alarms(session).await?.0)
}

/// The hosts, and what a person has to see to in their cell.
pub async fn list_with_alarms(session: &Session) -> Result<(Vec<Host>, Vec<Alarm>), CliError> {
    let alarms = RefCell::default();
    let ask = |page_token| ListHostsRequest { page_size: 0, page_token };
    let page = |page: ListHostsResponse| {
        alarms.replace(page.alarms);
        (page.hosts, page.next_page_token)
    };
    let hosts = session.all(ask, page).await?;
    Ok((hosts, alarms.into_inner()))
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
        _ => {
            Err(CliError::usage(format!("'{given}' is not unique among the hosts")).next("see torpor hosts"))
        }
    }
}

fn row(host: &Host) -> [String; 9] {
    let spec = host.spec.clone().unwrap_or_default();
    let usage = host.usage.clone().unwrap_or_default();
    [
        spec.host_id,
        json::short_name(host.state().as_str_name(), "HostState"),
        usage.running.to_string(),
        usage.suspended.to_string(),
        format!("{}/{} MiB", usage.memory_used_mib, spec.memory_capacity_mib),
        format!("{}/{}", usage.slots_used, spec.slot_capacity),
        disk(&usage),
        spec.engines.join(", "),
        spec.agent_version,
    ]
}

/// What its disk has free, and whether that is too little for anything new.
fn disk(usage: &HostUsage) -> String {
    let room =
        format!("{}/{}", output::bytes(usage.disk_free_bytes), output::bytes(usage.disk_capacity_bytes));
    if usage.disk_short { format!("{room}, no room") } else { room }
}

/// True when a host takes placements and has reported lately.
pub fn ready(host: &Host) -> bool {
    host.state() == HostState::Ready
}
