//! Calling a service: a deadline on every call, a bounded number of further
//! tries where the service asks for one, listings page by page, and ids from prefixes.

use std::time::Duration;

use api::microvm::v1::{ListMicrovmsRequest, Microvm};
use client::Call;
use rpc::{CallBounds, Role};

use super::Session;
use crate::error::{CliError, Kind};

/// Longest wait for a call that only reads or records.
const QUICK: Duration = Duration::from_secs(15);
/// Longest wait for a call that moves a microVM: hooks take up to a minute each.
const SLOW: Duration = Duration::from_secs(150);
/// How long a service may ask for further tries, for example during an election.
const RETRY_WINDOW: Duration = Duration::from_secs(10);
const PAGES_MAX: usize = 1000;

impl Session {
    /// Makes a call that only reads or records.
    pub async fn call<M: Call>(&self, message: M) -> Result<M::Answer, CliError> {
        self.call_within(QUICK, message).await
    }

    /// Makes a call that moves a microVM.
    pub async fn call_slowly<M: Call>(&self, message: M) -> Result<M::Answer, CliError> {
        self.call_within(SLOW, message).await
    }

    async fn call_within<M: Call>(&self, timeout: Duration, message: M) -> Result<M::Answer, CliError> {
        let kept = match M::ROLE {
            Role::ImageBuilder => &self.image_builder,
            _ => &self.scheduler,
        };
        let replicas = match kept.get() {
            Some(replicas) => replicas,
            None => {
                let replicas = self.context.replicas(M::ROLE)?;
                kept.get_or_init(|| replicas)
            }
        };
        let bounds = CallBounds { attempt: timeout, total: timeout, retry: RETRY_WINDOW };
        Ok(message.send(replicas, bounds).await?)
    }

    /// Every item of a listing. `ask` makes the request for a page from its token,
    /// `page` takes an answer apart into items and the token of the next page.
    pub async fn all<M: Call, T>(
        &self,
        ask: impl Fn(String) -> M,
        page: impl Fn(M::Answer) -> (Vec<T>, String),
    ) -> Result<Vec<T>, CliError> {
        let (mut all, mut token) = (Vec::new(), String::new());
        for _ in 0..PAGES_MAX {
            let (items, next) = page(self.call(ask(token)).await?);
            all.extend(items);
            token = next;
            if token.is_empty() {
                break;
            }
        }
        Ok(all)
    }
}

/// The full id for an id or a unique prefix of one, with or without "microvm-".
pub async fn microvm_id(session: &Session, given: &str) -> Result<String, CliError> {
    let wanted = match given.strip_prefix("microvm-") {
        Some(rest) => rest,
        None => given,
    }
    .to_ascii_lowercase();
    if wanted.is_empty() || !wanted.chars().all(|c| c.is_ascii_hexdigit() || c == '-') {
        return Err(CliError::usage(format!("'{given}' is not a microVM id"))
            .next("ids look like microvm-6f1c…; see torpor list --all"));
    }
    if uuid::Uuid::parse_str(&wanted).is_ok() {
        return Ok(format!("microvm-{wanted}"));
    }
    let prefix = format!("microvm-{wanted}");
    let matches: Vec<String> = all_microvms(session, None, None)
        .await?
        .into_iter()
        .map(|microvm| microvm.microvm_id)
        .filter(|id| id.starts_with(&prefix))
        .collect();
    match matches.as_slice() {
        [id] => Ok(id.clone()),
        [] => Err(CliError::new(Kind::NotFound, format!("no microVM id starts with '{given}'"))
            .next("see torpor list --all")),
        [first, second, ..] => Err(CliError::usage(format!(
            "'{given}' is not unique: {} microVMs, {first} and {second} among them",
            matches.len()
        ))
        .next("give more characters of the id")),
    }
}

pub async fn all_microvms(
    session: &Session,
    image: Option<&str>,
    version: Option<&str>,
) -> Result<Vec<Microvm>, CliError> {
    let ask = |page_token| ListMicrovmsRequest {
        page_size: 0,
        page_token,
        image_identifier: image.unwrap_or_default().to_owned(),
        image_version: version.unwrap_or_default().to_owned(),
        unlaunchable: false,
    };
    session.all(ask, |page| (page.microvms, page.next_page_token)).await
}

pub fn pair(text: &str, option: &str) -> Result<(String, String), CliError> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(CliError::usage(format!("{option} {text}: must have the form KEY=VALUE"))),
    }
}

/// An idempotency token: the given one, else a fresh one, so that our own
/// further tries of a call count as one.
pub fn client_token(given: Option<String>) -> String {
    given.unwrap_or_else(|| uuid::Uuid::new_v4().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_need_a_key() {
        assert_eq!(pair("A=b=c", "--env").unwrap(), ("A".to_owned(), "b=c".to_owned()));
        assert_eq!(pair("=b", "--env").expect_err("no key").kind, Kind::Usage);
        assert_eq!(pair("A", "--env").expect_err("no value").kind, Kind::Usage);
    }
}
