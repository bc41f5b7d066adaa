//! Requests about access keys.

use std::time::SystemTime;

use api::access::v1::{CreateAccessKeyRequest, Effect, Policy, Statement};
use model::Violations;
use model::limits::{POLICY_ACTION_MAX, POLICY_PATTERNS_MAX, POLICY_RESOURCE_MAX, POLICY_STATEMENTS_MAX};
use prost::Message as _;

use super::Findings;
use crate::adapters::access_keys::is_id;
use crate::refusal::Refusal;
use crate::term::access_keys::NewAccessKey;

const DESCRIPTION_MAX: usize = 256;
/// Largest policy, encoded bytes: a key is one record.
const POLICY_BYTES_MAX: usize = 64 * 1024;
/// Last second of the year 9999, the end of times on the wire.
const TIME_MAX: i64 = 253_402_300_799;
/// Services whose actions are ever asked for.
const SERVICES: [&str; 2] = ["lambda", "iam"];

pub fn create(request: &CreateAccessKeyRequest, now: SystemTime) -> Result<NewAccessKey, Refusal> {
    let mut findings = Findings::default();
    let found = &mut findings.violations;
    let description = &request.description;
    found.check(
        description.chars().count() <= DESCRIPTION_MAX && !description.chars().any(char::is_control),
        "description",
        format!("must be at most {DESCRIPTION_MAX} characters without control characters"),
    );
    if let Some(given) = &request.policy {
        policy(given, found);
    }
    let expire_time = request.expire_time.as_ref().and_then(|given| {
        let time = found.keep("expireTime", api::system_time(given))?;
        found.check(
            time > now && given.seconds <= TIME_MAX,
            "expireTime",
            "must be in the future and before the year 10000",
        );
        Some(time)
    });
    findings.finish(Some(NewAccessKey {
        description: description.clone(),
        policy: request.policy.clone(),
        expire_time,
    }))
}

pub fn id(text: &str, field: &str) -> Result<String, Refusal> {
    let mut findings = Findings::default();
    findings.violations.check(is_id(text), field, "must be 20 characters of [A-Z0-9] that begin with AKIA");
    findings.finish(Some(text.to_owned()))
}

fn policy(policy: &Policy, violations: &mut Violations) {
    violations.check(
        policy.encoded_len() <= POLICY_BYTES_MAX,
        "policy",
        format!("must be at most {POLICY_BYTES_MAX} bytes encoded"),
    );
    violations.check(
        policy.statements.len() <= POLICY_STATEMENTS_MAX,
        "policy.statements",
        format!("must have at most {POLICY_STATEMENTS_MAX} entries"),
    );
    for (index, given) in policy.statements.iter().take(POLICY_STATEMENTS_MAX).enumerate() {
        statement(given, &format!("policy.statements[{index}]"), violations);
    }
}

fn statement(statement: &Statement, field: &str, violations: &mut Violations) {
    let effect = Effect::try_from(statement.effect).unwrap_or_default();
    violations.check(effect != Effect::Unspecified, format!("{field}.effect"), "must be ALLOW or DENY");
    for (name, entries, good, form) in [
        (
            "actions",
            &statement.actions,
            is_action as fn(&str) -> bool,
            "must be '*' or 'lambda:' or 'iam:' and the name of an action, with wildcards, at most 128 characters",
        ),
        (
            "resources",
            &statement.resources,
            is_resource as fn(&str) -> bool,
            "must be '*' or an ARN, with wildcards, at most 2048 characters",
        ),
    ] {
        violations.check(
            (1..=POLICY_PATTERNS_MAX).contains(&entries.len()),
            format!("{field}.{name}"),
            format!("must have 1 to {POLICY_PATTERNS_MAX} entries"),
        );
        for (index, entry) in entries.iter().take(POLICY_PATTERNS_MAX).enumerate() {
            violations.check(good(entry), format!("{field}.{name}[{index}]"), form);
        }
    }
}

/// A pattern that can match an action; one that never matches is a slip of the pen.
fn is_action(text: &str) -> bool {
    if text == "*" {
        return true;
    }
    let Some((service, name)) = text.split_once(':') else {
        return false;
    };
    let wild = service.contains(['*', '?']);
    let known = wild || SERVICES.iter().any(|known| known.eq_ignore_ascii_case(service));
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '*' || c == '?';
    known
        && text.len() <= POLICY_ACTION_MAX
        && !name.is_empty()
        && service.chars().chain(name.chars()).all(allowed)
}

fn is_resource(text: &str) -> bool {
    text == "*"
        || (text.starts_with("arn:")
            && text.len() <= POLICY_RESOURCE_MAX
            && text.chars().all(|c| c.is_ascii_graphic()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn statement(actions: &[&str], resources: &[&str]) -> Statement {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        Statement { effect: Effect::Allow.into(), actions: owned(actions), resources: owned(resources) }
    }

    fn violated(statements: Vec<Statement>) -> String {
        let request = CreateAccessKeyRequest { policy: Some(Policy { statements }), ..Default::default() };
        match create(&request, SystemTime::UNIX_EPOCH) {
            Ok(_) => String::new(),
            Err(refusal) => refusal.to_string(),
        }
    }

    #[test]
    fn policies() {
        let good = || statement(&["lambda:Run*"], &["*"]);
        for (statements, text) in [
            (vec![], ""),
            (vec![good()], ""),
            (
                vec![statement(
                    &["*", "IAM:PassRole", "lambda:?etMicrovm", "*:*", "l*:Get"],
                    &["arn:aws:lambda:*:*:microvm-image:team-*"],
                )],
                "",
            ),
            (vec![good(); 20], ""),
            (vec![good(); 21], "policy.statements: must have at most 20"),
            (vec![statement(&[], &["*"])], "policy.statements[0].actions: must have 1 to 50"),
            (vec![statement(&["*"; 51], &["*"])], "policy.statements[0].actions: must have 1 to 50"),
            (vec![statement(&["*"], &[])], "policy.statements[0].resources: must have 1 to 50"),
            (
                vec![good(), statement(&["*", "lambda-microvms:RunMicrovm"], &["*"])],
                "policy.statements[1].actions[1]: must be",
            ),
            (vec![statement(&["RunMicrovm"], &["*"])], "actions[0]"),
            (vec![statement(&["lambda:"], &["*"])], "actions[0]"),
            (vec![statement(&["lambda:Run Microvm"], &["*"])], "actions[0]"),
            (vec![statement(&["*"], &["my-image"])], "resources[0]"),
            (vec![statement(&["*"], &["arn:aws lambda"])], "resources[0]"),
            (vec![Statement { effect: 9, ..good() }], "policy.statements[0].effect: must be ALLOW or DENY"),
        ] {
            let found = violated(statements.clone());
            assert_eq!(found.is_empty(), text.is_empty(), "{statements:?}: {found}");
            assert!(found.contains(text), "{found}");
        }
        let long = "x".repeat(POLICY_RESOURCE_MAX - 4);
        let longest = format!("arn:{long}");
        let wide = statement(&["*"], &[longest.as_str(); 33]);
        assert!(violated(vec![wide]).contains("policy: must be at most 65536 bytes"));
        let longer = format!("arn:{long}x");
        assert!(violated(vec![statement(&["*"], &[&longer])]).contains("resources[0]"));
    }

    #[test]
    fn descriptions_and_times() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        for (description, expire_time, text) in [
            ("", None, ""),
            ("for the builders", at(101), ""),
            (&"d".repeat(256), None, ""),
            (&"d".repeat(257), None, "description"),
            ("two\nlines", None, "description"),
            ("", at(100), "expireTime: must be in the future"),
            ("", at(TIME_MAX), ""),
            ("", at(TIME_MAX + 1), "expireTime"),
            ("", at(i64::MAX), "expireTime"),
        ] {
            let request =
                CreateAccessKeyRequest { description: description.to_owned(), policy: None, expire_time };
            let found = create(&request, now).map_or_else(|refusal| refusal.to_string(), |_| String::new());
            assert_eq!(found.is_empty(), text.is_empty(), "{found}");
            assert!(found.contains(text), "{found}");
        }
    }
}
