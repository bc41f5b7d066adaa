//! `torpor run`, `list`, `get`, `suspend`, `resume`, `terminate`, `token`.

use std::time::{Duration, Instant, SystemTime};

use api::common::v1::{AwakeWhile as WireAwakeWhile, IdlePolicy};
use api::microvm::v1::{
    AllPorts, CreateMicrovmAuthTokenRequest, CreateMicrovmAuthTokenResponse, GetMicrovmRequest,
    KeepMicrovmAwakeRequest, Microvm, MicrovmState, PortRange, PortScope, ResumeMicrovmRequest,
    RevokeMicrovmAuthTokensRequest, RunMicrovmRequest, SuspendMicrovmRequest, TerminateMicrovmRequest,
    port_scope::Scope,
};
use model::{ConnectorArn, ManagedConnector};

use super::Session;
use super::calls::{all_microvms, client_token, microvm_id};
use super::{image, microvm_views as views};
use crate::cli::microvm::{Awake, AwakeWhile, List, One, Run, Token, TokenCommand};
use crate::durations;
use crate::error::{CliError, Kind};
use crate::flags;
use crate::output::{self, json};

/// Longest wait for a microVM to run or to end.
const STATE_TIMEOUT: Duration = Duration::from_secs(150);
const STATE_PAUSE: Duration = Duration::from_millis(50);
/// Port a token opens unless told otherwise.
const DEFAULT_PORT: u16 = 8080;

pub async fn run(session: &Session, arguments: Run) -> Result<(), CliError> {
    let idle_policy = arguments.idle.map(|idle| IdlePolicy {
        max_idle_duration: Some(api::duration_proto(idle)),
        suspended_duration: Some(api::duration_proto(arguments.suspended)),
        auto_resume_enabled: !arguments.no_auto_resume,
        awake_while: awake_while(&arguments.awake_while),
    });
    let message = RunMicrovmRequest {
        image_identifier: arguments.image.clone(),
        image_version: arguments.version.unwrap_or_default(),
        execution_role_arn: arguments.execution_role.unwrap_or_default(),
        idle_policy,
        maximum_duration: arguments.max_duration.map(api::duration_proto),
        run_hook_payload: arguments.payload.unwrap_or_default(),
        logging: None,
        ingress_network_connectors: if arguments.shell { shell_ingress(session) } else { arguments.ingress },
        egress_network_connectors: arguments.egress,
        client_token: client_token(arguments.client_token),
        kms_key_identifier: String::new(),
        checkpoint_interval: arguments.checkpoint.map(api::duration_proto),
    };
    let response = match session.call(message).await {
        Err(error) if error.kind == Kind::NotFound => {
            return Err(image::explained(session, &arguments.image, error).await);
        }
        answered => answered.map_err(|error| error.in_flags(flags::RUN))?,
    };
    let mut microvm = response.microvm.unwrap_or_default();
    if !arguments.no_wait {
        microvm = wait(session, &microvm.microvm_id, MicrovmState::Running).await?;
    }
    let token = match arguments.token_ttl {
        Some(ttl) => {
            let minted = mint(session, &microvm.microvm_id, vec![single(DEFAULT_PORT)], ttl).await;
            Some(minted.map_err(|error| error.in_flags(flags::RUN))?)
        }
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

/// What else keeps it awake; of several CPU uses the last counts.
fn awake_while(given: &[AwakeWhile]) -> Option<WireAwakeWhile> {
    let mut all = None;
    for one in given {
        let all: &mut WireAwakeWhile = all.get_or_insert_default();
        match one {
            AwakeWhile::Stream => all.stream = true,
            AwakeWhile::Shell => all.shell = true,
            AwakeWhile::Cpu(percent) => all.cpu_percent = Some(*percent),
        }
    }
    all
}

/// The connectors of a microVM that lets requests and shells in.
fn shell_ingress(session: &Session) -> Vec<String> {
    let region = &session.context.s3.region;
    [ManagedConnector::HttpIngress, ManagedConnector::ShellIngress]
        .map(|connector| ConnectorArn::managed(region, connector).to_string())
        .to_vec()
}

/// Enough of an id to type.
fn short_id(id: &str) -> &str {
    let id = id.strip_prefix("microvm-").unwrap_or(id);
    id.split('-').next().unwrap_or(id)
}

/// Waits until a microVM is in a state; one that ended first is a failure.
async fn wait(session: &Session, id: &str, wanted: MicrovmState) -> Result<Microvm, CliError> {
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
            return Err(CliError::failed(format!("{id} has ended: {reason}"))
                .next(format!("read its log: torpor logs {id}")));
        }
        if started.elapsed() > STATE_TIMEOUT {
            let state = views::state(&microvm);
            return Err(CliError::new(Kind::Timeout, format!("{id} is still {state}"))
                .next(format!("look again: torpor get {id}")));
        }
        tokio::time::sleep(STATE_PAUSE).await;
    }
}

/// One microVM by its full id.
pub async fn fetch(session: &Session, id: &str) -> Result<Microvm, CliError> {
    read(session, GetMicrovmRequest { microvm_id: id.to_owned(), with_idleness: false }).await
}

async fn read(session: &Session, message: GetMicrovmRequest) -> Result<Microvm, CliError> {
    Ok(session.call(message).await?.microvm.unwrap_or_default())
}

pub async fn list(session: &Session, arguments: List) -> Result<(), CliError> {
    let listed = all_microvms(session, arguments.image.as_deref(), arguments.version.as_deref()).await;
    let mut microvms = listed.map_err(|error| error.in_flags(flags::LIST))?;
    if !arguments.all {
        microvms.retain(|microvm| microvm.state() != MicrovmState::Terminated);
    }
    session.show_all(views::MICROVM, &microvms, views::microvms)
}

pub async fn get(session: &Session, arguments: One) -> Result<(), CliError> {
    let id = microvm_id(session, &arguments.id).await?;
    let microvm = read(session, GetMicrovmRequest { microvm_id: id, with_idleness: true }).await?;
    session.show(views::MICROVM, &microvm, views::microvm)
}

/// `torpor awake`: takes, lengthens or gives up a keep-awake lease.
pub async fn awake(session: &Session, arguments: Awake) -> Result<(), CliError> {
    let message = KeepMicrovmAwakeRequest {
        microvm_id: microvm_id(session, &arguments.id).await?,
        duration: arguments.duration.map(api::duration_proto),
        release: arguments.release,
    };
    let answered = session.call(message).await.map_err(|error| error.in_flags(flags::AWAKE))?;
    let microvm = answered.microvm.unwrap_or_default();
    session.show(views::MICROVM, &microvm, |microvm| {
        let awake = match views::awake(microvm, SystemTime::now()) {
            nothing if nothing.is_empty() => "never sleeps by itself".to_owned(),
            awake => awake,
        };
        output::line(format_args!("{} {awake}", microvm.microvm_id))
    })
}

#[derive(Debug, Clone, Copy)]
pub enum Change {
    Suspend,
    Resume,
    Terminate,
}

/// `torpor suspend`, `resume` and `terminate`. Goes on after a failure, so that
/// one bad id does not keep the others alive; the first failure is reported last.
pub async fn change(session: &Session, given: &[String], change: Change) -> Result<(), CliError> {
    let mut changed = Vec::new();
    let mut first_failure = None;
    for given in given {
        let result = async {
            let id = microvm_id(session, given).await?;
            let started = Instant::now();
            let microvm = change_one(session, &id, change).await?;
            Ok::<_, CliError>((microvm, started.elapsed()))
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

async fn change_one(session: &Session, id: &str, change: Change) -> Result<Microvm, CliError> {
    let microvm_id = id.to_owned();
    let microvm = match change {
        Change::Suspend => session.call_slowly(SuspendMicrovmRequest { microvm_id }).await?.microvm,
        Change::Resume => session.call_slowly(ResumeMicrovmRequest { microvm_id }).await?.microvm,
        Change::Terminate => {
            session.call_slowly(TerminateMicrovmRequest { microvm_id }).await?;
            Some(wait(session, id, MicrovmState::Terminated).await?)
        }
    };
    Ok(microvm.unwrap_or_default())
}

const TOKEN: &str = "torpor.microvm.v1.CreateMicrovmAuthTokenResponse";

pub async fn mint(
    session: &Session,
    id: &str,
    allowed_ports: Vec<PortScope>,
    ttl: Duration,
) -> Result<CreateMicrovmAuthTokenResponse, CliError> {
    session.call(token_request(id, allowed_ports, ttl)).await
}

fn token_request(id: &str, allowed_ports: Vec<PortScope>, ttl: Duration) -> CreateMicrovmAuthTokenRequest {
    CreateMicrovmAuthTokenRequest {
        microvm_id: id.to_owned(),
        expiration: Some(api::duration_proto(ttl)),
        allowed_ports,
        ..Default::default()
    }
}

pub fn single(port: u16) -> PortScope {
    PortScope { scope: Some(Scope::Port(port.into())) }
}

/// `torpor token`: the bare token, for use in another command, or the end of all tokens so far.
pub async fn token(session: &Session, arguments: Token) -> Result<(), CliError> {
    if let Some(TokenCommand::Revoke(One { id })) = arguments.command {
        return revoke(session, &id).await;
    }
    let scopes = arguments.ports.iter().map(|text| port_scope(text)).collect::<Result<_, _>>()?;
    let id = microvm_id(session, &arguments.id.unwrap_or_default()).await?;
    let request = CreateMicrovmAuthTokenRequest {
        allowed_paths: arguments.paths,
        allowed_methods: arguments.methods,
        ..token_request(&id, scopes, arguments.ttl)
    };
    let response = session.call(request).await;
    let response = response.map_err(|error| error.in_flags(flags::TOKEN))?;
    session.show(TOKEN, &response, |response| response.auth_token.values().try_for_each(output::line))
}

async fn revoke(session: &Session, id: &str) -> Result<(), CliError> {
    let id = microvm_id(session, id).await?;
    let response = session.call(RevokeMicrovmAuthTokensRequest { microvm_id: id }).await?;
    let microvm = response.microvm.unwrap_or_default();
    session.show(views::MICROVM, &microvm, |microvm| {
        output::line(format_args!("{} every token made so far is revoked", microvm.microvm_id))
    })
}

fn port_scope(text: &str) -> Result<PortScope, CliError> {
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
        None => Err(CliError::usage(format!("--port {text}: not a port, a range FIRST-LAST or 'all'"))),
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
    fn what_keeps_awake_as_people_write_it() {
        let given: Vec<AwakeWhile> = ["stream", "cpu=20"].iter().map(|text| text.parse().unwrap()).collect();
        let expected = WireAwakeWhile { stream: true, shell: false, cpu_percent: Some(20) };
        assert_eq!(awake_while(&given), Some(expected));
        assert_eq!(awake_while(&[]), None);
        for wrong in ["", "cpu", "cpu=", "cpu=x", "cpu=-1", "streams"] {
            assert!(wrong.parse::<AwakeWhile>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn short_ids_are_prefixes() {
        assert_eq!(short_id("microvm-0a1b2c3d-0000-4000-8000-000000000000"), "0a1b2c3d");
    }
}
