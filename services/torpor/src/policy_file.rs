//! What a person writes about an access key, in IAM's JSON, and what the API takes. Only the form is judged
//! here; bounds are the service's. A member we do not know would narrow or widen the policy in a way we
//! cannot keep, so it is an error.

use api::access::v1::{Effect, Policy, Statement};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    /// Any: every version of IAM's language has what is read here.
    #[serde(rename = "Version")]
    _version: Option<String>,
    #[serde(rename = "Id")]
    _id: Option<String>,
    #[serde(rename = "Statement")]
    statement: OneOrMany<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    #[serde(rename = "Sid")]
    _sid: Option<String>,
    #[serde(rename = "Effect")]
    effect: StatementEffect,
    #[serde(rename = "Action")]
    action: OneOrMany<String>,
    #[serde(rename = "Resource")]
    resource: OneOrMany<String>,
}

#[derive(Deserialize)]
enum StatementEffect {
    Allow,
    Deny,
}

/// IAM takes one thing where it takes a list.
struct OneOrMany<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Visitor<T> {
            type Value = Vec<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("one entry or a list of them")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Vec<T>, E> {
                T::deserialize(serde::de::value::StrDeserializer::new(text)).map(|one| vec![one])
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Vec<T>, A::Error> {
                T::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(|one| vec![one])
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
                let mut all = Vec::new();
                while let Some(one) = list.next_element()? {
                    all.push(one);
                }
                Ok(all)
            }
        }
        deserializer.deserialize_any(Visitor(std::marker::PhantomData)).map(Self)
    }
}

/// Reads a policy; an error is for the person who wrote it.
pub fn parse(text: &str) -> Result<Policy, String> {
    let document: Document = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let statements: Vec<Statement> = document.statement.0.into_iter().map(Rule::statement).collect();
    if statements.is_empty() {
        // Sent as it is, it would look like a key that may do everything.
        return Err("Statement: a policy without statements allows nothing; give at least one".to_owned());
    }
    Ok(Policy { statements })
}

impl Rule {
    fn statement(self) -> Statement {
        let effect = match self.effect {
            StatementEffect::Allow => Effect::Allow,
            StatementEffect::Deny => Effect::Deny,
        };
        Statement { effect: effect.into(), actions: self.action.0, resources: self.resource.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_in_either_form() {
        let short = r#"{"Statement": {"Effect": "Allow", "Action": "lambda:*", "Resource": "*"}}"#;
        let long = r#"{"Version": "2012-10-17", "Id": "x", "Statement":
            [{"Sid": "a", "Effect": "Allow", "Action": ["lambda:*"], "Resource": ["*"]}]}"#;
        let expected = Statement {
            effect: Effect::Allow.into(),
            actions: vec!["lambda:*".to_owned()],
            resources: vec!["*".to_owned()],
        };
        for text in [short, long] {
            assert_eq!(parse(text).unwrap().statements, std::slice::from_ref(&expected), "{text}");
        }
        let two = r#"{"Statement": [
            {"Effect": "Allow", "Action": ["a", "b"], "Resource": "r"},
            {"Effect": "Deny", "Action": "c", "Resource": ["s", "t"]}]}"#;
        let policy = parse(two).unwrap();
        assert_eq!(policy.statements.len(), 2);
        assert_eq!(policy.statements[1].effect(), Effect::Deny);
        assert_eq!(policy.statements[0].actions, ["a", "b"]);
        assert_eq!(policy.statements[1].resources, ["s", "t"]);
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        let rule = |members: &str| {
            format!(r#"{{"Statement": [{{"Effect": "Allow", "Action": "a", "Resource": "r"{members}}}]}}"#)
        };
        for (text, said) in [
            (rule(r#", "Condition": {}"#), "Condition"),
            (rule(r#", "Principal": "*""#), "Principal"),
            (rule(r#", "NotAction": "b""#), "NotAction"),
            (rule(r#", "Action": "b""#), "duplicate field"),
            (
                r#"{"Statement": [{"Effect": "allow", "Action": "a", "Resource": "r"}]}"#.to_owned(),
                "unknown variant `allow`",
            ),
            (r#"{"Statement": [{"Effect": "Allow", "Resource": "r"}]}"#.to_owned(), "missing field `Action`"),
            (
                r#"{"Statement": [{"Effect": "Allow", "Action": 1, "Resource": "r"}]}"#.to_owned(),
                "one entry or a list of them",
            ),
            (r#"{"Statement": []}"#.to_owned(), "allows nothing"),
            ("{}".to_owned(), "missing field `Statement`"),
            ("[]".to_owned(), "invalid"),
            ("".to_owned(), "EOF"),
        ] {
            let error = parse(&text).expect_err(&text);
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
