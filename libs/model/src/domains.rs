//! Names of own domains.
//!
//! ```text
//! one name    app.example.com       a microVM's
//! wildcard    *.apps.example.com    an image's: "<endpoint label>.apps.example.com" is its microVM with that label
//! ```
//!
//! No name is both: one that begins with an endpoint's label, a UUID, is a wildcard's or nobody's.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use crate::ids::IdError;
use crate::limits::{DOMAIN_LABEL_MAX, DOMAIN_NAME_MAX};

/// Characters of an endpoint's label, which stands where a wildcard has its "*".
const ENDPOINT_LABEL: usize = 36;
const WILDCARD: &str = "*.";

/// A name as its owner gave it, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainName(String);

impl DomainName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What follows the "*." of a wildcard.
    #[must_use]
    pub fn wildcard(&self) -> Option<&str> {
        self.0.strip_prefix(WILDCARD)
    }

    /// The wildcard that has `rest` behind its first label.
    #[must_use]
    pub fn text_of_wildcard(rest: &str) -> String {
        format!("{WILDCARD}{rest}")
    }

    /// A name that a certificate for this one covers: itself, or one of the wildcard's.
    #[must_use]
    pub fn sample(&self) -> String {
        match self.wildcard() {
            Some(rest) => format!("{}.{rest}", Uuid::nil()),
            None => self.0.clone(),
        }
    }

    /// Whether the name would stand for a part of `fleet`, the domain of the fleet's own endpoints, or for all of it.
    #[must_use]
    pub fn shadows(&self, fleet: &str) -> bool {
        let rest = self.wildcard().unwrap_or(&self.0);
        let is_above = || fleet.split_once('.').is_some_and(|(_, above)| above == rest);
        is_within(rest, fleet) || (self.wildcard().is_some() && is_above())
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for DomainName {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let wrong = |message: &str| Err(IdError::new(message));
        let (rest, longest) = match text.strip_prefix(WILDCARD) {
            Some(rest) => (rest, DOMAIN_NAME_MAX - ENDPOINT_LABEL - 1),
            None => (text, DOMAIN_NAME_MAX),
        };
        if rest.len() > longest {
            let of = if rest.len() == text.len() { "" } else { " behind the \"*.\"" };
            return wrong(&format!("must be at most {longest} characters{of}"));
        }
        if !rest.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.')) {
            return wrong(
                "must be a host name of [a-z0-9.-] in lower case, other letters in punycode (xn--…), with \"*\" as a \
                 whole first label only",
            );
        }
        let labels: Vec<&str> = rest.split('.').collect();
        let label_ok = |label: &&str| {
            (1..=DOMAIN_LABEL_MAX).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
        };
        if !labels.iter().all(label_ok) {
            return wrong("must have labels of 1 to 63 characters that neither begin nor end with \"-\"");
        }
        if labels.len() < 2 {
            return wrong("must have at least 2 labels, those of a wildcard's \"*\" not counted");
        }
        // The last label tells an address from a name.
        if labels.last().is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit())) {
            return wrong("must not be an IP address: its last label must not be a number");
        }
        if rest.len() == text.len() && endpoint_label(text).is_some() {
            return wrong("must not begin with a UUID: such names are those of an image's wildcard");
        }
        Ok(Self(text.to_owned()))
    }
}

/// The endpoint's label that a name begins with, in its one usual form, and what follows its dot. A parser of UUIDs alone
/// would take other forms too.
#[must_use]
pub fn endpoint_label(name: &str) -> Option<(Uuid, &str)> {
    let (label, rest) = name.split_once('.')?;
    let label = (label.len() == ENDPOINT_LABEL).then(|| Uuid::try_parse(label).ok()).flatten()?;
    Some((label, rest))
}

/// Whether a name is `domain` or ends with it, whatever its case.
#[must_use]
pub fn is_within(name: &str, domain: &str) -> bool {
    let Some(start) = name.len().checked_sub(domain.len()) else { return false };
    let (before, end) = name.as_bytes().split_at(start);
    end.eq_ignore_ascii_case(domain.as_bytes()) && (before.is_empty() || before.ends_with(b"."))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: &str = "0b6e5e1e-1111-4222-8333-000000000001";

    #[test]
    fn names_have_their_form() {
        let long_label = "a".repeat(63);
        let longest = format!("{long_label}.{long_label}.{long_label}.{}", "a".repeat(61));
        let wildcard = |rest: &str| format!("*.{rest}");
        let rest = format!("{long_label}.{long_label}.{long_label}.{}", "a".repeat(24));
        for (name, fault) in [
            ("app.example.com", None),
            ("xn--bcher-kva.example", None),
            ("1-2.3a", None),
            ("*.apps.example.com", None),
            (&*longest, None),
            (&*wildcard(&rest), None),
            (&*format!("{longest}a"), Some("at most 253 characters")),
            (&*wildcard(&format!("{rest}a")), Some("at most 216 characters behind the \"*.\"")),
            (&*format!("{long_label}a.example"), Some("1 to 63 characters")),
            ("", Some("1 to 63 characters")),
            ("app.example.com.", Some("1 to 63 characters")),
            (".example.com", Some("1 to 63 characters")),
            ("-a.example", Some("neither begin nor end")),
            ("a-.example", Some("neither begin nor end")),
            ("localhost", Some("at least 2 labels")),
            ("*.com", Some("at least 2 labels")),
            ("*", Some("as a whole first label")),
            ("a.*.example", Some("as a whole first label")),
            ("a*.example.com", Some("as a whole first label")),
            ("App.example.com", Some("in lower case")),
            ("büche.example", Some("punycode")),
            ("a_b.example", Some("[a-z0-9.-]")),
            ("a.example:443", Some("[a-z0-9.-]")),
            ("192.0.2.1", Some("IP address")),
            ("[::1]", Some("[a-z0-9.-]")),
            (&*format!("{LABEL}.example.com"), Some("must not begin with a UUID")),
        ] {
            let said = name.parse::<DomainName>().err().map(|error| error.to_string());
            let as_expected = match (&said, fault) {
                (None, None) => true,
                (Some(said), Some(fault)) => said.contains(fault),
                _ => false,
            };
            assert!(as_expected, "{name}: {said:?}");
        }
    }

    #[test]
    fn no_name_shadows_the_fleet() {
        for (name, shadows) in [
            ("microvms.example.com", true),
            ("a.microvms.example.com", true),
            ("*.microvms.example.com", true),
            ("*.a.microvms.example.com", true),
            ("*.example.com", true),
            ("example.com", false),
            ("*.com.example", false),
            ("xmicrovms.example.com", false),
            ("*.apps.example.com", false),
            ("app.example.com", false),
        ] {
            let name: DomainName = name.parse().unwrap();
            assert_eq!(name.shadows("microvms.example.com"), shadows, "{name}");
        }
    }

    #[test]
    fn samples_are_covered_and_wildcards_found() {
        let one: DomainName = "app.example.com".parse().unwrap();
        assert_eq!((one.sample().as_str(), one.wildcard()), ("app.example.com", None));
        let all: DomainName = "*.apps.example.com".parse().unwrap();
        assert_eq!(all.wildcard(), Some("apps.example.com"));
        assert_eq!(all.sample(), "00000000-0000-0000-0000-000000000000.apps.example.com");
        let name = format!("{}.apps.example.com", LABEL.to_uppercase());
        let (label, rest) = endpoint_label(&name).unwrap();
        assert_eq!((label.to_string().as_str(), rest), (LABEL, "apps.example.com"));
        assert_eq!(DomainName::text_of_wildcard(rest), all.as_str());
        assert!(endpoint_label(&name.replace('-', "")).is_none() && endpoint_label("app.example").is_none());
        assert!(is_within("A.Example", "example") && is_within("example", "example"));
        assert!(!is_within("aexample", "example") && !is_within("e", "example") && !is_within("", "example"));
    }
}
