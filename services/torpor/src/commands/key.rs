//! `torpor key`.

use std::path::Path;
use std::time::SystemTime;

use api::access::v1::{
    AccessKey, CreateAccessKeyRequest, CreateAccessKeyResponse, DeleteAccessKeyRequest,
    ListAccessKeysRequest, Policy,
};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Session, input};
use crate::cli::key::{Create, Key};
use crate::error::CliError;
use crate::output::{self, json};
use crate::{durations, flags, policy_file};

const KEY: &str = "torpor.access.v1.AccessKey";
/// Largest policy file in bytes; a policy that the service takes is smaller.
const POLICY_BYTES_MAX: u64 = 4 << 20;

pub async fn run(session: &Session, command: Key) -> Result<(), CliError> {
    match command {
        Key::Create(arguments) => create(session, arguments).await,
        Key::List => list(session).await,
        Key::Delete { ids } => delete(session, ids).await,
    }
}

async fn create(session: &Session, arguments: Create) -> Result<(), CliError> {
    let policy = arguments.policy.as_deref().map(policy).transpose()?;
    let expire_time = match &arguments.expires {
        Some(text) => Some(api::timestamp(expiry(text, SystemTime::now())?)),
        None => None,
    };
    let message = CreateAccessKeyRequest { description: arguments.description, policy, expire_time };
    // Repeated only when the service says that it did nothing.
    let response = session.call(message).await.map_err(|error| error.in_flags(flags::KEY))?;
    show_new(session, &response)
}

fn show_new(session: &Session, response: &CreateAccessKeyResponse) -> Result<(), CliError> {
    if session.json() {
        let name = "torpor.access.v1.CreateAccessKeyResponse";
        return output::value(&json::message(name, response));
    }
    let key = response.access_key.clone().unwrap_or_default();
    output::fields(vec![
        ("access key id", key.access_key_id.clone()),
        ("secret access key", response.secret_access_key.clone()),
        ("account", key.account_id.clone()),
        ("description", key.description.clone()),
        ("may do", allowed(&key)),
        ("expires", durations::rfc3339(key.expire_time.as_ref())),
    ])?;
    output::remark(
        "the secret is shown this once: keep it now. Clients read the pair from AWS_ACCESS_KEY_ID and \
         AWS_SECRET_ACCESS_KEY; torpor env exports the rest of what they need.",
    );
    Ok(())
}

async fn list(session: &Session) -> Result<(), CliError> {
    let keys = all(session).await?;
    if session.json() {
        return output::value(&json::messages(KEY, &keys));
    }
    let row = |key: &AccessKey| {
        [
            key.access_key_id.clone(),
            key.description.clone(),
            allowed(key),
            durations::age(key.create_time.as_ref(), SystemTime::now()),
            expires(key, SystemTime::now()),
        ]
    };
    let empty = "no access keys; make one: torpor key create --description NAME";
    output::table(["id", "description", "may do", "created", "expires"], &keys, row, empty)?;
    let root = &session.context.s3.access_key_id;
    output::remark(format_args!(
        "the fleet's root access key {root} is in a file and not listed; torpor env exports it"
    ));
    Ok(())
}

async fn all(session: &Session) -> Result<Vec<AccessKey>, CliError> {
    let ask = |page_token| ListAccessKeysRequest { page_size: 0, page_token };
    let mut keys = session.all(ask, |page| (page.access_keys, page.next_page_token)).await?;
    // torpor up wrote that one, and deleting it is not for this command.
    keys.retain(|key| key.access_key_id != session.context.s3.access_key_id);
    Ok(keys)
}

async fn delete(session: &Session, ids: Vec<String>) -> Result<(), CliError> {
    if let Some(root) = ids.iter().find(|id| **id == session.context.s3.access_key_id) {
        return Err(CliError::usage(format!("{root} is the fleet's root access key"))
            .next("replace it: torpor down, delete config/root-key.toml in the data directory, torpor up"));
    }
    for id in ids {
        let message = DeleteAccessKeyRequest { access_key_id: id.clone() };
        session.call(message).await?;
        if !session.json() {
            output::line(format_args!("{id} deleted"))?;
        }
    }
    if session.json() {
        output::value(&serde_json::json!({}))?;
    }
    Ok(())
}

fn policy(path: &Path) -> Result<Policy, CliError> {
    let name = path.display();
    let usage = |message: String| {
        CliError::usage(format!("policy {name}: {message}"))
            .next("see torpor key create --help for what a policy file looks like")
    };
    let bytes = input::read(path, POLICY_BYTES_MAX).map_err(usage)?;
    let text = String::from_utf8(bytes).map_err(|_| usage("is not text".to_owned()))?;
    policy_file::parse(&text).map_err(usage)
}

/// A time from now, or a point in time, in the future.
fn expiry(text: &str, now: SystemTime) -> Result<SystemTime, CliError> {
    let wrong = |message: &str| {
        CliError::usage(format!("--expires {text}: {message}")).next("write 90d, 12h or 2027-01-31T00:00:00Z")
    };
    let at = match OffsetDateTime::parse(text, &Rfc3339) {
        Ok(at) => SystemTime::from(at),
        Err(_) => {
            let from_now = durations::parse(text).map_err(|_| wrong("is no time"))?;
            // What lies beyond a protobuf time's last year is no date either.
            let latest = time::Date::from_calendar_date(9999, time::Month::December, 31)
                .ok()
                .and_then(|day| day.with_hms(0, 0, 0).ok())
                .map(|at| SystemTime::from(at.assume_utc()));
            now.checked_add(from_now)
                .filter(|at| latest.is_some_and(|latest| *at < latest))
                .ok_or_else(|| wrong("is too far away"))?
        }
    };
    match at > now {
        true => Ok(at),
        false => Err(wrong("is over")),
    }
}

/// What a key may do, in a few words.
fn allowed(key: &AccessKey) -> String {
    match key.policy.as_ref().map(|policy| policy.statements.as_slice()) {
        None => "everything".to_owned(),
        Some([one]) => format!("1 statement: {}", one.actions.join(" ")),
        Some(statements) => format!("{} statements", statements.len()),
    }
}

fn expires(key: &AccessKey, now: SystemTime) -> String {
    let at = key.expire_time.as_ref().and_then(|time| api::system_time(time).ok());
    match at {
        None => "never".to_owned(),
        Some(at) => match at.duration_since(now) {
            Ok(left) => format!("in {}", durations::coarse(left)),
            Err(_) => "expired".to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use api::access::v1::Statement;

    use super::*;
    use crate::error::Kind;

    #[test]
    fn expiries_are_times_from_now_or_points_in_time() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let after = |text: &str| expiry(text, now).map(|at| at.duration_since(now).unwrap().as_secs());
        assert_eq!(after("90d").unwrap(), 90 * 86_400);
        assert_eq!(after("12h").unwrap(), 43_200);
        assert_eq!(after("2027-01-15T08:00:10Z").unwrap(), 10);
        assert_eq!(after("2027-01-15T09:00:10+01:00").unwrap(), 10);
        for (text, said) in [
            ("soon", "is no time"),
            ("", "is no time"),
            ("0s", "is over"),
            ("2020-01-01T00:00:00Z", "is over"),
            ("2027-01-31", "is no time"),
            ("99999999y", "is too far away"),
            ("18446744073709551615", "is too far away"),
        ] {
            let failure = after(text).expect_err(text);
            assert_eq!(failure.kind, Kind::Usage);
            assert!(failure.message.contains(said), "{}", failure.message);
        }
    }

    #[test]
    fn a_key_says_what_it_may_do_and_for_how_long() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let mut key = AccessKey::default();
        assert_eq!((allowed(&key).as_str(), expires(&key, now).as_str()), ("everything", "never"));
        let statement = Statement {
            actions: vec!["lambda:Get*".to_owned(), "lambda:List*".to_owned()],
            ..Default::default()
        };
        key.policy = Some(Policy { statements: vec![statement.clone()] });
        assert_eq!(allowed(&key), "1 statement: lambda:Get* lambda:List*");
        key.policy = Some(Policy { statements: vec![statement.clone(), statement] });
        assert_eq!(allowed(&key), "2 statements");
        key.expire_time = Some(api::timestamp(now + Duration::from_secs(7200)));
        assert_eq!(expires(&key, now), "in 2h");
        key.expire_time = Some(api::timestamp(now));
        assert_eq!(expires(&key, now + Duration::from_secs(1)), "expired");
    }
}
