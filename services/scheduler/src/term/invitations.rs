//! Invitations: made for an operator, redeemed once for the edge that a browser brings one to.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use model::MicrovmId;
use model::limits::INVITATION_LIFE;
use records::{Committed, Expect, Versioned, Write};
use token::{Kind, PortScope};

use super::Term;
use super::tokens::NewToken;
use crate::adapters::invitations::{self as codec, Invitation};
use crate::adapters::token_keys::seconds;
use crate::domain::microvm::Microvm;
use crate::refusal::Refusal;

/// Most invitations that wait to be redeemed.
const INVITATIONS_MAX: usize = 1000;

/// An invitation as asked for, checked field by field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewInvitation {
    pub port: u16,
    pub path: String,
    pub session: Duration,
}

/// What became of an invitation.
pub struct BrowserSession {
    pub token: String,
    pub path: String,
    pub life: Duration,
}

impl Term {
    /// Makes an invitation; it is durable when this returns. The code is in the answer and nowhere else.
    pub async fn invite(
        self: &Arc<Self>,
        microvm: Arc<Microvm>,
        asked: NewInvitation,
    ) -> Result<(String, SystemTime), Refusal> {
        let term = Arc::clone(self);
        self.detached(async move {
            // One at a time, so that the limit is one.
            let _turn = term.invitations.lock().await;
            let waiting = term.context.store.count(codec::PREFIX).await?;
            if waiting >= INVITATIONS_MAX {
                return Err(Refusal::Quota {
                    quota: "invitations",
                    limit: INVITATIONS_MAX,
                    text: format!("The limit of {INVITATIONS_MAX} links that wait to be used is reached."),
                });
            }
            let expires = term.wall() + INVITATION_LIFE;
            let invitation = Invitation {
                microvm_id: microvm.id.clone(),
                port: asked.port,
                path: asked.path,
                session_seconds: asked.session.as_secs(),
                revocations: microvm.token_revocations,
                expires_at: seconds(expires),
            };
            let code = codec::generate().map_err(|error| Refusal::Internal(error.to_string()))?;
            // The lease removes it if nobody comes; until then its own time counts. Nothing keeps the lease alive.
            let lease = term.context.store.lease(INVITATION_LIFE).await?;
            let write = Write::Put {
                key: codec::key(&code),
                value: codec::encode(&invitation),
                expect: Expect::Absent,
                lease: Some(lease.id()),
            };
            match term.commit(vec![write]).await? {
                Committed::At(_) => {
                    tracing::info!(microvm = %microvm.id, port = asked.port, "invitation made");
                    Ok((code, expires))
                }
                Committed::Differs(_) => {
                    Err(Refusal::Internal("a fresh invitation's key is taken".to_owned()))
                }
            }
        })
        .await
    }

    /// Redeems an invitation that a browser brought to an endpoint. When the scheduler dies after the deletion, the
    /// link is used up and has opened nothing: the user asks for another one.
    pub async fn redeem(self: &Arc<Self>, code: String, label: String) -> Result<BrowserSession, Refusal> {
        let term = Arc::clone(self);
        self.detached(async move {
            // One at a time: a deletion whose answer was lost counts as done by whoever asked, and so only one may ask.
            let _turn = term.invitations.lock().await;
            let key = codec::key(&code);
            let found = term.context.store.get(&key).await?.ok_or(Refusal::InvitationSpent)?;
            let (invitation, microvm) =
                term.open_invitation(&found, &label).ok_or(Refusal::InvitationSpent)?;
            let write = Write::Delete { key, expect: Expect::Revision(found.revision) };
            let Committed::At(_) = term.commit(vec![write]).await? else {
                return Err(Refusal::InvitationSpent);
            };
            let life = Duration::from_secs(invitation.session_seconds);
            let ports = vec![PortScope::Single(invitation.port)];
            let (token, _) = term.mint(&microvm, NewToken::new(Kind::Browser, ports, life))?;
            tracing::info!(microvm = %microvm.id, port = invitation.port, "invitation redeemed");
            Ok(BrowserSession { token, path: invitation.path, life })
        })
        .await
    }

    /// The invitation, when it is still good and for the endpoint that it was brought to.
    fn open_invitation(&self, found: &Versioned, label: &str) -> Option<(Invitation, Arc<Microvm>)> {
        let invitation = codec::decode(&found.value)?;
        let microvm = self.invited(&invitation.microvm_id)?;
        let good = seconds(self.wall()) < invitation.expires_at
            && microvm.spec.endpoint_label == label
            && microvm.token_revocations == invitation.revocations
            && !microvm.has_ended();
        good.then_some((invitation, microvm))
    }

    fn invited(&self, id: &MicrovmId) -> Option<Arc<Microvm>> {
        Some(self.handle(id).ok()?.current())
    }
}
