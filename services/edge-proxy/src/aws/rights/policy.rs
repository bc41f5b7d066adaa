//! What a key may do: statements that allow and statements that deny, over
//! actions and resources with wildcards. Pure.
//!
//! Everything is denied unless a statement allows it, and nothing allows what a statement denies.

use api::access::v1::{Effect, Policy as StoredPolicy, Statement as StoredStatement};
use model::limits::{POLICY_PATTERNS_MAX, POLICY_RESOURCE_MAX, POLICY_STATEMENTS_MAX};

/// Longest resource that is compared; no resource's name is longer.
pub const RESOURCE_BYTES_MAX: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy(Vec<Statement>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Statement {
    allow: bool,
    actions: Vec<String>,
    resources: Vec<String>,
}

/// Why a policy cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error("a policy has at most {POLICY_STATEMENTS_MAX} statements")]
    Statements,
    #[error("a statement allows or denies")]
    Effect,
    #[error("a statement has 1 to {POLICY_PATTERNS_MAX} actions and as many resources")]
    Patterns,
    #[error("an action or resource has 1 to {POLICY_RESOURCE_MAX} bytes")]
    Pattern,
}

impl Policy {
    /// Checks a policy as it is stored.
    pub fn new(stored: StoredPolicy) -> Result<Self, PolicyError> {
        if stored.statements.len() > POLICY_STATEMENTS_MAX {
            return Err(PolicyError::Statements);
        }
        let statements = stored.statements.into_iter().map(Statement::new);
        statements.collect::<Result<_, _>>().map(Self)
    }

    /// Whether `action` is permitted on a resource, given all its names: a denial
    /// under any of them counts. Nothing is on a name that is too long to be one.
    pub fn permits(&self, action: &str, names: &[&str]) -> bool {
        if names.iter().any(|name| name.len() > RESOURCE_BYTES_MAX) {
            return false;
        }
        let mut allowed = false;
        let applies = |one: &&Statement| names.iter().any(|name| one.matches(action, name));
        for statement in self.0.iter().filter(applies) {
            if !statement.allow {
                return false;
            }
            allowed = true;
        }
        allowed
    }
}

impl Statement {
    fn new(stored: StoredStatement) -> Result<Self, PolicyError> {
        let allow = match stored.effect() {
            Effect::Allow => true,
            Effect::Deny => false,
            Effect::Unspecified => return Err(PolicyError::Effect),
        };
        let counts = [stored.actions.len(), stored.resources.len()];
        if counts.iter().any(|count| !(1..=POLICY_PATTERNS_MAX).contains(count)) {
            return Err(PolicyError::Patterns);
        }
        let patterns = stored.actions.iter().chain(&stored.resources);
        if patterns.map(String::len).any(|length| !(1..=POLICY_RESOURCE_MAX).contains(&length)) {
            return Err(PolicyError::Pattern);
        }
        Ok(Self {
            allow,
            actions: stored.actions.iter().map(|action| action.to_ascii_lowercase()).collect(),
            resources: stored.resources,
        })
    }

    fn matches(&self, action: &str, resource: &str) -> bool {
        let action = action.to_ascii_lowercase();
        self.actions.iter().any(|pattern| matches(pattern.as_bytes(), action.as_bytes()))
            && self.resources.iter().any(|pattern| matches(pattern.as_bytes(), resource.as_bytes()))
    }
}

/// Whether `text` is as `pattern` says: `*` stands for any text, `?` for any one
/// byte. Takes at most `pattern.len() * text.len()` steps: only the latest `*`
/// is ever tried again, for what the earlier ones took can stay as it is.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at_pattern, mut at_text) = (0, 0);
    let mut again: Option<(usize, usize)> = None;
    while at_text < text.len() {
        match pattern.get(at_pattern) {
            Some(b'*') => {
                again = Some((at_pattern, at_text));
                at_pattern += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[at_text] => {
                at_pattern += 1;
                at_text += 1;
            }
            _ => {
                let Some((star, taken)) = again else { return false };
                again = Some((star, taken + 1));
                (at_pattern, at_text) = (star + 1, taken + 1);
            }
        }
    }
    pattern[at_pattern..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;

    const IMAGE: &str = "arn:aws:lambda:us-east-1:000000000000:microvm-image:team-a";

    fn statement(effect: Effect, actions: &[&str], resources: &[&str]) -> StoredStatement {
        StoredStatement {
            effect: effect.into(),
            actions: actions.iter().map(|text| (*text).to_owned()).collect(),
            resources: resources.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    fn policy(statements: Vec<StoredStatement>) -> Result<Policy, PolicyError> {
        Policy::new(StoredPolicy { statements })
    }

    #[test]
    fn denial_wins_and_silence_denies() {
        let policy = policy(vec![
            statement(
                Effect::Allow,
                &["lambda:Get*", "LAMBDA:runmicrovm"],
                &["arn:aws:lambda:*:*:microvm-image:team-*"],
            ),
            statement(Effect::Allow, &["iam:PassRole"], &["arn:aws:iam::000000000000:role/app-?"]),
            statement(Effect::Deny, &["lambda:GetMicrovmImageBuild"], &["*:microvm-image:team-a"]),
        ])
        .unwrap();
        for (action, resource, expected) in [
            ("lambda:GetMicrovmImage", IMAGE, true),
            ("lambda:RunMicrovm", IMAGE, true),
            ("lambda:GetMicrovmImageBuild", IMAGE, false),
            ("lambda:GetMicrovmImageBuild", &IMAGE.replace("team-a", "team-b"), true),
            ("lambda:GetMicrovmImage", &IMAGE.replace("team-a", "other"), false),
            ("lambda:DeleteMicrovmImage", IMAGE, false),
            ("lambda:GetMicrovmImage", "*", false),
            ("iam:PassRole", "arn:aws:iam::000000000000:role/app-1", true),
            ("iam:PassRole", "arn:aws:iam::000000000000:role/app-12", false),
            ("iam:PassRole", "arn:aws:iam::000000000000:role/app-", false),
        ] {
            assert_eq!(policy.permits(action, &[resource]), expected, "{action} {resource}");
        }
    }

    #[test]
    fn every_name_of_a_resource_counts() {
        let policy = policy(vec![
            statement(Effect::Allow, &["*"], &["*:image"]),
            statement(Effect::Deny, &["*"], &["*:nc-1"]),
        ])
        .unwrap();
        for (names, expected) in [
            (&["arn:image"][..], true),
            (&["arn:microvm", "arn:image"], true),
            (&["arn:microvm"], false),
            (&["arn:image", "arn:nc-1"], false),
            (&[], false),
        ] {
            assert_eq!(policy.permits("lambda:X", names), expected, "{names:?}");
        }
    }

    #[test]
    fn an_empty_policy_permits_nothing() {
        assert!(!policy(Vec::new()).unwrap().permits("lambda:GetMicrovm", &[IMAGE]));
    }

    #[test]
    fn nothing_is_permitted_on_what_cannot_be_a_resource() {
        let everything = policy(vec![statement(Effect::Allow, &["*"], &["*"])]).unwrap();
        assert!(everything.permits("lambda:GetMicrovm", &[&"a".repeat(RESOURCE_BYTES_MAX)]));
        assert!(!everything.permits("lambda:GetMicrovm", &[&"a".repeat(RESOURCE_BYTES_MAX + 1)]));
    }

    #[test]
    fn policies_have_bounds() {
        let good = || statement(Effect::Allow, &["*"], &["*"]);
        let many = vec!["*"; POLICY_PATTERNS_MAX + 1];
        let long = "a".repeat(POLICY_RESOURCE_MAX + 1);
        for (statements, expected) in [
            (vec![good(); POLICY_STATEMENTS_MAX], Ok(())),
            (vec![good(); POLICY_STATEMENTS_MAX + 1], Err(PolicyError::Statements)),
            (vec![statement(Effect::Unspecified, &["*"], &["*"])], Err(PolicyError::Effect)),
            (vec![statement(Effect::Allow, &[], &["*"])], Err(PolicyError::Patterns)),
            (vec![statement(Effect::Allow, &["*"], &[])], Err(PolicyError::Patterns)),
            (vec![statement(Effect::Allow, &many, &["*"])], Err(PolicyError::Patterns)),
            (vec![statement(Effect::Deny, &["*"], &[&long])], Err(PolicyError::Pattern)),
            (vec![statement(Effect::Deny, &[""], &["*"])], Err(PolicyError::Pattern)),
        ] {
            assert_eq!(policy(statements).map(drop), expected);
        }
    }

    #[test]
    fn the_worst_pattern_stays_cheap() {
        let pattern = "*a".repeat(POLICY_RESOURCE_MAX / 2);
        let text = format!("{}b", "a".repeat(POLICY_RESOURCE_MAX));
        let started = Instant::now();
        assert!(!matches(pattern.as_bytes(), text.as_bytes()));
        assert!(started.elapsed() < Duration::from_secs(1));
    }

    /// The definition, without regard for time.
    fn defined(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) if defined(rest, text) => true,
            (Some((b'*', _)), Some((_, text))) => defined(pattern, text),
            (Some((b'?', rest)), Some((_, text))) => defined(rest, text),
            (Some((first, rest)), Some((byte, text))) => first == byte && defined(rest, text),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matching_is_as_defined(pattern in "[ab*?]{0,8}", text in "[ab]{0,10}") {
            prop_assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes()),
                defined(pattern.as_bytes(), text.as_bytes())
            );
        }
    }
}
