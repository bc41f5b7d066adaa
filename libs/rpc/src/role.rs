//! Who is calling.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use rustls::pki_types::CertificateDer;
use tonic::{Code, Request, Status};
use webpki::EndEntityCert;

use api::errors::{self, reason};

use crate::LocalCaller;

const SUFFIX: &str = ".torpor.internal";
/// Certificates whose role a thread remembers: those of its busiest callers.
const REMEMBERED_MAX: usize = 16;

thread_local! {
    static REMEMBERED: RefCell<VecDeque<(CertificateDer<'static>, Option<Role>)>> =
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

/// The role in a verified peer's certificate chain (its first certificate).
#[must_use]
pub fn peer_role(chain: &[CertificateDer<'_>]) -> Option<Role> {
    let certificate = EndEntityCert::try_from(chain.first()?).ok()?;
    certificate.valid_dns_names().find_map(|name| name.strip_suffix(SUFFIX)?.parse().ok())
}

/// [`peer_role`], remembered: a caller shows the same certificate with every call,
/// and reading it takes longer than answering many a call.
fn remembered_role(chain: &[CertificateDer<'_>]) -> Option<Role> {
    let certificate = chain.first()?;
    REMEMBERED.with_borrow_mut(|remembered| {
        if let Some((_, role)) = remembered.iter().find(|(known, _)| known == certificate) {
            return *role;
        }
        let role = peer_role(chain);
        if remembered.len() >= REMEMBERED_MAX {
            remembered.pop_front();
        }
        remembered.push_back((certificate.clone().into_owned(), role));
        role
    })
}

/// The caller's role, if it is one of `allowed`.
///
/// # Errors
/// PERMISSION_DENIED otherwise.
pub fn authorize<T>(request: &Request<T>, allowed: &[Role]) -> Result<Role, Status> {
    let local = request.extensions().get::<LocalCaller>().map(|caller| caller.0);
    let role = local.or_else(|| request.peer_certs().and_then(|chain| remembered_role(&chain)));
    match role {
        Some(role) if allowed.contains(&role) => Ok(role),
        other => {
            let caller = other.map_or("a caller without a role".to_owned(), |role| role.to_string());
            Err(errors::status(
                Code::PermissionDenied,
                reason::PERMISSION_DENIED,
                format!("{caller} may not make this call"),
                &[("role", &caller)],
            ))
        }
    }
}
