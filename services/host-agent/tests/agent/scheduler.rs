//! The little of a scheduler that an agent talks to: it takes reports and remembers them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use api::host::v1::{
    HeartbeatRequest, HeartbeatResponse, HostSpec, ObservedMicrovm, RegisterHostRequest, RegisterHostResponse,
};
use rpc::Role;
use testkit::Script;

#[derive(Default)]
pub struct Reports {
    pub registrations: u64,
    pub spec: HostSpec,
    pub latest: HashMap<String, ObservedMicrovm>,
    /// By host: what its next answer calls stale.
    pub stale: HashMap<String, Vec<String>>,
}

impl Reports {
    fn hear(&mut self, host: &str, observed: Vec<ObservedMicrovm>) -> Vec<String> {
        for one in observed {
            self.latest.insert(one.microvm_id.clone(), one);
        }
        self.stale.remove(host).unwrap_or_default()
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
        let stale_microvm_ids = reports.hear(&spec.host_id, request.observed);
        reports.spec = spec;
        Ok(RegisterHostResponse { heartbeat_interval, stale_microvm_ids, draining: false })
    });
    let heard = Arc::clone(&reports);
    script.react("Heartbeat", move |request: HeartbeatRequest| {
        let stale_microvm_ids = heard.lock().unwrap().hear(&request.host_id, request.observed);
        Ok(HeartbeatResponse { register: false, stale_microvm_ids, draining: false })
    });
    (script, reports)
}
