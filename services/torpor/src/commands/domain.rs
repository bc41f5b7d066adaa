//! `torpor domain`.

use std::path::Path;
use std::time::{Duration, SystemTime};

use api::domain::v1::create_domain_request::Target as AskedTarget;
use api::domain::v1::domain::Target;
use api::domain::v1::{
    CreateDomainRequest, DeleteDomainRequest, Domain, GetDomainRequest, ListDomainsRequest,
    UpdateDomainRequest,
};
use model::limits::{DOMAIN_CHAIN_BYTES_MAX, DOMAIN_KEY_BYTES_MAX};

use super::calls::microvm_id;
use super::{Session, input};
use crate::cli::domain::{Add, Certificate, Domain as Command, Update};
use crate::error::{CliError, Kind};
use crate::output;
use crate::{durations, flags};

const DOMAIN: &str = "torpor.domain.v1.Domain";
/// From when on a certificate counts as one that expires soon: ACME clients renew earlier.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);

pub async fn run(session: &Session, command: Command) -> Result<(), CliError> {
    match command {
        Command::Add(arguments) => add(session, arguments).await,
        Command::List => list(session).await,
        Command::Get { name } => show(session, &get(session, name).await?),
        Command::Update(arguments) => update(session, arguments).await,
        Command::Remove { names } => remove(session, names).await,
    }
}

async fn add(session: &Session, arguments: Add) -> Result<(), CliError> {
    let (certificate_chain, private_key) = files(&arguments.certificate)?;
    let target = match (arguments.microvm, arguments.image) {
        (Some(id), _) => Some(AskedTarget::MicrovmId(microvm_id(session, &id).await?)),
        (None, image) => image.map(AskedTarget::ImageIdentifier),
    };
    let name = arguments.name;
    let message = CreateDomainRequest { name: name.clone(), target, certificate_chain, private_key };
    // Repeated only when the service says that it did nothing.
    let answer = session.call(message).await.map_err(|error| match error.kind {
        Kind::Conflict if error.message.contains("is bound already") => error.next(format!(
            "replace its certificate: torpor domain update {name} …, or remove it first: torpor domain rm {name}"
        )),
        _ => error.in_flags(flags::DOMAIN),
    })?;
    let domain = answer.domain.unwrap_or_default();
    show(session, &domain)?;
    if !session.json() {
        let edge = &session.context.edge;
        output::remark(format_args!("have DNS lead {} to the edge at {edge}", domain.name));
    }
    Ok(())
}

async fn update(session: &Session, arguments: Update) -> Result<(), CliError> {
    let (certificate_chain, private_key) = files(&arguments.certificate)?;
    let message = UpdateDomainRequest { name: arguments.name, certificate_chain, private_key };
    let answer = session.call(message).await.map_err(|error| error.in_flags(flags::DOMAIN))?;
    show(session, &answer.domain.unwrap_or_default())
}

/// One domain, as the service knows it.
pub async fn get(session: &Session, name: String) -> Result<Domain, CliError> {
    let answer = session.call(GetDomainRequest { name }).await;
    Ok(answer.map_err(|error| error.in_flags(flags::DOMAIN))?.domain.unwrap_or_default())
}

fn show(session: &Session, domain: &Domain) -> Result<(), CliError> {
    session.show(DOMAIN, domain, |domain| {
        output::fields(vec![
            ("name", domain.name.clone()),
            ("leads to", leads_to(domain)),
            ("url", domain.url.clone()),
            ("certificate", domain.certificate_sha256.clone()),
            ("expires", durations::rfc3339(domain.certificate_expire_time.as_ref())),
            ("created", durations::rfc3339(domain.create_time.as_ref())),
            ("updated", durations::rfc3339(domain.update_time.as_ref())),
        ])
    })?;
    warn(std::slice::from_ref(domain));
    Ok(())
}

async fn list(session: &Session) -> Result<(), CliError> {
    let ask = |page_token| ListDomainsRequest { page_size: 0, page_token };
    let domains = session.all(ask, |page| (page.domains, page.next_page_token)).await?;
    let now = SystemTime::now();
    let row = |domain: &Domain| {
        let created = durations::age(domain.create_time.as_ref(), now);
        [domain.name.clone(), leads_to(domain), expires(domain, now).0, created]
    };
    let empty = "no own domains; bind one: torpor domain add NAME --microvm ID --cert FILE --key FILE";
    session.show_all(DOMAIN, &domains, |domains| {
        output::table(["name", "leads to", "certificate expires", "created"], domains, row, empty)
    })?;
    warn(&domains);
    Ok(())
}

/// Says of which domains the certificate expires soon; on standard error, so that scripts see it too.
fn warn(domains: &[Domain]) {
    let now = SystemTime::now();
    for domain in domains {
        if let (text, true) = expires(domain, now) {
            let name = &domain.name;
            let text = if text == "expired" { "has expired".to_owned() } else { format!("expires {text}") };
            output::remark(format_args!(
                "warning: the certificate of {name} {text}; next: torpor domain update '{name}' --cert FILE --key FILE"
            ));
        }
    }
}

/// When the certificate expires, and whether that is soon.
fn expires(domain: &Domain, now: SystemTime) -> (String, bool) {
    let at = domain.certificate_expire_time.as_ref().and_then(|time| api::system_time(time).ok());
    match at.map(|at| at.duration_since(now)) {
        None => ("-".to_owned(), false),
        Some(Ok(left)) => (format!("in {}", durations::coarse(left)), left < SOON),
        Some(Err(_)) => ("expired".to_owned(), true),
    }
}

fn leads_to(domain: &Domain) -> String {
    match &domain.target {
        Some(Target::MicrovmId(id)) => id.clone(),
        Some(Target::ImageName(name)) => format!("microVMs of {name}"),
        None => "-".to_owned(),
    }
}

async fn remove(session: &Session, names: Vec<String>) -> Result<(), CliError> {
    for name in names {
        let message = DeleteDomainRequest { name: name.clone() };
        session.call(message).await.map_err(|error| error.in_flags(flags::DOMAIN))?;
        if !session.json() {
            output::line(format_args!("{name} removed"))?;
        }
    }
    if session.json() {
        output::value(&serde_json::json!({}))?;
    }
    Ok(())
}

/// Chain and key as text. The service reads them and says what is wrong with them.
fn files(certificate: &Certificate) -> Result<(String, String), CliError> {
    let chain = pem(&certificate.cert, "--cert", DOMAIN_CHAIN_BYTES_MAX)?;
    let key = pem(&certificate.key, "--key", DOMAIN_KEY_BYTES_MAX)?;
    Ok((chain, key))
}

fn pem(path: &Path, flag: &str, bytes_max: usize) -> Result<String, CliError> {
    let usage = |message: String| CliError::usage(format!("{flag} {}: {message}", path.display()));
    let bytes = input::read(path, bytes_max as u64).map_err(usage)?;
    // The error of a conversion would hold the bytes, which may be a key's.
    String::from_utf8(bytes).map_err(|_| usage("is not PEM: it is not text".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_expires_soon_is_told() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let day = Duration::from_secs(24 * 3600);
        let domain = |at| Domain { certificate_expire_time: Some(api::timestamp(at)), ..Domain::default() };
        for (at, text, soon) in [
            (now + day * 14, "in 14d", false),
            (now + day * 13, "in 13d", true),
            (now - day, "expired", true),
        ] {
            assert_eq!(expires(&domain(at), now), (text.to_owned(), soon));
        }
        assert_eq!(expires(&Domain::default(), now), ("-".to_owned(), false));
    }

    #[test]
    fn what_a_name_leads_to_is_said() {
        let domain = |target| Domain { target, ..Domain::default() };
        assert_eq!(leads_to(&domain(Some(Target::MicrovmId("microvm-1".into())))), "microvm-1");
        assert_eq!(leads_to(&domain(Some(Target::ImageName("web".into())))), "microVMs of web");
    }
}
