//! Requests for tokens.

use std::time::Duration;

use api::microvm::v1::port_scope::Scope;
use api::microvm::v1::{
    CreateMicrovmAuthTokenRequest, CreateMicrovmShellAuthTokenRequest, PortScope as WirePortScope,
};
use model::Violations;
use model::limits;
use token::{Kind, PortScope, is_plain_path};

use super::whole_seconds;
use crate::refusal::Refusal;
use crate::term::tokens::NewToken;

/// What may stand in a path's URL besides letters and digits.
const PATH_CHARACTERS: &[u8] = b"/-._~!$&'()*+,;=:@%";

pub fn shell(request: &CreateMicrovmShellAuthTokenRequest) -> Result<NewToken, Refusal> {
    let mut violations = Violations::default();
    let life = life(request.expiration, &mut violations);
    finish(violations, life, |life| NewToken::new(Kind::Shell, Vec::new(), life))
}

pub fn endpoint(request: &CreateMicrovmAuthTokenRequest) -> Result<NewToken, Refusal> {
    let mut violations = Violations::default();
    let life = life(request.expiration, &mut violations);
    let ports = ports(&request.allowed_ports, &mut violations);
    paths(&request.allowed_paths, &mut violations);
    methods(&request.allowed_methods, &mut violations);
    finish(violations, life, |life| NewToken {
        paths: request.allowed_paths.clone(),
        methods: request.allowed_methods.clone(),
        ..NewToken::new(Kind::Endpoint, ports, life)
    })
}

fn finish(
    violations: Violations,
    life: Option<Duration>,
    token: impl FnOnce(Duration) -> NewToken,
) -> Result<NewToken, Refusal> {
    match life {
        Some(life) if violations.is_empty() => Ok(token(life)),
        _ => Err(Refusal::Invalid(violations)),
    }
}

/// Life of a token: whole minutes.
fn life(given: Option<prost_types::Duration>, violations: &mut Violations) -> Option<Duration> {
    const FIELD: &str = "expirationInMinutes";
    let bounds = (limits::TOKEN_DURATION_MIN, limits::TOKEN_DURATION_MAX);
    let life = whole_seconds(&given.unwrap_or_default(), bounds, FIELD, violations)?;
    violations.check(life.as_secs().is_multiple_of(60), FIELD, "must be whole minutes");
    Some(life)
}

fn ports(scopes: &[WirePortScope], violations: &mut Violations) -> Vec<PortScope> {
    violations.check(
        (1..=limits::TOKEN_PORT_SCOPES_MAX).contains(&scopes.len()),
        "allowedPorts",
        format!("must have 1 to {} entries", limits::TOKEN_PORT_SCOPES_MAX),
    );
    let mut ports = Vec::new();
    for (index, scope) in scopes.iter().take(limits::TOKEN_PORT_SCOPES_MAX).enumerate() {
        match port_scope(scope) {
            Some(scope) => ports.push(scope),
            None => violations.add(
                format!("allowedPorts[{index}]"),
                "must be a port of 1 to 65535, a range of them in order, or all ports",
            ),
        }
    }
    ports
}

fn port_scope(scope: &WirePortScope) -> Option<PortScope> {
    let port = |number: u32| u16::try_from(number).ok().filter(|port| *port > 0);
    match scope.scope.as_ref()? {
        Scope::Port(number) => Some(PortScope::Single(port(*number)?)),
        Scope::Range(range) => {
            let (first, last) = (port(range.start_port)?, port(range.end_port)?);
            (first <= last).then_some(PortScope::Range(first, last))
        }
        Scope::AllPorts(_) => Some(PortScope::ALL),
    }
}

fn paths(paths: &[String], violations: &mut Violations) {
    const FIELD: &str = "allowedPaths";
    let (most, longest) = (limits::TOKEN_PATHS_MAX, limits::TOKEN_PATH_BYTES_MAX);
    let together = limits::TOKEN_PATHS_BYTES_MAX;
    violations.check(paths.len() <= most, FIELD, format!("must have at most {most} entries"));
    violations.check(
        paths.iter().map(String::len).sum::<usize>() <= together,
        FIELD,
        format!("must be at most {together} bytes together"),
    );
    for (index, path) in paths.iter().take(most).enumerate() {
        let field = format!("{FIELD}[{index}]");
        violations.check(path.len() <= longest, &field, format!("must be at most {longest} bytes"));
        let in_a_url =
            path.bytes().all(|byte| byte.is_ascii_alphanumeric() || PATH_CHARACTERS.contains(&byte));
        violations.check(
            in_a_url && is_plain_path(path),
            &field,
            "must be a path as it stands in a URL: it begins with \"/\", has no query, no empty, \".\" or \"..\" segment, \
             no backslash and none of %2e, %2f and %5c",
        );
    }
}

fn methods(methods: &[String], violations: &mut Violations) {
    const FIELD: &str = "allowedMethods";
    let (most, longest) = (limits::TOKEN_METHODS_MAX, limits::TOKEN_METHOD_BYTES_MAX);
    violations.check(methods.len() <= most, FIELD, format!("must have at most {most} entries"));
    for (index, method) in methods.iter().take(most).enumerate() {
        let letters = method.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-');
        violations.check(
            letters && (1..=longest).contains(&method.len()),
            format!("{FIELD}[{index}]"),
            format!("must be an HTTP method: 1 to {longest} capital letters and dashes"),
        );
    }
}

#[cfg(test)]
mod tests;
