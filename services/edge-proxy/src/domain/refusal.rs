//! Answers that the edge gives itself. Clients branch on their status, the
//! exact text of the 403s and the error header, so none of these changes.

use std::time::Duration;

/// When to try again where as much is under way as may be.
pub const TOO_MANY_AGAIN: Duration = Duration::from_secs(1);

/// A request that reaches no app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// No token, or something that is none.
    NoAuthentication,
    /// A token that does not open this endpoint, or no such endpoint; which of
    /// the two is not for the caller to learn.
    AuthenticationFailed,
    /// The token does not cover the port.
    PortDenied,
    /// The token does not cover the path, or the path can be read in two ways.
    PathDenied,
    /// The token does not cover the method.
    MethodDenied,
    /// The cookie of a browser session, in a request that another site's page may have made.
    CrossSite,
    /// A browser's link that opens nothing, any more or at all.
    InvitationSpent,
    /// Malformed, with a sentence that says how.
    BadRequest(&'static str),
    /// The request names another endpoint than the connection is for.
    Misdirected,
    /// Too many requests of this microVM or address.
    TooMany { retry_after: Duration },
    /// The microVM runs and nothing listens on the port.
    AppConnectFailed,
    /// Something listens on the port, and HTTP cannot be spoken with it; a sentence that says why.
    NotHttp(&'static str),
    /// The microVM has ended.
    MicrovmConnectFailed,
    /// The microVM sleeps and is not woken, or could not be.
    Asleep,
    /// The edge does not know enough yet to answer, or the microVM is not awake, or its host not reached, within the time that a
    /// request is held.
    NotReady,
    /// Its host is cut off from the record store, and may not serve until that is back.
    StoreAway,
    /// A bug, here or at the host.
    Internal,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub error: Option<&'static str>,
    /// Plain text; may be empty.
    pub body: &'static str,
    /// Value of `retry-after`, in whole seconds.
    pub retry_after_s: Option<u64>,
}

/// A wait as `Retry-After` has it: never shorter, and at least a second.
pub fn whole_seconds(wait: Duration) -> u64 {
    wait.as_millis().div_ceil(1000).max(1).try_into().unwrap_or(u64::MAX)
}

impl Refusal {
    /// One word for it, for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoAuthentication => "no_token",
            Self::AuthenticationFailed => "token_failed",
            Self::PortDenied => "port_denied",
            Self::PathDenied => "path_denied",
            Self::MethodDenied => "method_denied",
            Self::CrossSite => "cross_site",
            Self::InvitationSpent => "invitation_spent",
            Self::BadRequest(_) => "bad_request",
            Self::Misdirected => "misdirected",
            Self::TooMany { .. } => "too_many",
            Self::AppConnectFailed => "app_connect_failed",
            Self::NotHttp(_) => "app_not_http",
            Self::MicrovmConnectFailed => "microvm_connect_failed",
            Self::Asleep => "asleep",
            Self::NotReady => "not_ready",
            Self::StoreAway => "store_away",
            Self::Internal => "internal",
        }
    }

    pub fn answer(&self) -> Answer {
        let plain = |status, error, body| Answer { status, error, body, retry_after_s: None };
        let later = |status, after: Duration| Answer {
            retry_after_s: Some(whole_seconds(after)),
            ..plain(status, None, "")
        };
        match self {
            Self::NoAuthentication => plain(403, Some("UNAUTHORIZED"), "Request missing authentication"),
            Self::AuthenticationFailed => plain(403, Some("UNAUTHORIZED"), "Token authentication failed"),
            Self::PortDenied => plain(403, Some("UNAUTHORIZED"), "Access to port denied"),
            Self::PathDenied => plain(403, Some("SCOPE_DENIED"), "Access to path denied"),
            Self::MethodDenied => plain(403, Some("SCOPE_DENIED"), "Access to method denied"),
            Self::CrossSite => plain(403, Some("CROSS_SITE"), "Cross-site request denied"),
            Self::InvitationSpent => plain(
                403,
                Some("INVITATION_SPENT"),
                "This link was used before or has expired. Make a new one: torpor open ID",
            ),
            Self::BadRequest(text) => plain(400, None, text),
            Self::Misdirected => plain(421, None, "Misdirected request"),
            Self::TooMany { retry_after } => later(429, *retry_after),
            Self::AppConnectFailed => plain(502, Some("APP_CONNECT_FAILED"), ""),
            Self::NotHttp(text) => plain(502, Some("APP_CONNECT_FAILED"), text),
            Self::MicrovmConnectFailed => plain(502, Some("MICROVM_CONNECT_FAILED"), ""),
            Self::Asleep => plain(502, None, ""),
            Self::NotReady => later(503, Duration::from_secs(1)),
            Self::StoreAway => Answer {
                error: Some("STORE_AWAY"),
                body: "The host of this MicroVM cannot reach the record store (etcd). It serves again as soon as the store is back.",
                ..later(503, Duration::from_secs(1))
            },
            Self::Internal => plain(500, None, ""),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_as_clients_know_them() {
        let second = Duration::from_secs(1);
        for (refusal, status, error, body, retry_after) in [
            (Refusal::NoAuthentication, 403, Some("UNAUTHORIZED"), "Request missing authentication", None),
            (Refusal::AuthenticationFailed, 403, Some("UNAUTHORIZED"), "Token authentication failed", None),
            (Refusal::PortDenied, 403, Some("UNAUTHORIZED"), "Access to port denied", None),
            (Refusal::PathDenied, 403, Some("SCOPE_DENIED"), "Access to path denied", None),
            (Refusal::MethodDenied, 403, Some("SCOPE_DENIED"), "Access to method denied", None),
            (Refusal::CrossSite, 403, Some("CROSS_SITE"), "Cross-site request denied", None),
            (Refusal::BadRequest("no"), 400, None, "no", None),
            (Refusal::Misdirected, 421, None, "Misdirected request", None),
            (Refusal::TooMany { retry_after: second / 3 }, 429, None, "", Some(1)),
            (Refusal::TooMany { retry_after: second * 3 / 2 }, 429, None, "", Some(2)),
            (Refusal::AppConnectFailed, 502, Some("APP_CONNECT_FAILED"), "", None),
            (Refusal::NotHttp("why"), 502, Some("APP_CONNECT_FAILED"), "why", None),
            (Refusal::MicrovmConnectFailed, 502, Some("MICROVM_CONNECT_FAILED"), "", None),
            (Refusal::Asleep, 502, None, "", None),
            (Refusal::NotReady, 503, None, "", Some(1)),
            (Refusal::Internal, 500, None, "", None),
        ] {
            let expected = Answer { status, error, body, retry_after_s: retry_after };
            assert_eq!(refusal.answer(), expected, "{refusal:?}");
        }
    }
}
