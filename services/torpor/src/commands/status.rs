//! `torpor status`: the components as their supervisor sees them, and the hosts and what is the matter with their cell as the
//! scheduler sees them.

use std::path::Path;
use std::time::Duration;

use api::host::v1::Alarm;

use super::{Session, hosts};
use crate::durations;
use crate::error::{CliError, Kind};
use crate::fleet::plan::replica;
use crate::fleet::record::{ComponentRecord, FleetRecord, FleetState, ProcessState, unix_now};
use crate::output::{self, Format, json};

const SCHEDULER: &str = "scheduler";
/// Longest wait for the list of hosts, and for the scheduler that leads: status must answer when things are broken.
const HOSTS_TIMEOUT: Duration = Duration::from_secs(3);

pub async fn run(data_dir: &Path, format: Format) -> Result<(), CliError> {
    let record = FleetRecord::load(&data_dir.join("run")).ok_or_else(|| {
        CliError::new(Kind::Unavailable, format!("no fleet in {}", data_dir.display()))
            .next("start one with torpor up, or name its directory with --data-dir")
    })?;
    if !record.supervised() {
        let (message, next) = match record.state {
            FleetState::Failed => {
                (format!("the fleet could not run: {}", record.message), record.next.clone())
            }
            FleetState::Stopped => ("the fleet is down".to_owned(), String::new()),
            _ => ("the fleet's supervisor was killed".to_owned(), String::new()),
        };
        let next = if next.is_empty() { "start it: torpor up --detach".to_owned() } else { next };
        return Err(CliError::new(Kind::Unavailable, message).next(next));
    }
    let session = Session::open(data_dir, format)?;
    let with_hosts = record.components.iter().any(|component| component.name == "scheduler");
    let with_edge = record.components.iter().any(|component| component.name == "edge-proxy");
    let api = Some(session.context.api.as_str()).filter(|api| with_edge && !api.is_empty());
    let hosts = match with_hosts {
        true => match tokio::time::timeout(HOSTS_TIMEOUT, hosts::list_with_alarms(&session)).await {
            Ok(result) => result,
            Err(_) => Err(CliError::new(Kind::Timeout, "the scheduler does not answer")),
        },
        false => Ok((Vec::new(), Vec::new())),
    };
    let (hosts, alarms) = match hosts {
        Ok((hosts, alarms)) => (Ok(hosts), alarms),
        Err(failure) => (Err(failure), Vec::new()),
    };
    let leads = leading(&session, &record).await;
    if session.json() {
        show_json(&record, (&hosts, &alarms), api, leads.as_deref())?;
    } else {
        show_tables(&record, &hosts, with_hosts, leads.as_deref())?;
        if with_edge {
            output::remark(format_args!("endpoints: {}", record.endpoints));
        }
        if let Some(api) = api {
            output::remark(format_args!("AWS API: {api}"));
        }
        for remark in &record.remarks {
            output::remark(format_args!("note: {remark}"));
        }
        for alarm in &alarms {
            output::remark(format_args!("ALARM {}: {}", alarm.code, alarm.message));
        }
    }
    health(&record, &hosts)
}

/// Name of the scheduler that leads; absent when none does in time, or when there is one only.
async fn leading(session: &Session, record: &FleetRecord) -> Option<String> {
    let addresses: Vec<&str> = session.context.scheduler.split(',').collect();
    let schedulers = record.components.iter().filter(|component| component.name.starts_with(SCHEDULER));
    if addresses.len() < 2 || schedulers.count() != addresses.len() {
        return None;
    }
    let leader = tokio::time::timeout(HOSTS_TIMEOUT, session.context.leader()).await.ok()?.ok()?;
    let place = addresses.iter().position(|address| **address == leader)?;
    Some(replica(SCHEDULER, u16::try_from(place).ok()? + 1))
}

fn show_json(
    record: &FleetRecord,
    (hosts, alarms): (&Result<Vec<api::host::v1::Host>, CliError>, &[Alarm]),
    api: Option<&str>,
    leads: Option<&str>,
) -> Result<(), CliError> {
    let components: Vec<serde_json::Value> = record
        .components
        .iter()
        .map(|component| {
            serde_json::json!({
                "name": component.name,
                "health": component.health.name(),
                "pid": component.process.map(|process| process.pid),
                "uptimeSeconds": uptime(component),
                "restarts": component.restarts,
                "readyMs": component.ready_ms,
                "detail": component.detail,
                "leads": leads == Some(component.name.as_str()),
            })
        })
        .collect();
    let alarms: Vec<serde_json::Value> = alarms
        .iter()
        .map(|alarm| serde_json::json!({ "code": alarm.code, "message": alarm.message }))
        .collect();
    let hosts = hosts.as_deref().map(|hosts| json::messages(hosts::HOST, hosts)).unwrap_or_default();
    output::value(&serde_json::json!({
        "phase": record.state,
        "components": components,
        "hosts": hosts,
        "alarms": alarms,
        "api": api,
        "endpoints": record.endpoints,
        "remarks": record.remarks,
    }))
}

fn uptime(component: &ComponentRecord) -> Option<u64> {
    component.process.map(|_| unix_now().saturating_sub(component.started))
}

fn show_tables(
    record: &FleetRecord,
    hosts: &Result<Vec<api::host::v1::Host>, CliError>,
    with_hosts: bool,
    leads: Option<&str>,
) -> Result<(), CliError> {
    let row = |component: &ComponentRecord| {
        [
            component.name.clone(),
            component.health.name().to_owned(),
            component.process.map_or_else(|| "-".to_owned(), |process| process.pid.to_string()),
            uptime(component).map_or_else(|| "-".to_owned(), |s| durations::coarse(Duration::from_secs(s))),
            component.restarts.to_string(),
            match component.detail.as_str() {
                "" if leads == Some(component.name.as_str()) => "leads".to_owned(),
                detail => detail.to_owned(),
            },
        ]
    };
    let header = ["component", "health", "pid", "uptime", "restarts", "detail"];
    output::table(header, &record.components, row, "no components")?;
    if with_hosts {
        output::line("")?;
        match hosts {
            Ok(hosts) => hosts::table(hosts)?,
            Err(failure) => output::remark(format_args!("hosts: {failure}")),
        }
    }
    Ok(())
}

fn health(record: &FleetRecord, hosts: &Result<Vec<api::host::v1::Host>, CliError>) -> Result<(), CliError> {
    // A fleet that was started without hosts is well without them.
    let with_hosts = record.components.iter().any(|component| component.name.starts_with("host-agent"));
    let sick: Vec<&str> = record
        .components
        .iter()
        .filter(|component| component.health != ProcessState::Healthy)
        .map(|component| component.name.as_str())
        .collect();
    if !sick.is_empty() {
        return Err(CliError::failed(format!("not healthy: {}", sick.join(", ")))
            .next("read logs/<component>.log in the data directory"));
    }
    match hosts {
        Err(failure) => Err(CliError::failed(format!("the hosts are unknown: {failure}"))),
        Ok(hosts) if with_hosts && !hosts.iter().any(hosts::ready) => {
            Err(CliError::failed("no host is ready"))
        }
        Ok(_) => Ok(()),
    }
}
