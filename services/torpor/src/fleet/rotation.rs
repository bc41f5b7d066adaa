//! Another CA in the place of the fleet's, and other certificates with it, while everything runs.
//!
//! | step | `ca.pem` holds | who issues | done when |
//! | --- | --- | --- | --- |
//! | trust | the old CA, the next | the old | every service trusts both, and etcd |
//! | certificates | the old CA, the next | the next | every service shows its new certificate |
//! | drop | the next CA | the next | every service trusts the next alone, and etcd |
//!
//! Services read their files again by themselves ([`rpc::TlsIdentity`]) and say in their metrics what they have. etcd reads its
//! certificate again, but not the CAs that it trusts, so its members are restarted, one after the other: calls wait meanwhile.
//!
//! The next CA is in `ca-next.pem` and `ca-next.key` until all is done, the old one in `ca-old.pem`. What is in the files says how far a rotation came, and
//! every step may be done twice: one that was broken off is taken up by the next `torpor certs rotate`. A `torpor up`
//! finds nothing that runs, and finishes it at once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rpc::{InUse, Role, TlsIdentity};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use time::OffsetDateTime;

use super::authority::{self, Ca};
use super::components::Probe;
use super::parts::{Parts, Service};
use super::process::ProcessId;
use super::record::{ComponentRecord, FleetRecord, ProcessState};
use super::{files, lock, probe, roots};
use crate::error::{CliError, Kind};

/// Longest wait for the services to take up what has changed, and for a member of etcd to come back.
const TAKEN_UP_TIMEOUT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(200);
/// Name of the certificates with which it is tried whom etcd trusts.
const TRIAL: &str = "trial";

/// What a rotation does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Trust,
    Certificates,
    Drop,
    Done,
}

impl Step {
    fn says(self) -> &'static str {
        match self {
            Self::Trust => "trusting the next CA beside the old one",
            Self::Certificates => "making every certificate anew by the next CA",
            Self::Drop => "dropping the old CA",
            Self::Done => "done",
        }
    }
}

/// The files of a CA that takes another's place.
struct Files {
    directory: PathBuf,
}

impl Files {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn next(&self) -> Result<Ca, CliError> {
        authority::ca_in(&self.path("ca-next.pem"), &self.path("ca-next.key"), OffsetDateTime::now_utc())
    }

    /// Fingerprints of the CAs in a file, sorted.
    fn authorities(&self, name: &str) -> Result<Vec<String>, CliError> {
        let path = self.path(name);
        let all = CertificateDer::pem_file_iter(&path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let all = all.map_err(|error| CliError::failed(format!("{}: {error}", path.display())))?;
        let mut all: Vec<String> = all.iter().map(rpc::fingerprint).collect();
        all.sort();
        Ok(all)
    }

    fn is_begun(&self) -> bool {
        self.path("ca-next.pem").is_file()
    }

    /// Changes whom new connections are to be trusted for.
    fn trust(&self, names: &[&str]) -> Result<(), CliError> {
        let mut all = Vec::new();
        for name in names {
            let path = self.path(name);
            all.extend(std::fs::read(&path).map_err(|error| files::named(&path, &error))?);
        }
        let ca = self.path("ca.pem");
        files::write_public(&ca, &all)?;
        roots::write(&ca)
    }

    /// Keeps the old CA's certificate. Dying before the fleet's file is written leaves it to be kept again.
    fn keep_old(&self) -> Result<(), CliError> {
        let ca = self.path("ca.pem");
        let old = std::fs::read(&ca).map_err(|error| files::named(&ca, &error))?;
        Ok(files::write_public(&self.path("ca-old.pem"), &old)?)
    }

    /// The old CA, to find out who trusts it.
    fn old(&self) -> Result<Option<Ca>, CliError> {
        authority::read_ca(&self.path("ca-old.pem"), &self.path("ca.key"), OffsetDateTime::now_utc())
    }

    /// Makes the next CA the fleet's. Dying before the last line leaves it to be done again.
    fn promote(&self) -> Result<(), CliError> {
        self.trust(&["ca-next.pem"])?;
        let key = self.path("ca-next.key");
        let key = std::fs::read(&key).map_err(|error| files::named(&key, &error))?;
        files::write_private(&self.path("ca.key"), &key, None)?;
        for name in ["ca-old.pem", "ca-next.pem", "ca-next.key"] {
            let path = self.path(name);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(files::named(&path, &error).into());
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Finishes a rotation that was broken off, when nothing of the fleet runs. Certificates of the old CA are made anew then.
pub fn finish_at_rest(ca: &Path) -> Result<(), CliError> {
    let files = Files { directory: ca.to_owned() };
    if !files.is_begun() {
        return Ok(());
    }
    // A certificate that its key does not fit is made anew here: then it has issued nothing yet.
    files.next()?;
    files.promote()
}

/// Rotates the fleet's CA and certificates, from wherever an earlier call came to; `one_step` of it if that is asked for.
/// Returns what comes after.
pub async fn rotate(data_dir: &Path, one_step: bool, tell: impl Fn(&str)) -> Result<Step, CliError> {
    let files = Files { directory: data_dir.join("ca") };
    let _alone = lock::take(&files.directory).map_err(|failure| match failure.kind {
        Kind::Conflict => CliError::new(Kind::Conflict, "another torpor certs rotate is under way"),
        _ => failure,
    })?;
    let record = FleetRecord::load(&data_dir.join("run")).filter(FleetRecord::supervised);
    let next = files.next()?;
    let Some(record) = record else {
        tell("the fleet is down: the next torpor up has another CA and other certificates");
        return Ok(Step::Done);
    };
    let context = client::Context::load(data_dir)?;
    let parts = Parts::load(data_dir, &record, &context);
    let rotation = Rotation { data_dir, domain: context.endpoint_domain, parts, files, next };
    let mut step = rotation.step()?;
    while step != Step::Done {
        tell(step.says());
        step = rotation.take(step).await?;
        if one_step {
            break;
        }
    }
    Ok(step)
}

struct Rotation<'a> {
    data_dir: &'a Path,
    /// Of the endpoints.
    domain: String,
    files: Files,
    parts: Parts,
    next: Ca,
}

impl Rotation<'_> {
    /// The step whose files are not all written, and the last when they are.
    fn step(&self) -> Result<Step, CliError> {
        let (trusted, next) = (self.files.authorities("ca.pem")?, self.next_fingerprint());
        if !trusted.contains(&next) {
            return Ok(Step::Trust);
        }
        let all = self.leaves()?;
        let made = all.iter().all(|leaf| authority::is_made(&self.files.directory, leaf, &self.next));
        Ok(if made { Step::Drop } else { Step::Certificates })
    }

    /// Takes a step. Before it the last one is looked at once more: its files may have been written by a call that died before
    /// everybody had taken them up.
    async fn take(&self, step: Step) -> Result<Step, CliError> {
        match step {
            Step::Trust => {
                self.trust_both().await?;
                Ok(Step::Certificates)
            }
            Step::Certificates => {
                self.trust_both().await?;
                self.renew().await?;
                Ok(Step::Drop)
            }
            Step::Drop => {
                if self.files.authorities("ca.pem")? != [self.next_fingerprint()] {
                    self.renew().await?;
                }
                self.drop_old().await?;
                Ok(Step::Done)
            }
            Step::Done => Ok(Step::Done),
        }
    }

    fn leaves(&self) -> Result<Vec<authority::Leaf>, CliError> {
        Ok(authority::leaves(&self.domain, &authority::issued_hosts(&self.files.directory)?))
    }

    fn next_fingerprint(&self) -> String {
        rpc::fingerprint(&self.next.certificate)
    }

    async fn trust_both(&self) -> Result<(), CliError> {
        if !self.files.authorities("ca.pem")?.contains(&self.next_fingerprint()) {
            self.files.keep_old()?;
            self.files.trust(&["ca-old.pem", "ca-next.pem"])?;
        }
        let wanted = self.files.authorities("ca.pem")?;
        self.taken_up("the next CA", |_, has| Ok(has.authorities == wanted)).await?;
        // Connections to etcd have files of their own to look at, of which the metrics do not tell; they do so this often.
        tokio::time::sleep(reload::LOOK_EVERY).await;
        // With a certificate of the next CA one is let in once etcd trusts it.
        let trial = self.trial(&self.next)?;
        self.restart_etcd_until(&trial, true).await
    }

    async fn renew(&self) -> Result<(), CliError> {
        for leaf in self.leaves()? {
            authority::ensure_leaf(&self.files.directory, &leaf, &self.next)?;
        }
        self.taken_up("its certificate", |service, has| {
            let file = CertificateDer::from_pem_file(&service.certificate)
                .map_err(|error| CliError::failed(format!("{}: {error}", service.certificate.display())))?;
            Ok(has.certificate == rpc::fingerprint(&file))
        })
        .await?;
        let Some((address, name)) = self.parts.edge.clone() else { return Ok(()) };
        let admin = |end: &str| self.files.path(&format!("{}.{end}", Role::Admin));
        let identity = load(&self.files.path("ca-next.pem"), &admin("pem"), &admin("key"))?;
        let shown = Probe::Tls(address, name);
        until(async || probe::ask(&shown, &identity).await.map_err(|error| format!("edge-proxy: {error}")))
            .await
    }

    async fn drop_old(&self) -> Result<(), CliError> {
        self.files.trust(&["ca-next.pem"])?;
        let wanted = self.files.authorities("ca.pem")?;
        self.taken_up("the end of the old CA", |_, has| Ok(has.authorities == wanted)).await?;
        if let Some(old) = self.files.old()? {
            let trial = self.trial(&old)?;
            self.restart_etcd_until(&trial, false).await?;
        }
        self.files.promote()
    }

    /// Waits until every service has taken up what it should have.
    async fn taken_up(
        &self,
        what: &str,
        has: impl Fn(&Service, &InUse) -> Result<bool, CliError>,
    ) -> Result<(), CliError> {
        until(async || {
            for service in &self.parts.services {
                let found = service.in_use().await.map_err(|error| {
                    format!("{} does not tell what it has taken up: {error}", service.name)
                })?;
                if !has(service, &found).map_err(|failure| failure.message)? {
                    return Err(format!("{} has not taken up {what}", service.name));
                }
            }
            Ok(())
        })
        .await
    }

    /// An identity whose certificate is issued by a CA and which trusts whatever the fleet may show meanwhile.
    fn trial(&self, issuer: &Ca) -> Result<Arc<TlsIdentity>, CliError> {
        let directory = self.files.path(TRIAL);
        files::directory(&directory, 0o700, None)?;
        let leaf = authority::trial_leaf(TRIAL);
        authority::ensure_leaf(&directory, &leaf, issuer)?;
        let file = |end: &str| directory.join(format!("{TRIAL}.{end}"));
        let identity = load(&self.files.path("ca.pem"), &file("pem"), &file("key"))?;
        std::fs::remove_dir_all(&directory).map_err(|error| files::named(&directory, &error))?;
        Ok(identity)
    }

    /// Restarts the members of etcd, one after the other, unless all of them let the identity in, or none, as wanted.
    async fn restart_etcd_until(&self, trial: &Arc<TlsIdentity>, let_in: bool) -> Result<(), CliError> {
        let run_dir = self.data_dir.join("run");
        let members = |record: FleetRecord| {
            record.components.into_iter().filter(|component| component.name.starts_with("etcd"))
        };
        let record = || {
            FleetRecord::load(&run_dir)
                .filter(FleetRecord::supervised)
                .ok_or_else(|| CliError::failed("the fleet's supervisor is gone"))
        };
        for member in members(record()?) {
            if self.is_let_in(trial).await == Some(let_in) {
                return Ok(());
            }
            let Some(process) = member.process else { continue };
            process.signal(Signal::SIGTERM);
            until(async || {
                let now = members(record().map_err(|failure| failure.message)?)
                    .find(|component| component.name == member.name);
                let back = now.is_some_and(|now| is_back(&now, process));
                if back { Ok(()) } else { Err(format!("{} has not come back", member.name)) }
            })
            .await?;
        }
        until(async || match self.is_let_in(trial).await == Some(let_in) {
            true => Ok(()),
            false => Err("etcd has not taken up the CAs".to_owned()),
        })
        .await
    }

    /// Whether all members let an identity in; `None` when some do and some do not.
    async fn is_let_in(&self, trial: &Arc<TlsIdentity>) -> Option<bool> {
        let mut answers = Vec::new();
        for address in self.parts.etcd_addresses() {
            answers.push(probe::ask(&Probe::Etcd(address), trial).await.is_ok());
        }
        let first = answers.first().copied()?;
        answers.iter().all(|answer| *answer == first).then_some(first)
    }
}

fn is_back(component: &ComponentRecord, before: ProcessId) -> bool {
    component.health == ProcessState::Healthy && component.process.is_some_and(|now| now != before)
}

fn load(ca: &Path, certificate: &Path, key: &Path) -> Result<Arc<TlsIdentity>, CliError> {
    TlsIdentity::load(ca, certificate, key).map_err(|error| CliError::failed(error.to_string()))
}

/// Asks again and again until the answer is good, for a bounded time.
async fn until(ask: impl AsyncFn() -> Result<(), String>) -> Result<(), CliError> {
    let started = Instant::now();
    loop {
        let Err(why) = ask().await else { return Ok(()) };
        if started.elapsed() > TAKEN_UP_TIMEOUT {
            return Err(CliError::new(Kind::Timeout, why)
                .next("nothing is lost: see to it (torpor status) and go on with torpor certs rotate"));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests;
