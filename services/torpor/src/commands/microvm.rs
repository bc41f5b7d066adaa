//! `torpor run`, `list`, `get`, `suspend`, `resume`, `terminate`, `token`.

use std::time::{Duration, Instant};

use api::common::v1::IdlePolicy;
use api::microvm::v1::{
    AllPorts, CreateMicrovmAuthTokenRequest, CreateMicrovmAuthTokenResponse, GetMicrovmRequest, Microvm,
    MicrovmState, PortRange, PortScope, ResumeMicrovmRequest, RunMicrovmRequest, SuspendMicrovmRequest,
    TerminateMicrovmRequest, port_scope::Scope,
};

use super::Session;
use super::calls::{QUICK, SLOW, all_microvms, call, client_token, microvm_id, request};
use super::microvm_views as views;
use crate::cli::microvm::{List, One, Run, Token};
use crate::durations;
use crate::failure::{Failure, Kind};
use crate::output::{self, json};

/// Longest wait for a microVM to run or to end.
const STATE_TIMEOUT: Duration = Duration::from_secs(150);
/// Pause between two looks at it.
const STATE_PAUSE: Duration = Duration::from_millis(50);
/// Port a token opens unless told otherwise.
const DEFAULT_PORT: u16 = 8080;

/// `torpor run`.
pub async fn run(session: &Session, arguments: Run) -> Result<(), Failure> {
    let idle_policy = arguments.idle.map(|idle| IdlePolicy {
        max_idle_duration: Some(api::duration_proto(idle)),
        suspended_duration: Some(api::duration_proto(arguments.suspended)),
        auto_resume_enabled: !arguments.no_auto_resume,
    });
    let message = RunMicrovmRequest {
        image_identifier: arguments.image,
        image_version: arguments.version.unwrap_or_default(),
        execution_role_arn: arguments.execution_role.unwrap_or_default(),
        idle_policy,
        maximum_duration: arguments.max_duration.map(api::duration_proto),
        run_hook_payload: arguments.payload.unwrap_or_default(),
        logging: None,
        ingress_network_connectors: arguments.ingress,
        egress_network_connectors: arguments.egress,
        client_token: client_token(arguments.client_token),
        kms_key_identifier: String::new(),
    };
    let client = session.context.microvms()?;
    let response = call(|| {
        let (mut client, message) = (client.clone(), message.clone());
        async move { client.run_microvm(request(message, QUICK)).await }
    })
    .await?;
    let mut microvm = response.microvm.unwrap_or_default();
    if !arguments.no_wait {
        microvm = wait(session, &microvm.microvm_id, MicrovmState::Running).await?;
    }
    let token = match arguments.token_ttl {
        Some(ttl) => Some(mint(session, &microvm.microvm_id, vec![single(DEFAULT_PORT)], ttl).await?),
        None => None,
    };
    if session.json() {
        let mut object = json::message(views::MICROVM, &microvm);
        if let Some(token) = &token {
            object["authToken"] = json::message(TOKEN, token)["authToken"].clone();
        }
        return output::value(&object);
    }
    views::microvm(&microvm)?;
    if let Some((name, value)) = token.iter().flat_map(|token| &token.auth_token).next() {
        output::line(format_args!("{name}: {value}"))?;
    }
    output::remark(format_args!("next: torpor curl {} /", short_id(&microvm.microvm_id)));
    Ok(())
}

/// Enough of an id to type.
fn short_id(id: &str) -> &str {
    let id = id.strip_prefix("microvm-").unwrap_or(id);
    id.split('-').next().unwrap_or(id)
}

/// Waits until a microVM is in a state; one that ended first is a failure.
async fn wait(session: &Session, id: &str, wanted: MicrovmState) -> Result<Microvm, Failure> {
    let started = Instant::now();
    loop {
        let microvm = fetch(session, id).await?;
        if microvm.state() == wanted {
            return Ok(microvm);
        }
        if microvm.state() == MicrovmState::Terminated {
            let reason = match microvm.state_reason.as_str() {
                "" => "no reason given",
                reason => reason,
            };
            return Err(Failure::failed(format!("{id} has ended: {reason}"))
                .next(format!("read its log: torpor logs {id}")));
        }
        if started.elapsed() > STATE_TIMEOUT {
            let state = views::state(&microvm);
            return Err(Failure::new(Kind::Timeout, format!("{id} is still {state}"))
                .next(format!("look again: torpor get {id}")));
        }
        tokio::time::sleep(STATE_PAUSE).await;
    }
}

/// One microVM by its full id.
pub async fn fetch(session: &Session, id: &str) -> Result<Microvm, Failure> {
    let client = session.context.microvms()?;
    let response = call(|| {
        let mut client = client.clone();
        let message = GetMicrovmRequest { microvm_id: id.to_owned() };
        async move { client.get_microvm(request(message, QUICK)).await }
    })
    .await?;
    Ok(response.microvm.unwrap_or_default())
}

/// `torpor list`.
pub async fn list(session: &Session, arguments: List) -> Result<(), Failure> {
    let mut microvms =
        all_microvms(session, arguments.image.as_deref(), arguments.version.as_deref()).await?;
    if !arguments.all {
        microvms.retain(|microvm| microvm.state() != MicrovmState::Terminated);
    }
    if session.json() {
        return output::value(&json::messages(views::MICROVM, &microvms));
    }
    views::microvms(&microvms)
}

/// `torpor get`.
pub async fn get(session: &Session, arguments: One) -> Result<(), Failure> {
    let id = microvm_id(session, &arguments.id).await?;
    let microvm = fetch(session, &id).await?;
    if session.json() {
        return output::value(&json::message(views::MICROVM, &microvm));
    }
    views::microvm(&microvm)
}

/// What to do with microVMs.
#[derive(Debug, Clone, Copy)]
pub enum Change {
    /// Put them to sleep.
    Suspend,
    /// Wake them.
    Resume,
    /// End them.
    Terminate,
}

/// `torpor suspend`, `resume` and `terminate`. Goes on after a failure, so that
/// one bad id does not keep the others alive; the first failure is reported last.
pub async fn change(session: &Session, given: &[String], change: Change) -> Result<(), Failure> {
    let mut changed = Vec::new();
    let mut first_failure = None;
    for given in given {
        let result = async {
            let id = microvm_id(session, given).await?;
            let started = Instant::now();
            let microvm = change_one(session, &id, change).await?;
            Ok::<_, Failure>((microvm, started.elapsed()))
        }
        .await;
        match result {
            Ok((microvm, took)) => {
                if !session.json() {
                    let (id, state) = (&microvm.microvm_id, views::state(&microvm));
                    output::line(format_args!("{id} {state} in {}", durations::short(took)))?;
                }
                changed.push(microvm);
            }
            Err(failure) if first_failure.is_none() => first_failure = Some(failure.during(given)),
            Err(failure) => output::report(&failure.during(given)),
        }
    }
    if session.json() {
        output::value(&json::messages(views::MICROVM, &changed))?;
    }
    first_failure.map_or(Ok(()), Err)
}

async fn change_one(session: &Session, id: &str, change: Change) -> Result<Microvm, Failure> {
    let client = session.context.microvms()?;
    let microvm_id = id.to_owned();
    let microvm = match change {
        Change::Suspend => call(|| {
            let (mut client, microvm_id) = (client.clone(), microvm_id.clone());
            async move { client.suspend_microvm(request(SuspendMicrovmRequest { microvm_id }, SLOW)).await }
        })
        .await?
        .microvm,
        Change::Resume => {
            call(|| {
                let (mut client, microvm_id) = (client.clone(), microvm_id.clone());
                async move { client.resume_microvm(request(ResumeMicrovmRequest { microvm_id }, SLOW)).await }
            })
            .await?
            .microvm
        }
        Change::Terminate => {
            call(|| {
                let (mut client, microvm_id) = (client.clone(), microvm_id.clone());
                let message = TerminateMicrovmRequest { microvm_id };
                async move { client.terminate_microvm(request(message, SLOW)).await }
            })
            .await?;
            Some(wait(session, id, MicrovmState::Terminated).await?)
        }
    };
    Ok(microvm.unwrap_or_default())
}

const TOKEN: &str = "torpor.microvm.v1.CreateMicrovmAuthTokenResponse";

/// Makes a token for ports of a microVM.
pub async fn mint(
    session: &Session,
    id: &str,
    allowed_ports: Vec<PortScope>,
    ttl: Duration,
) -> Result<CreateMicrovmAuthTokenResponse, Failure> {
    let client = session.context.microvms()?;
    let message = CreateMicrovmAuthTokenRequest {
        microvm_id: id.to_owned(),
        expiration: Some(api::duration_proto(ttl)),
        allowed_ports,
    };
    call(|| {
        let (mut client, message) = (client.clone(), message.clone());
        async move { client.create_microvm_auth_token(request(message, QUICK)).await }
    })
    .await
}

/// The scope of one port.
pub fn single(port: u16) -> PortScope {
    PortScope { scope: Some(Scope::Port(port.into())) }
}

/// `torpor token`: the bare token, for use in another command.
pub async fn token(session: &Session, arguments: Token) -> Result<(), Failure> {
    let scopes = arguments.ports.iter().map(|text| port_scope(text)).collect::<Result<_, _>>()?;
    let id = microvm_id(session, &arguments.id).await?;
    let response = mint(session, &id, scopes, arguments.ttl).await?;
    if session.json() {
        return output::value(&json::message(TOKEN, &response));
    }
    for value in response.auth_token.values() {
        output::line(value)?;
    }
    Ok(())
}

fn port_scope(text: &str) -> Result<PortScope, Failure> {
    let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0);
    let scope = match text.split_once('-') {
        _ if text == "all" => Some(Scope::AllPorts(AllPorts {})),
        Some((first, last)) => match (port(first), port(last)) {
            (Some(first), Some(last)) if first <= last => {
                Some(Scope::Range(PortRange { start_port: first.into(), end_port: last.into() }))
            }
            _ => None,
        },
        None => port(text).map(|port| Scope::Port(port.into())),
    };
    match scope {
        Some(scope) => Ok(PortScope { scope: Some(scope) }),
        None => {
            Err(Failure::new(Kind::Usage, format!("--port {text}: not a port, a range FIRST-LAST or 'all'")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_as_people_write_them() {
        assert_eq!(port_scope("8080").unwrap().scope, Some(Scope::Port(8080)));
        assert_eq!(port_scope("all").unwrap().scope, Some(Scope::AllPorts(AllPorts {})));
        let range = PortRange { start_port: 80, end_port: 90 };
        assert_eq!(port_scope("80-90").unwrap().scope, Some(Scope::Range(range)));
        for wrong in ["0", "90-80", "x", "1-", "70000", ""] {
            assert_eq!(port_scope(wrong).expect_err("wrong").kind, Kind::Usage, "{wrong}");
        }
    }

    #[test]
    fn short_ids_are_prefixes() {
        assert_eq!(short_id("microvm-0a1b2c3d-0000-4000-8000-000000000000"), "0a1b2c3d");
    }
}
