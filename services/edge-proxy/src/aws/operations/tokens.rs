//! Tokens for endpoints and shells.

use std::collections::HashMap;

use api::microvm::v1::port_scope::Scope;
use api::microvm::v1::{
    AllPorts, CreateMicrovmAuthTokenRequest, CreateMicrovmAuthTokenResponse,
    CreateMicrovmShellAuthTokenRequest, CreateMicrovmShellAuthTokenResponse, PortRange, PortScope,
};
use aws_model::{Members, Rejection};
use prost_types::Duration;

use super::{Answer, Call, map, members, microvms};

const MINUTE_SECONDS: i64 = 60;

pub(super) fn endpoint(call: &Call<'_>) -> Result<CreateMicrovmAuthTokenRequest, Rejection> {
    let scopes = call.members().structures("allowedPorts");
    Ok(CreateMicrovmAuthTokenRequest {
        microvm_id: microvms::id(call),
        expiration: expiration(call),
        allowed_ports: scopes.map(|scope| PortScope { scope: ports(scope) }).collect(),
        ..Default::default()
    })
}

pub(super) fn endpoint_made(_: &Call<'_>, made: CreateMicrovmAuthTokenResponse) -> Answer {
    token(made.auth_token)
}

pub(super) fn shell(call: &Call<'_>) -> Result<CreateMicrovmShellAuthTokenRequest, Rejection> {
    Ok(CreateMicrovmShellAuthTokenRequest { microvm_id: microvms::id(call), expiration: expiration(call) })
}

pub(super) fn shell_made(_: &Call<'_>, made: CreateMicrovmShellAuthTokenResponse) -> Answer {
    token(made.auth_token)
}

fn token(headers: HashMap<String, String>) -> Answer {
    Ok(members([("authToken", map(headers))]))
}

fn expiration(call: &Call<'_>) -> Option<Duration> {
    let minutes = call.members().integer("expirationInMinutes")?;
    Some(Duration { seconds: minutes * MINUTE_SECONDS, nanos: 0 })
}

fn ports(scope: Members<'_>) -> Option<Scope> {
    let range = |range: Members<'_>| {
        Scope::Range(PortRange {
            start_port: range.number("startPort").unwrap_or(0),
            end_port: range.number("endPort").unwrap_or(0),
        })
    };
    let port = scope.number("port").map(Scope::Port);
    port.or_else(|| scope.structure("range").map(range))
        .or_else(|| scope.structure("allPorts").map(|_| Scope::AllPorts(AllPorts {})))
}
