//! Requests for invitations.

use api::microvm::v1::CreateMicrovmInvitationRequest;
use model::Violations;
use model::limits;

use super::whole_seconds;
use crate::refusal::Refusal;
use crate::term::invitations::NewInvitation;

/// Port that a session reaches unless told otherwise.
const DEFAULT_PORT: u16 = 8080;

pub fn invitation(request: &CreateMicrovmInvitationRequest) -> Result<NewInvitation, Refusal> {
    let mut violations = Violations::default();
    let port = match request.port {
        0 => Some(DEFAULT_PORT),
        number => u16::try_from(number).ok(),
    };
    violations.check(port.is_some(), "port", "must be a port of 1 to 65535");
    let path = if request.path.is_empty() { "/" } else { &request.path };
    let longest = limits::INVITATION_PATH_BYTES_MAX;
    violations.check(path.len() <= longest, "path", format!("must be at most {longest} bytes"));
    violations.check(
        leads_into_the_app(path),
        "path",
        "must begin with one \"/\" and stand as in a URL, without spaces, quotes, angle brackets and backslashes",
    );
    let bounds = (limits::BROWSER_SESSION_MIN, limits::BROWSER_SESSION_MAX);
    let session = match &request.session_duration {
        None => Some(limits::BROWSER_SESSION_MAX),
        Some(given) => whole_seconds(given, bounds, "sessionDuration", &mut violations),
    };
    match port.zip(session) {
        Some((port, session)) if violations.is_empty() => {
            Ok(NewInvitation { port, path: path.to_owned(), session })
        }
        _ => Err(Refusal::Invalid(violations)),
    }
}

/// The path goes into a redirect: "//host" and what browsers take for it would lead elsewhere.
fn leads_into_the_app(path: &str) -> bool {
    let in_a_url = |byte: u8| byte.is_ascii_graphic() && !b"\"<>\\".contains(&byte);
    path.starts_with('/') && !path.starts_with("//") && path.bytes().all(in_a_url)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_wrong_names_the_field() {
        let request = CreateMicrovmInvitationRequest::default;
        let asked = invitation(&request()).unwrap();
        let hours = Duration::from_secs(12 * 3600);
        assert_eq!(asked, NewInvitation { port: 8080, path: "/".into(), session: hours });
        let path = |path: &str| CreateMicrovmInvitationRequest { path: path.into(), ..request() };
        let session = |seconds| CreateMicrovmInvitationRequest {
            session_duration: Some(prost_types::Duration { seconds, nanos: 0 }),
            ..request()
        };
        for (request, field) in [
            (path("/a/b?c=%20#d"), None),
            (path(&format!("/{}", "x".repeat(2047))), None),
            (path(&format!("/{}", "x".repeat(2048))), Some("path: must be at most 2048 bytes")),
            (path("a"), Some("path: must begin")),
            (path("//evil.example"), Some("path: must begin")),
            (path("/\\evil.example"), Some("path: must begin")),
            (path("https://evil.example"), Some("path: must begin")),
            (path("/a b"), Some("path: must begin")),
            (path("/a\r\nset-cookie: x=y"), Some("path: must begin")),
            (session(60), None),
            (session(43_200), None),
            (session(59), Some("sessionDuration: must be whole seconds, 60 to 43200")),
            (session(43_201), Some("sessionDuration: must be whole seconds, 60 to 43200")),
            (CreateMicrovmInvitationRequest { port: 65_535, ..request() }, None),
            (CreateMicrovmInvitationRequest { port: 65_536, ..request() }, Some("port: must be a port")),
        ] {
            let said = invitation(&request).err().map(|refusal| refusal.to_string());
            let as_expected = match (&said, field) {
                (None, None) => true,
                (Some(said), Some(field)) => said.contains(field),
                _ => false,
            };
            assert!(as_expected, "{request:?}: {said:?}");
        }
    }
}
