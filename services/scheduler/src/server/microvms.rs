//! `torpor.microvm.v1.MicrovmService`.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use api::microvm::v1::microvm_service_server::MicrovmService;
use api::microvm::v1::*;
use futures::{Stream, StreamExt as _};
use model::MicrovmId;
use model::limits::PAGE_SIZE_MAX;
use prost_types::Timestamp;
use rpc::Role::{self, Admin, EdgeProxy, ImageBuilder};
use token::AUTH_HEADER;
use tonic::{Code, Request, Status};

use super::{Answer, Handlers, errors, validation, wire};
use crate::adapters::invitations::is_code;
use crate::domain::microvm::Microvm;
use crate::refusal::Refusal;
use crate::term::Term;
use crate::term::tokens::NewToken;

/// Who launches, changes and reads microVMs.
const CALLERS: &[Role] = &[Admin, EdgeProxy];
/// Who only reads: image-builder asks whether an image is in use.
const READERS: &[Role] = &[Admin, EdgeProxy, ImageBuilder];

/// Header name to token, and when it stops working.
type Minted = (HashMap<String, String>, Option<Timestamp>);

/// Where an edge takes invitations, below the endpoint's URL.
const INVITATION_PATH: &str = ".torpor/open";

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Handlers {
    fn show(&self, record: &Microvm) -> Option<api::microvm::v1::Microvm> {
        Some(wire::microvm(record, &self.config))
    }
}

#[tonic::async_trait]
impl MicrovmService for Handlers {
    async fn run_microvm(&self, request: Request<RunMicrovmRequest>) -> Answer<RunMicrovmResponse> {
        self.answer(request, CALLERS, |term, request| async move {
            let microvm = term.run(validation::run(&request, &self.config)?).await?;
            Ok(RunMicrovmResponse { microvm: self.show(&microvm) })
        })
        .await
    }

    async fn get_microvm(&self, request: Request<GetMicrovmRequest>) -> Answer<GetMicrovmResponse> {
        self.answer(request, READERS, |term, request| async move {
            let handle = term.handle(&validation::microvm_id(&request.microvm_id)?)?;
            let record = handle.current();
            let idleness = if request.with_idleness { term.idleness(&record).await } else { None };
            let microvm = api::microvm::v1::Microvm { idleness, ..wire::microvm(&record, &self.config) };
            Ok(GetMicrovmResponse { microvm: Some(microvm) })
        })
        .await
    }

    async fn list_microvms(&self, request: Request<ListMicrovmsRequest>) -> Answer<ListMicrovmsResponse> {
        self.answer(request, READERS, |term, request| async move {
            let (image, version, after) = validation::list(&request, &self.config)?;
            let size = validation::page_size(request.page_size, PAGE_SIZE_MAX)?;
            if let Some(image) = image.as_ref().filter(|_| request.unlaunchable) {
                term.until_unlaunchable(image, version).await?;
            }
            let (page, next) = term.memory().page(image.as_ref(), version, after, size);
            Ok(ListMicrovmsResponse {
                microvms: page.iter().map(|record| wire::microvm(record, &self.config)).collect(),
                next_page_token: next.map(|next| next.to_token()).unwrap_or_default(),
            })
        })
        .await
    }

    async fn get_usage(&self, request: Request<GetUsageRequest>) -> Answer<GetUsageResponse> {
        self.answer(request, READERS, |term, request| async move {
            let used = term.used(validation::usage_days(request.days)?).await;
            Ok(wire::usage(used, &term.catalog()))
        })
        .await
    }

    async fn suspend_microvm(
        &self,
        request: Request<SuspendMicrovmRequest>,
    ) -> Answer<SuspendMicrovmResponse> {
        self.answer(request, CALLERS, |term, request| async move {
            let microvm = term
                .suspend(&validation::microvm_id(&request.microvm_id)?, TransitionCause::Requested)
                .await?;
            Ok(SuspendMicrovmResponse { microvm: self.show(&microvm) })
        })
        .await
    }

    async fn resume_microvm(&self, request: Request<ResumeMicrovmRequest>) -> Answer<ResumeMicrovmResponse> {
        self.answer(request, CALLERS, |term, request| async move {
            let microvm = term.resume(&validation::microvm_id(&request.microvm_id)?).await?;
            Ok(ResumeMicrovmResponse { microvm: self.show(&microvm) })
        })
        .await
    }

    async fn checkpoint_microvm(
        &self,
        request: Request<CheckpointMicrovmRequest>,
    ) -> Answer<CheckpointMicrovmResponse> {
        self.answer(request, CALLERS, |term, request| async move {
            let (microvm, point) = term.checkpoint(&validation::microvm_id(&request.microvm_id)?).await?;
            Ok(CheckpointMicrovmResponse { microvm: self.show(&microvm), recovery_point: Some(point) })
        })
        .await
    }

    async fn keep_microvm_awake(
        &self,
        request: Request<KeepMicrovmAwakeRequest>,
    ) -> Answer<KeepMicrovmAwakeResponse> {
        self.answer(request, CALLERS, |term, request| async move {
            let (id, duration) = validation::keep_awake(&request)?;
            let (record, idleness) = term.keep_awake(&id, duration).await?;
            let microvm = api::microvm::v1::Microvm { idleness, ..wire::microvm(&record, &self.config) };
            Ok(KeepMicrovmAwakeResponse { microvm: Some(microvm) })
        })
        .await
    }

    async fn terminate_microvm(
        &self,
        request: Request<TerminateMicrovmRequest>,
    ) -> Answer<TerminateMicrovmResponse> {
        self.answer(request, CALLERS, |term, request| async move {
            let microvm = term.terminate(&validation::microvm_id(&request.microvm_id)?).await?;
            Ok(TerminateMicrovmResponse { microvm: self.show(&microvm) })
        })
        .await
    }

    async fn create_microvm_auth_token(
        &self,
        request: Request<CreateMicrovmAuthTokenRequest>,
    ) -> Answer<CreateMicrovmAuthTokenResponse> {
        self.answer(request, CALLERS, |term, request| async move {
            let id = validation::microvm_id(&request.microvm_id)?;
            let asked = validation::tokens::endpoint(&request)?;
            let (auth_token, expire_time) = mint(&term, &*alive(&term, &id)?, asked)?;
            Ok(CreateMicrovmAuthTokenResponse { auth_token, expire_time })
        })
        .await
    }

    async fn create_microvm_shell_auth_token(
        &self,
        request: Request<CreateMicrovmShellAuthTokenRequest>,
    ) -> Answer<CreateMicrovmShellAuthTokenResponse> {
        self.answer(request, CALLERS, |term, request| async move {
            let id = validation::microvm_id(&request.microvm_id)?;
            let asked = validation::tokens::shell(&request)?;
            let microvm = alive(&term, &id)?;
            if !microvm.spec.lets_shells_in() {
                return Err(Refusal::ShellNotAllowed { id, mixed: microvm.spec.mixes_ingress() });
            }
            let (auth_token, expire_time) = mint(&term, &microvm, asked)?;
            Ok(CreateMicrovmShellAuthTokenResponse { auth_token, expire_time })
        })
        .await
    }

    async fn revoke_microvm_auth_tokens(
        &self,
        request: Request<RevokeMicrovmAuthTokensRequest>,
    ) -> Answer<RevokeMicrovmAuthTokensResponse> {
        self.answer(request, &[Admin], |term, request| async move {
            let microvm = term.revoke_tokens(&validation::microvm_id(&request.microvm_id)?).await?;
            Ok(RevokeMicrovmAuthTokensResponse { microvm: self.show(&microvm) })
        })
        .await
    }

    async fn create_microvm_invitation(
        &self,
        request: Request<CreateMicrovmInvitationRequest>,
    ) -> Answer<CreateMicrovmInvitationResponse> {
        self.answer(request, &[Admin], |term, request| async move {
            let id = validation::microvm_id(&request.microvm_id)?;
            let asked = validation::invitations::invitation(&request)?;
            let microvm = alive(&term, &id)?;
            let endpoint = wire::microvm(&microvm, &self.config).endpoint_url;
            let (code, expires) = term.invite(microvm, asked).await?;
            Ok(CreateMicrovmInvitationResponse {
                url: format!("{endpoint}{INVITATION_PATH}?code={code}"),
                expire_time: Some(api::timestamp(expires)),
            })
        })
        .await
    }

    async fn redeem_microvm_invitation(
        &self,
        request: Request<RedeemMicrovmInvitationRequest>,
    ) -> Answer<RedeemMicrovmInvitationResponse> {
        self.answer(request, &[EdgeProxy], |term, request| async move {
            if !is_code(&request.code) {
                return Err(Refusal::InvitationSpent);
            }
            let session = term.redeem(request.code, request.endpoint_label).await?;
            Ok(RedeemMicrovmInvitationResponse {
                session_token: session.token,
                session_duration: Some(api::duration_proto(session.life)),
                path: session.path,
            })
        })
        .await
    }

    type WatchMicrovmsStream = BoxStream<WatchMicrovmsResponse>;

    async fn watch_microvms(
        &self,
        request: Request<WatchMicrovmsRequest>,
    ) -> Answer<Self::WatchMicrovmsStream> {
        self.answer(request, READERS, |term, request| async move {
            let only = match request.microvm_id.as_str() {
                "" => None,
                text => {
                    let id = validation::microvm_id(text)?;
                    term.handle(&id)?;
                    Some(id)
                }
            };
            let (current, changes) = term.memory().subscribe(only.as_ref());
            let config = self.config.clone();
            let listed = current.into_iter().map(move |change| Ok(wire::change(&change, &config)));
            let synced = WatchMicrovmsResponse { synced: true, ..Default::default() };
            let config = self.config.clone();
            let changes = tokio_stream::wrappers::ReceiverStream::new(changes);
            let changes = changes.map(move |change| Ok(wire::change(&change, &config)));
            // The queue ends when the term does, or when the watcher fell behind.
            let leader = self.leader.clone();
            let ended = futures::stream::once(async move {
                Err(if term.is_over() { errors::not_leading(&leader) } else { fell_behind() })
            });
            let stream = futures::stream::iter(listed)
                .chain(futures::stream::iter([Ok(synced)]))
                .chain(changes)
                .chain(ended);
            Ok(Box::pin(stream) as Self::WatchMicrovmsStream)
        })
        .await
    }

    type FollowMicrovmLogStream = BoxStream<FollowMicrovmLogResponse>;

    async fn follow_microvm_log(
        &self,
        request: Request<FollowMicrovmLogRequest>,
    ) -> Answer<Self::FollowMicrovmLogStream> {
        self.answer(request, CALLERS, |term, request| async move {
            let id = validation::microvm_id(&request.microvm_id)?;
            let lines = term.follow_log(&id, request.from_sequence, request.follow).await?;
            let leader = self.leader.clone();
            let stream = lines.map(move |message| match message {
                Ok(message) => Ok(FollowMicrovmLogResponse { lines: message.lines }),
                Err(status) => Err(errors::status(Refusal::Host(Box::new(status)), &leader)),
            });
            Ok(Box::pin(stream) as Self::FollowMicrovmLogStream)
        })
        .await
    }
}

/// A microVM that has not ended and is not about to.
fn alive(term: &Term, id: &MicrovmId) -> Result<Arc<Microvm>, Refusal> {
    let microvm = term.handle(id)?.current();
    if microvm.has_ended() { Err(Refusal::Terminated(id.clone())) } else { Ok(microvm) }
}

/// A token in the header it goes into, and when it stops working.
fn mint(term: &Term, microvm: &Microvm, asked: NewToken) -> Result<Minted, Refusal> {
    let (token, expires_at) = term.mint(microvm, asked)?;
    let expire_time = Timestamp { seconds: i64::try_from(expires_at).unwrap_or(i64::MAX), nanos: 0 };
    Ok((HashMap::from([(AUTH_HEADER.to_owned(), token)]), Some(expire_time)))
}

fn fell_behind() -> Status {
    api::errors::status(
        Code::Aborted,
        api::errors::reason::STATE_CONFLICT,
        "this watch fell behind and was cut; watch again",
        &[],
    )
}
