//! Tokens for endpoints and shells.

use std::collections::HashMap;

use api::microvm::v1::port_scope::Scope;
use api::microvm::v1::{
    AllPorts, CreateMicrovmAuthTokenRequest, CreateMicrovmShellAuthTokenRequest, PortRange, PortScope,
};
use aws_model::Input;
use prost_types::Duration;
use serde_json::{Map, Value};

use super::{Answer, Call, map, members, microvms};
use crate::aws::members::Members;

const MINUTE_SECONDS: i64 = 60;

/// CreateMicrovmAuthToken.
pub async fn endpoint(call: Call<'_>, input: Input) -> Answer {
    let (microvm_id, expiration) = (microvms::id(&input), expiration(&input));
    let mut request = Members::from(input.into_members());
    let scopes = request.structures("allowedPorts").into_iter();
    let message = CreateMicrovmAuthTokenRequest {
        microvm_id,
        expiration,
        allowed_ports: scopes.map(|scope| PortScope { scope: ports(scope) }).collect(),
    };
    let made = call
        .services
        .microvms(call.request_id, message, |mut client, request| async move {
            client.create_microvm_auth_token(request).await
        })
        .await?;
    Ok(answer(made.auth_token))
}

/// CreateMicrovmShellAuthToken.
pub async fn shell(call: Call<'_>, input: Input) -> Answer {
    let message = CreateMicrovmShellAuthTokenRequest {
        microvm_id: microvms::id(&input),
        expiration: expiration(&input),
    };
    let made = call
        .services
        .microvms(call.request_id, message, |mut client, request| async move {
            client.create_microvm_shell_auth_token(request).await
        })
        .await?;
    Ok(answer(made.auth_token))
}

fn answer(token: HashMap<String, String>) -> Map<String, Value> {
    members([("authToken", map(token))])
}

fn expiration(input: &Input) -> Option<Duration> {
    let minutes = input.integer("expirationInMinutes")?;
    Some(Duration { seconds: i64::from(minutes) * MINUTE_SECONDS, nanos: 0 })
}

fn ports(mut scope: Members) -> Option<Scope> {
    let mut range = |mut range: Members| {
        Scope::Range(PortRange {
            start_port: range.small("startPort").unwrap_or(0),
            end_port: range.small("endPort").unwrap_or(0),
        })
    };
    let port = scope.small("port").map(Scope::Port);
    port.or_else(|| scope.structure("range").map(&mut range))
        .or_else(|| scope.structure("allPorts").map(|_| Scope::AllPorts(AllPorts {})))
}
