//! The little of a scheduler that an agent talks to: it takes reports and remembers them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use api::host::v1::{
    HeartbeatRequest, HeartbeatResponse, HostSpec, HostUsage, ObservedMicrovm, RecordedMicrovm,
    RegisterHostRequest, RegisterHostResponse, StaleMicrovm,
};
use api::microvm::v1::MicrovmState;
use rpc::Role;
use testkit::Script;

#[derive(Default)]
pub struct Reports {
    pub registrations: u64,
    pub spec: HostSpec,
    /// What a host said last that it uses.
    pub usage: HostUsage,
    pub latest: HashMap<String, ObservedMicrovm>,
    /// By host: what its next answer calls stale.
    pub stale: HashMap<String, Vec<StaleMicrovm>>,
    /// Hears reports and records nothing, as one that cannot reach etcd would not even answer.
    pub records_nothing: bool,
}

impl Reports {
    fn hear(
        &mut self,
        host: &str,
        observed: Vec<ObservedMicrovm>,
    ) -> (Vec<StaleMicrovm>, Vec<RecordedMicrovm>) {
        let recorded = if self.records_nothing { vec![] } else { observed.iter().map(recorded).collect() };
        for one in observed {
            self.latest.insert(one.microvm_id.clone(), one);
        }
        (self.stale.remove(host).unwrap_or_default(), recorded)
    }
}

/// What a record says that is as the host reports.
fn recorded(one: &ObservedMicrovm) -> RecordedMicrovm {
    let copy = one.snapshot.clone().filter(|copies| copies.remote).unwrap_or_default();
    RecordedMicrovm {
        microvm_id: one.microvm_id.clone(),
        generation: one.generation,
        snapshot_generation: copy.generation,
        snapshot_sequence: copy.sequence,
        ended: one.state() == MicrovmState::Terminated,
    }
}

/// Serves one; returns it and what it hears.
pub async fn serve(identity: &Arc<rpc::TlsIdentity>) -> (Script, Arc<Mutex<Reports>>) {
    let reports = Arc::new(Mutex::new(Reports::default()));
    let script = Script::start(identity, &[Role::HostAgent]).await;
    let heard = Arc::clone(&reports);
    script.react("RegisterHost", move |request: RegisterHostRequest| {
        let mut reports = heard.lock().unwrap();
        reports.registrations += 1;
        let spec = request.spec.unwrap();
        let heartbeat_interval = Some(prost_types::Duration { seconds: 0, nanos: 200_000_000 });
        let (stale, recorded) = reports.hear(&spec.host_id, request.observed);
        reports.spec = spec;
        reports.usage = request.usage.unwrap_or_default();
        Ok(RegisterHostResponse { heartbeat_interval, stale, recorded, ..Default::default() })
    });
    let heard = Arc::clone(&reports);
    script.react("Heartbeat", move |request: HeartbeatRequest| {
        let (stale, recorded) = heard.lock().unwrap().hear(&request.host_id, request.observed);
        Ok(HeartbeatResponse { register: false, stale, recorded, draining: false })
    });
    (script, reports)
}
