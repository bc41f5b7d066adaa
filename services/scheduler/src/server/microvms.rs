//! `torpor.microvm.v1.MicrovmService`.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use api::microvm::v1::microvm_service_server::MicrovmService;
use api::microvm::v1::{
    CreateMicrovmAuthTokenRequest, CreateMicrovmAuthTokenResponse, CreateMicrovmShellAuthTokenRequest,
    CreateMicrovmShellAuthTokenResponse, FollowMicrovmLogRequest, FollowMicrovmLogResponse,
    GetMicrovmRequest, GetMicrovmResponse, ListMicrovmsRequest, ListMicrovmsResponse, ResumeMicrovmRequest,
    ResumeMicrovmResponse, RunMicrovmRequest, RunMicrovmResponse, SuspendMicrovmRequest,
    SuspendMicrovmResponse, TerminateMicrovmRequest, TerminateMicrovmResponse, WatchMicrovmsRequest,
    WatchMicrovmsResponse,
};
use futures::{Stream, StreamExt as _};
use model::MicrovmId;
use model::limits::PAGE_SIZE_MAX;
use model::state::MicrovmState;
use prost_types::Timestamp;
use rpc::Role::{Admin, EdgeProxy, ImageBuilder};
use rpc::{Role, authorize};
use token::{AUTH_HEADER, Claims, Kind, PortScope};
use tonic::{Code, Request, Response, Status};

use super::{Shared, validation, wire};
use crate::adapters::keys::seconds;
use crate::domain::microvm::Microvm;
use crate::refusal::Refusal;
use crate::term::Term;

/// Who launches, changes and reads microVMs.
const CALLERS: &[Role] = &[Admin, EdgeProxy];
/// Who only reads: image-builder asks whether an image is in use.
const READERS: &[Role] = &[Admin, EdgeProxy, ImageBuilder];

type Answer<T> = Result<Response<T>, Status>;
type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
#[derive(Debug)]
pub struct Microvms {
    shared: Shared,
}

impl Microvms {
    /// The service over the running term.
    pub(super) fn new(shared: Shared) -> Self {
        Self { shared }
    }

    fn refuse(&self, refusal: Refusal) -> Status {
        self.shared.refuse(refusal)
    }

    fn show(&self, record: &Microvm) -> Option<api::microvm::v1::Microvm> {
        Some(wire::microvm(record, &self.shared.settings))
    }
}

#[tonic::async_trait]
impl MicrovmService for Microvms {
    async fn run_microvm(&self, request: Request<RunMicrovmRequest>) -> Answer<RunMicrovmResponse> {
        authorize(&request, CALLERS)?;
        let term = self.shared.term()?;
        let asked = validation::run(request.get_ref(), &self.shared.settings).map_err(|r| self.refuse(r))?;
        let microvm = term.run(asked).await.map_err(|r| self.refuse(r))?;
        Ok(Response::new(RunMicrovmResponse { microvm: self.show(&microvm) }))
    }

    async fn get_microvm(&self, request: Request<GetMicrovmRequest>) -> Answer<GetMicrovmResponse> {
        authorize(&request, READERS)?;
        let term = self.shared.term()?;
        let id = validation::microvm_id(&request.get_ref().microvm_id).map_err(|r| self.refuse(r))?;
        let handle = term.handle(&id).map_err(|r| self.refuse(r))?;
        Ok(Response::new(GetMicrovmResponse { microvm: self.show(&handle.current()) }))
    }

    async fn list_microvms(&self, request: Request<ListMicrovmsRequest>) -> Answer<ListMicrovmsResponse> {
        authorize(&request, READERS)?;
        let term = self.shared.term()?;
        let request = request.get_ref();
        let (image, version, after) =
            validation::list(request, &self.shared.settings).map_err(|r| self.refuse(r))?;
        let size = validation::page_size(request.page_size, PAGE_SIZE_MAX).map_err(|r| self.refuse(r))?;
        let (page, next) = term.memory().page(image.as_ref(), version, after, size);
        let microvms = page.iter().map(|record| wire::microvm(record, &self.shared.settings)).collect();
        Ok(Response::new(ListMicrovmsResponse {
            microvms,
            next_page_token: next.map(|next| next.to_token()).unwrap_or_default(),
        }))
    }

    async fn suspend_microvm(
        &self,
        request: Request<SuspendMicrovmRequest>,
    ) -> Answer<SuspendMicrovmResponse> {
        authorize(&request, CALLERS)?;
        let term = self.shared.term()?;
        let id = validation::microvm_id(&request.get_ref().microvm_id).map_err(|r| self.refuse(r))?;
        let microvm = term.suspend(&id).await.map_err(|r| self.refuse(r))?;
        Ok(Response::new(SuspendMicrovmResponse { microvm: self.show(&microvm) }))
    }

    async fn resume_microvm(&self, request: Request<ResumeMicrovmRequest>) -> Answer<ResumeMicrovmResponse> {
        authorize(&request, CALLERS)?;
        let term = self.shared.term()?;
        let id = validation::microvm_id(&request.get_ref().microvm_id).map_err(|r| self.refuse(r))?;
        let microvm = term.resume(&id).await.map_err(|r| self.refuse(r))?;
        Ok(Response::new(ResumeMicrovmResponse { microvm: self.show(&microvm) }))
    }

    async fn terminate_microvm(
        &self,
        request: Request<TerminateMicrovmRequest>,
    ) -> Answer<TerminateMicrovmResponse> {
        authorize(&request, CALLERS)?;
        let term = self.shared.term()?;
        let id = validation::microvm_id(&request.get_ref().microvm_id).map_err(|r| self.refuse(r))?;
        let microvm = term.terminate(&id).await.map_err(|r| self.refuse(r))?;
        Ok(Response::new(TerminateMicrovmResponse { microvm: self.show(&microvm) }))
    }

    async fn create_microvm_auth_token(
        &self,
        request: Request<CreateMicrovmAuthTokenRequest>,
    ) -> Answer<CreateMicrovmAuthTokenResponse> {
        authorize(&request, CALLERS)?;
        let term = self.shared.term()?;
        let request = request.get_ref();
        let id = validation::microvm_id(&request.microvm_id).map_err(|r| self.refuse(r))?;
        let (life, ports) = validation::token(request, &self.shared.settings).map_err(|r| self.refuse(r))?;
        let minted = alive(&term, &id).and_then(|_| mint(&term, &id, Kind::Endpoint, ports, life));
        let (auth_token, expire_time) = minted.map_err(|r| self.refuse(r))?;
        Ok(Response::new(CreateMicrovmAuthTokenResponse { auth_token, expire_time }))
    }

    async fn create_microvm_shell_auth_token(
        &self,
        request: Request<CreateMicrovmShellAuthTokenRequest>,
    ) -> Answer<CreateMicrovmShellAuthTokenResponse> {
        authorize(&request, CALLERS)?;
        let term = self.shared.term()?;
        let request = request.get_ref();
        let id = validation::microvm_id(&request.microvm_id).map_err(|r| self.refuse(r))?;
        let life = validation::shell_token(request, &self.shared.settings).map_err(|r| self.refuse(r))?;
        let minted = alive(&term, &id)
            .and_then(|microvm| shell_allowed(&microvm))
            .and_then(|()| mint(&term, &id, Kind::Shell, Vec::new(), life));
        let (auth_token, expire_time) = minted.map_err(|r| self.refuse(r))?;
        Ok(Response::new(CreateMicrovmShellAuthTokenResponse { auth_token, expire_time }))
    }

    type WatchMicrovmsStream = BoxStream<WatchMicrovmsResponse>;

    async fn watch_microvms(
        &self,
        request: Request<WatchMicrovmsRequest>,
    ) -> Answer<Self::WatchMicrovmsStream> {
        authorize(&request, READERS)?;
        let term = self.shared.term()?;
        let only = match request.get_ref().microvm_id.as_str() {
            "" => None,
            text => {
                let id = validation::microvm_id(text).map_err(|r| self.refuse(r))?;
                term.handle(&id).map_err(|r| self.refuse(r))?;
                Some(id)
            }
        };
        let (current, changes) = term.memory().subscribe(only.as_ref());
        let settings = self.shared.settings.clone();
        let listed = current.into_iter().map(move |change| Ok(wire::change(&change, &settings)));
        let synced = WatchMicrovmsResponse { synced: true, ..Default::default() };
        let settings = self.shared.settings.clone();
        let changes = tokio_stream::wrappers::ReceiverStream::new(changes);
        let changes = changes.map(move |change| Ok(wire::change(&change, &settings)));
        // The queue ends when the term does, or when the watcher fell behind.
        let shared = self.shared.clone();
        let ended = futures::stream::once(async move {
            Err(if term.is_over() { shared.refuse(Refusal::NotLeading) } else { fell_behind() })
        });
        let stream = futures::stream::iter(listed)
            .chain(futures::stream::iter([Ok(synced)]))
            .chain(changes)
            .chain(ended);
        Ok(Response::new(Box::pin(stream)))
    }

    type FollowMicrovmLogStream = BoxStream<FollowMicrovmLogResponse>;

    async fn follow_microvm_log(
        &self,
        request: Request<FollowMicrovmLogRequest>,
    ) -> Answer<Self::FollowMicrovmLogStream> {
        authorize(&request, CALLERS)?;
        let term = self.shared.term()?;
        let request = request.into_inner();
        let id = validation::microvm_id(&request.microvm_id).map_err(|r| self.refuse(r))?;
        let lines = term.follow_log(&id, request.from_sequence, request.follow).await;
        let lines = lines.map_err(|r| self.refuse(r))?;
        let shared = self.shared.clone();
        Ok(Response::new(Box::pin(lines.map(move |message| match message {
            Ok(message) => Ok(FollowMicrovmLogResponse { lines: message.lines }),
            Err(status) => Err(shared.refuse(Refusal::Host(Box::new(status)))),
        }))))
    }
}

/// A microVM that has not ended and is not about to.
fn alive(term: &Term, id: &MicrovmId) -> Result<Arc<Microvm>, Refusal> {
    let microvm = term.handle(id)?.current();
    match microvm.state {
        MicrovmState::Terminating | MicrovmState::Terminated => Err(Refusal::Terminated(id.clone())),
        _ => Ok(microvm),
    }
}

/// Whether the microVM's ingress connectors let a shell in.
fn shell_allowed(microvm: &Microvm) -> Result<(), Refusal> {
    if microvm.spec.lets_shells_in() {
        return Ok(());
    }
    Err(Refusal::ShellNotAllowed { id: microvm.id.clone(), mixed: microvm.spec.mixes_ingress() })
}

/// A token in the header it goes into, and when it stops working.
fn mint(
    term: &Term,
    id: &MicrovmId,
    kind: Kind,
    ports: Vec<PortScope>,
    life: Duration,
) -> Result<(HashMap<String, String>, Option<Timestamp>), Refusal> {
    let now = SystemTime::now();
    let claims = Claims {
        microvm_id: id.to_string(),
        kind,
        ports,
        issued_at: seconds(now),
        expires_at: seconds(now + life),
    };
    let token = term.keys.mint(&claims, now);
    let token = token.map_err(|error| Refusal::Internal(error.to_string()))?;
    let expire_time = Timestamp { seconds: i64::try_from(claims.expires_at).unwrap_or(i64::MAX), nanos: 0 };
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
