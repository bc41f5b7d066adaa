//! Why a command did not do what was asked, in the three parts a person needs:
//! what kind of failure (the exit code), what happened, what to do next.

use std::fmt;

use api::errors::reason;
use tonic::{Code, Status};
use tonic_types::{FieldViolation, StatusExt as _};

use crate::flags::{Flags, typed};

/// The kind of a failure; scripts see it as the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Whoever read our output has gone; nothing to report.
    ClosedPipe,
    Failed,
    /// The command line or a value in it is wrong.
    Usage,
    NotFound,
    /// The state of the thing forbids it.
    Conflict,
    /// A service or a resource is out of reach for now.
    Unavailable,
    Timeout,
}

impl Kind {
    pub fn code(self) -> u8 {
        match self {
            Self::ClosedPipe => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Unavailable => 5,
            Self::Timeout => 6,
        }
    }
}

#[derive(Debug)]
pub struct CliError {
    pub kind: Kind,
    /// What happened, a sentence without its full stop.
    pub message: String,
    pub next: Option<String>,
    /// The fields of a request that a service found fault with: path and description.
    violations: Vec<(String, String)>,
}

impl CliError {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), next: None, violations: Vec::new() }
    }

    /// A failure with exit code 1.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// The same failure in the words of a command line: faults of fields name the flags that filled them.
    pub fn in_flags(mut self, flags: Flags) -> Self {
        let named = |(field, fault): (String, String)| format!("{}: {fault}", typed(flags, &field));
        let faults: Vec<String> = std::mem::take(&mut self.violations).into_iter().map(named).collect();
        if !faults.is_empty() {
            self.message = faults.join("; ");
        }
        self
    }

    /// The same failure, its message preceded by what was being done.
    pub fn during(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Self::new(Kind::ClosedPipe, "");
        }
        Self::failed(error.to_string())
    }
}

impl From<anyhow::Error> for CliError {
    fn from(error: anyhow::Error) -> Self {
        Self::failed(format!("{error:#}"))
    }
}

impl From<client::ContextError> for CliError {
    fn from(error: client::ContextError) -> Self {
        use client::ContextError;
        match &error {
            ContextError::NoFleet { .. } => Self::new(Kind::Unavailable, error.to_string())
                .next("start one with torpor up, or name its directory with --data-dir"),
            ContextError::File { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                Self::failed(chain(&error)).next("run the command as root, for example with sudo")
            }
            ContextError::Identity(_) => Self::failed(chain(&error))
                .next("torpor up makes the certificates anew where they are missing"),
            _ => Self::failed(chain(&error)),
        }
    }
}

impl From<client::EndpointError> for CliError {
    fn from(error: client::EndpointError) -> Self {
        match &error {
            client::EndpointError::Connect { .. } => {
                Self::new(Kind::Unavailable, chain(&error)).next("is edge-proxy healthy? see torpor status")
            }
            _ => Self::failed(chain(&error)),
        }
    }
}

/// An error with everything that caused it, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

impl From<Status> for CliError {
    fn from(status: Status) -> Self {
        let kind = match status.code() {
            Code::NotFound => Kind::NotFound,
            Code::AlreadyExists | Code::Aborted | Code::FailedPrecondition => Kind::Conflict,
            // Our services never answer UNKNOWN: it is a connection that broke.
            Code::Unavailable | Code::ResourceExhausted | Code::Unknown => Kind::Unavailable,
            Code::DeadlineExceeded => Kind::Timeout,
            Code::InvalidArgument | Code::OutOfRange => Kind::Usage,
            // tonic reports a local deadline as a cancelled call.
            Code::Cancelled if status.message().contains("Timeout expired") => Kind::Timeout,
            _ => Kind::Failed,
        };
        let reason = api::errors::reason_of(&status);
        let mut message = status.message().to_owned();
        if message.is_empty() {
            message = status.code().description().to_owned();
        }
        if status.code() == Code::Unavailable && reason.is_none() {
            // The transport's own words, which name nobody.
            message = format!("the fleet's service does not answer: {message}");
        }
        let mut failure = Self::new(kind, message);
        failure.next = advice(&status, reason.as_deref()).map(str::to_owned);
        if let Some(found) = status.get_details_bad_request() {
            let pair = |one: FieldViolation| (one.field, one.description);
            failure.violations = found.field_violations.into_iter().map(pair).collect();
        }
        failure
    }
}

/// The next step for an error, by its reason.
fn advice(status: &Status, reason: Option<&str>) -> Option<&'static str> {
    match reason {
        Some(reason::IMAGE_IN_USE) => {
            Some("end its microVMs first: torpor list --image NAME, then torpor terminate ID")
        }
        Some(reason::NOT_DELETABLE) => Some(
            "wait for its build (torpor image logs -f NAME), or delete the whole image: torpor image delete NAME",
        ),
        Some(reason::QUOTA_EXCEEDED) => {
            Some("delete what is not needed, or raise the quota; docs/OPERATIONS.md names the settings")
        }
        Some(reason::NO_ACTIVE_VERSION) => Some("see how its builds went: torpor image builds NAME"),
        Some(reason::ALREADY_EXISTS) => {
            Some("build a new version of it: torpor image update NAME --artifact …")
        }
        Some(reason::INSUFFICIENT_CAPACITY) => {
            Some("make room (torpor suspend ID, torpor terminate ID) or see torpor hosts")
        }
        Some(reason::SHELL_NOT_ALLOWED) => Some("start one that lets shells in: torpor run IMAGE --shell"),
        Some(reason::TERMINATED) => Some("start a new one: torpor run IMAGE"),
        Some(reason::DISK_FULL) => Some("free space in the data directory, then try again"),
        Some(reason::CORRUPT_OBJECT) => Some("build the image again: torpor image update NAME --artifact …"),
        Some(reason::STATE_CONFLICT) => Some("see its state: torpor get ID, or torpor image get NAME"),
        Some(reason::PERMISSION_DENIED) => Some("use the admin certificate: eval \"$(torpor env)\""),
        Some(_) => None,
        None if status.code() == Code::Unavailable => {
            Some("is the fleet up? see torpor status; start it with torpor up")
        }
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_become_the_documented_exit_codes() {
        let cases = [
            (Status::not_found("x"), 3),
            (Status::already_exists("x"), 4),
            (Status::failed_precondition("x"), 4),
            (Status::unavailable("x"), 5),
            (Status::resource_exhausted("x"), 5),
            (Status::deadline_exceeded("x"), 6),
            (Status::invalid_argument("x"), 2),
            (Status::data_loss("x"), 1),
            (Status::internal("x"), 1),
        ];
        for (status, code) in cases {
            let name = format!("{:?}", status.code());
            assert_eq!(CliError::from(status).kind.code(), code, "{name}");
        }
    }

    #[test]
    fn a_reason_brings_its_next_step() {
        let status =
            api::errors::status(Code::FailedPrecondition, reason::IMAGE_IN_USE, "image is in use", &[]);
        let failure = CliError::from(status);
        assert_eq!(failure.message, "image is in use");
        assert!(failure.next.expect("has advice").contains("torpor terminate"));
    }

    #[test]
    fn faults_name_the_flag_that_was_typed() {
        let violations = [
            ("idlePolicy.maxIdleDurationSeconds", "must be whole seconds, 60 to 28800"),
            ("other", "is odd"),
        ]
        .map(|(field, fault)| (field.to_owned(), fault.to_owned()));
        let error = CliError::from(api::errors::invalid(&violations)).in_flags(crate::flags::RUN);
        assert_eq!(error.message, "--idle: must be whole seconds, 60 to 28800; other: is odd");
        let other = CliError::from(Status::not_found("no such thing")).in_flags(crate::flags::RUN);
        assert_eq!(other.message, "no such thing");
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let error = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert_eq!(CliError::from(error).kind.code(), 0);
    }
}
