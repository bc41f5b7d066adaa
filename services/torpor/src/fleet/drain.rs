//! Putting running microVMs to sleep before the fleet stops, and letting hosts
//! take placements again after it has started.

use std::time::{Duration, Instant};

use api::host::v1::{DrainHostRequest, Host, HostState, ListHostsRequest, UndrainHostRequest};
use client::{Call, Context};
use rpc::CallBounds;

use crate::error::{CliError, Kind};

/// Longest wait for every microVM to sleep: suspend hooks take up to a minute.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(90);
/// Longest wait for every host-agent to register after a start.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(30);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);

async fn hosts(context: &Context) -> Result<Vec<Host>, CliError> {
    Ok(call(context, ListHostsRequest::default()).await?.hosts)
}

async fn call<M: Call>(context: &Context, message: M) -> Result<M::Answer, CliError> {
    Ok(message.send(&context.replicas(M::ROLE)?, CallBounds::once(CALL_TIMEOUT)).await?)
}

fn id(host: &Host) -> String {
    host.spec.as_ref().map(|spec| spec.host_id.clone()).unwrap_or_default()
}

/// Waits until `count` hosts have registered and makes all of them READY.
pub async fn undrain(context: &Context, count: usize) -> Result<(), CliError> {
    let started = Instant::now();
    loop {
        let failure = match undrain_once(context, count).await {
            Ok(()) => return Ok(()),
            Err(failure) => failure,
        };
        if started.elapsed() > REGISTER_TIMEOUT {
            return Err(failure);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn undrain_once(context: &Context, count: usize) -> Result<(), CliError> {
    let hosts = hosts(context).await?;
    let present: Vec<&Host> = hosts.iter().filter(|host| host.state() != HostState::Lost).collect();
    if present.len() < count {
        return Err(CliError::new(
            Kind::Timeout,
            format!("{} of {count} hosts have registered", present.len()),
        ));
    }
    for host in present {
        // A refused host would not be helped by it.
        if !matches!(host.state(), HostState::Ready | HostState::Refused) {
            call(context, UndrainHostRequest { host_id: id(host) }).await?;
        }
    }
    Ok(())
}

/// Puts everything to sleep, as far as it goes within the time there is.
/// Returns what is still awake, a sentence, or nothing.
pub async fn drain(context: &Context) -> Option<String> {
    let started = Instant::now();
    loop {
        let left = match drain_once(context).await {
            Ok(None) => return None,
            Ok(Some(left)) => left,
            Err(failure) => failure.message,
        };
        if started.elapsed() > DRAIN_TIMEOUT {
            return Some(left);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn drain_once(context: &Context) -> Result<Option<String>, CliError> {
    let mut awake = Vec::new();
    for host in hosts(context).await? {
        let state = match host.state() {
            HostState::Ready | HostState::Refused | HostState::Unspecified => {
                let response =
                    call(context, DrainHostRequest { host_id: id(&host), wake_elsewhere: false }).await?;
                response.host.unwrap_or_default().state()
            }
            state => state,
        };
        if matches!(state, HostState::Draining | HostState::Ready | HostState::Refused) {
            let running = host.usage.as_ref().map_or(0, |usage| usage.running);
            awake.push(format!("{} is still draining, {running} microVMs running", id(&host)));
        }
    }
    Ok((!awake.is_empty()).then(|| awake.join("; ")))
}
