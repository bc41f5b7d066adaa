//! Who is calling, and who is called.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use tonic::{Code, Request, Status};
use webpki::EndEntityCert;

use api::errors::{self, reason};

use crate::LocalCaller;

const SUFFIX: &str = ".torpor.internal";
/// Certificates whose identity a thread remembers: those of its busiest callers.
const REMEMBERED_MAX: usize = 16;

thread_local! {
    static REMEMBERED: RefCell<VecDeque<(CertificateDer<'static>, Option<Identity>)>> =
        const { RefCell::new(VecDeque::new()) };
}

/// What a process is, as its certificate says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    Scheduler,
    ImageBuilder,
    EdgeProxy,
    HostAgent,
    /// An operator: the CLI and platform teams' clients.
    Admin,
    Etcd,
}

impl Role {
    pub const ALL: [Self; 6] =
        [Self::Scheduler, Self::ImageBuilder, Self::EdgeProxy, Self::HostAgent, Self::Admin, Self::Etcd];

    /// The name, as in file names and certificates.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Scheduler => "scheduler",
            Self::ImageBuilder => "image-builder",
            Self::EdgeProxy => "edge-proxy",
            Self::HostAgent => "host-agent",
            Self::Admin => "admin",
            Self::Etcd => "etcd",
        }
    }

    /// The DNS name in the role's certificate.
    #[must_use]
    pub fn dns_name(self) -> String {
        format!("{}{SUFFIX}", self.name())
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|role| role.name() == text).ok_or(())
    }
}

/// Who a process is, as its certificate says: its role, and of a host-agent its host's id.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    role: Role,
    host: Option<Arc<str>>,
}

impl From<Role> for Identity {
    fn from(role: Role) -> Self {
        Self { role, host: None }
    }
}

impl Identity {
    /// The host-agent of a host.
    #[must_use]
    pub fn of_host(id: &str) -> Self {
        Self { role: Role::HostAgent, host: Some(id.into()) }
    }

    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// The id of the host that it speaks for.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// The DNS name that no other identity has. It is also the certificate's common name, and with it the user in etcd.
    #[must_use]
    pub fn dns_name(&self) -> String {
        match &self.host {
            Some(host) => format!("{host}.{}", self.role.dns_name()),
            None => self.role.dns_name(),
        }
    }

    /// The DNS names that its certificate carries, the role's first.
    #[must_use]
    pub fn dns_names(&self) -> Vec<String> {
        let mut names = vec![self.role.dns_name()];
        names.extend(self.host.is_some().then(|| self.dns_name()));
        names
    }

    /// The identity in a peer's certificate chain (its first certificate), which must have been verified.
    #[must_use]
    pub fn in_chain(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let certificate = EndEntityCert::try_from(chain.first()?).ok()?;
        let names = || certificate.valid_dns_names().filter_map(|name| name.strip_suffix(SUFFIX));
        let role: Role = names().find_map(|name| name.parse().ok())?;
        let host = names().find_map(|name| name.strip_suffix(role.name())?.strip_suffix('.'));
        Some(Self { role, host: host.filter(|_| role == Role::HostAgent).map(Into::into) })
    }

    /// Whether who was reached is who was called.
    ///
    /// # Errors
    /// [`WrongPeer`] names both.
    pub fn compare(&self, chain: Option<&[CertificateDer<'_>]>) -> Result<(), WrongPeer> {
        let found = chain.and_then(remembered);
        match &found {
            Some(found) if found.role == self.role && (self.host.is_none() || self.host == found.host) => {
                Ok(())
            }
            _ => Err(WrongPeer { called: self.clone(), found }),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, self.role) {
            (Some(host), role) => write!(f, "the {role} of {host}"),
            (None, Role::HostAgent) => write!(f, "a {} of no host", self.role),
            (None, role) => write!(f, "a process of role {role}"),
        }
    }
}

/// Somebody else answers than was called: the address leads elsewhere by now, or somebody poses as a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongPeer {
    called: Identity,
    found: Option<Identity>,
}

impl fmt::Display for WrongPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} was called, and the certificate is of ", self.called)?;
        match &self.found {
            Some(found) => found.fmt(f),
            None => f.write_str("nobody in this fleet"),
        }
    }
}

impl Error for WrongPeer {}

impl WrongPeer {
    /// Why a call failed, if it failed because somebody else was reached: nothing was sent then. As PERMISSION_DENIED.
    #[must_use]
    pub fn behind(status: &Status) -> Option<Status> {
        let mut next = status.source();
        while let Some(error) = next {
            if let Some(wrong) = error.downcast_ref::<Self>() {
                let called = wrong.called.to_string();
                return Some(denied(wrong.to_string(), &[("called", &called)]));
            }
            next = error.source();
        }
        None
    }
}

/// [`Identity::in_chain`], remembered: a caller shows the same certificate with every call,
/// and reading it takes longer than answering many a call.
fn remembered(chain: &[CertificateDer<'_>]) -> Option<Identity> {
    let certificate = chain.first()?;
    REMEMBERED.with_borrow_mut(|remembered| {
        if let Some((_, identity)) = remembered.iter().find(|(known, _)| known == certificate) {
            return identity.clone();
        }
        let identity = Identity::in_chain(chain);
        if remembered.len() >= REMEMBERED_MAX {
            remembered.pop_front();
        }
        remembered.push_back((certificate.clone().into_owned(), identity.clone()));
        identity
    })
}

fn caller<T>(request: &Request<T>) -> Option<Identity> {
    let local = request.extensions().get::<LocalCaller>().map(|caller| caller.0.clone());
    local.or_else(|| request.peer_certs().and_then(|chain| remembered(&chain)))
}

fn denied(message: String, metadata: &[(&str, &str)]) -> Status {
    errors::status(Code::PermissionDenied, reason::PERMISSION_DENIED, message, metadata)
}

/// The caller, if its role is one of `allowed`.
///
/// # Errors
/// PERMISSION_DENIED otherwise.
pub fn authorize<T>(request: &Request<T>, allowed: &[Role]) -> Result<Identity, Status> {
    match caller(request) {
        Some(identity) if allowed.contains(&identity.role) => Ok(identity),
        other => {
            let caller = other.map_or("a caller without a role".to_owned(), |other| other.role.to_string());
            Err(denied(format!("{caller} may not make this call"), &[("role", &caller)]))
        }
    }
}

/// Lets in the host-agent of `host` only: what a host says of itself, no other host may say.
///
/// # Errors
/// PERMISSION_DENIED otherwise; it names both.
pub fn authorize_host<T>(request: &Request<T>, host: &str) -> Result<(), Status> {
    let caller = authorize(request, &[Role::HostAgent])?;
    if caller.host() == Some(host) {
        return Ok(());
    }
    let certificate = caller.host().unwrap_or_default();
    Err(denied(
        format!("the caller's certificate is of {caller}: it may not speak for host '{host}'"),
        &[("host", host), ("certificateHost", certificate)],
    ))
}
