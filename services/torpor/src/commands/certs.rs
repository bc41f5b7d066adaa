//! `torpor certs`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use client::Context;
use model::HostId;
use rpc::Facts;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::cli::certs::{Certs, CertsCommand};
use crate::durations;
use crate::error::CliError;
use crate::fleet::parts::Parts;
use crate::fleet::record::FleetRecord;
use crate::fleet::rotation::{self, Step};
use crate::fleet::{authority, rights};
use crate::output::{self, Format};

pub async fn run(data_dir: &Path, format: Format, arguments: Certs) -> Result<(), CliError> {
    match arguments.command {
        None => list(data_dir, format).await,
        Some(CertsCommand::Issue { host }) => issue(data_dir, format, &host).await,
        Some(CertsCommand::Rotate { step }) => {
            let then = rotation::rotate(data_dir, step, |what| output::remark(what)).await?;
            if then != Step::Done {
                output::remark(
                    "hosts and clients elsewhere need the files of ca/ now: ca.pem, and their own certificates once \
                     those are new; then go on: torpor certs rotate",
                );
            }
            Ok(())
        }
    }
}

/// A certificate and whether it is the one in use.
struct Row {
    name: String,
    facts: Facts,
    /// Services that show it, and those that show another in its place.
    shown_by: Vec<String>,
    not_yet_by: Vec<String>,
}

async fn list(data_dir: &Path, format: Format) -> Result<(), CliError> {
    let context = Context::load(data_dir)?;
    let ca = data_dir.join("ca");
    let mut in_use: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    if let Some(record) = FleetRecord::load(&data_dir.join("run")).filter(FleetRecord::supervised) {
        for service in Parts::load(data_dir, &record, &context).services {
            let file = service.certificate.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if let Ok(shown) = service.in_use().await {
                in_use.entry(file).or_default().push((service.name, shown.certificate));
            }
        }
    }
    let mut rows = Vec::new();
    let leaves = authority::leaves(&context.endpoint_domain, &authority::issued_hosts(&ca)?);
    for name in ["ca".to_owned()].into_iter().chain(leaves.into_iter().map(|leaf| leaf.name)) {
        let der = CertificateDer::from_pem_file(ca.join(format!("{name}.pem"))).ok();
        let Some(facts) = der.as_ref().and_then(Facts::of) else { continue };
        let (shown, other): (Vec<_>, Vec<_>) = in_use
            .remove(&name)
            .unwrap_or_default()
            .into_iter()
            .partition(|(_, shown)| *shown == facts.fingerprint);
        let names = |found: Vec<(String, String)>| found.into_iter().map(|(service, _)| service).collect();
        rows.push(Row { name, facts, shown_by: names(shown), not_yet_by: names(other) });
    }
    if format == Format::Json {
        let rows: Vec<_> = rows.iter().map(json).collect();
        return output::value(&serde_json::Value::from(rows));
    }
    let row = |row: &Row| {
        let mut used = row.shown_by.clone();
        used.extend(row.not_yet_by.iter().map(|service| format!("{service} (another yet)")));
        [
            row.name.clone(),
            row.facts.common_name.clone(),
            row.facts.issuer.clone(),
            end(&row.facts),
            row.facts.fingerprint.chars().take(16).collect(),
            used.join(", "),
        ]
    };
    let columns = ["name", "identity", "issued by", "ends", "sha-256", "shown by"];
    output::table(columns, &rows, row, "no certificates; torpor up makes them")
}

fn json(row: &Row) -> serde_json::Value {
    serde_json::json!({
        "name": row.name,
        "commonName": row.facts.common_name,
        "issuer": row.facts.issuer,
        "endTime": end(&row.facts),
        "fingerprint": row.facts.fingerprint,
        "shownBy": row.shown_by,
        "notYetBy": row.not_yet_by,
    })
}

fn end(facts: &Facts) -> String {
    let since = Duration::from_secs(u64::try_from(facts.not_after).unwrap_or(0));
    durations::rfc3339(Some(&api::timestamp(UNIX_EPOCH + since)))
}

async fn issue(data_dir: &Path, format: Format, host: &str) -> Result<(), CliError> {
    let id: HostId = host.parse().map_err(|error| CliError::usage(format!("host '{host}': {error}")))?;
    if host.starts_with('-') || host.ends_with('-') {
        return Err(CliError::usage(format!(
            "host '{host}': a name in a certificate has no dash at its ends"
        )));
    }
    let ca = data_dir.join("ca");
    // Its right in etcd after its certificate: dying in between leaves a host that may write nothing, until this is done again
    // or the fleet starts.
    authority::issue(&ca, &id)?;
    match FleetRecord::load(&data_dir.join("run")).filter(FleetRecord::supervised) {
        Some(record) => {
            let parts = Parts::load(data_dir, &record, &Context::load(data_dir)?);
            rights::permit_host(&ca, parts.etcd, host).await?;
        }
        None => output::remark("the fleet is down: the next torpor up gives the host its right in etcd"),
    }
    let file = |end: &str| ca.join(format!("{}.{end}", authority::of_host(host))).display().to_string();
    let fields =
        [("ca", ca.join("ca.pem").display().to_string()), ("cert", file("pem")), ("key", file("key"))];
    if format == Format::Json {
        let fields = fields.into_iter().map(|(name, path)| (name.to_owned(), path.into()));
        return output::value(&serde_json::Value::Object(fields.collect()));
    }
    output::fields(fields.into())
}
