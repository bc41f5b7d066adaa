//! Reports of one simulated host: registration, then heartbeats at the interval
//! the scheduler asks for and at once when something changed, as host-agent does.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use api::host::v1::host_service_client::HostServiceClient;
use api::host::v1::{HeartbeatRequest, HostSpec, RegisterHostRequest, StaleMicrovm};
use rpc::{Role, TlsIdentity};
use tonic::Status;
use tonic::transport::Channel;

use super::table::Table;

const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Changes within this time of the last heartbeat wait and go in one.
const COALESCE: Duration = Duration::from_millis(10);
/// How often a heartbeat carries everything.
const COMPLETE_INTERVAL: Duration = Duration::from_secs(30);
/// Interval when the scheduler names none.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(2);
const RETRY_PAUSE: Duration = Duration::from_millis(500);

pub struct Reporter {
    client: HostServiceClient<Channel>,
    spec: HostSpec,
    table: Arc<Table>,
}

impl Reporter {
    pub fn new(
        identity: &Arc<TlsIdentity>,
        scheduler: &str,
        spec: HostSpec,
        table: Arc<Table>,
    ) -> Result<Self, Status> {
        Ok(Self {
            client: HostServiceClient::new(rpc::channel(identity, scheduler, Role::Scheduler)?),
            spec,
            table,
        })
    }

    pub async fn run(mut self) {
        loop {
            // After a report that was lost the next session registers with everything.
            if let Err(status) = self.session().await {
                eprintln!("the scheduler does not take a simulated host's report: {status}");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }

    async fn session(&mut self) -> Result<(), Status> {
        let mut changes = self.table.changes();
        let interval = self.register().await?;
        let mut completed = Instant::now();
        loop {
            let earliest = Instant::now() + COALESCE;
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                changed = changes.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    tokio::time::sleep_until(earliest.into()).await;
                }
            }
            changes.mark_unchanged();
            let complete = completed.elapsed() >= COMPLETE_INTERVAL;
            let request = HeartbeatRequest {
                host_id: self.spec.host_id.clone(),
                usage: Some(self.table.usage()),
                observed: self.table.observed(complete),
                complete,
                clock_time: Some(api::timestamp(SystemTime::now())),
            };
            let told = timely(self.client.heartbeat(request)).await?;
            if told.register {
                return Ok(());
            }
            self.drop_stale(&told.stale);
            if complete {
                completed = Instant::now();
            }
        }
    }

    async fn register(&mut self) -> Result<Duration, Status> {
        let request = RegisterHostRequest {
            spec: Some(self.spec.clone()),
            observed: self.table.observed(true),
            clock_time: Some(api::timestamp(SystemTime::now())),
            usage: Some(self.table.usage()),
            vouchers: Vec::new(),
        };
        let told = timely(self.client.register_host(request)).await?;
        self.drop_stale(&told.stale);
        let interval = told.heartbeat_interval.as_ref();
        let interval = interval.and_then(|interval| api::duration(interval).ok());
        Ok(interval.unwrap_or(INTERVAL_DEFAULT).max(COALESCE))
    }

    fn drop_stale(&self, stale: &[StaleMicrovm]) {
        for StaleMicrovm { microvm_id, generation } in stale {
            self.table.forget(microvm_id, *generation);
        }
    }
}

async fn timely<T>(call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Status::deadline_exceeded("no answer in time")),
    }
}
