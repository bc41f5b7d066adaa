//! Host names to microVMs.

use uuid::Uuid;

/// What a host name means to this edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The endpoint of a microVM, by its label.
    Endpoint(Uuid),
    Unknown,
}

/// Reads "<uuid>.<domain>", whatever its case, with or without a port and the
/// final dot of a full name. `domain` is lower-case and without dots at its ends.
pub fn target(host: &str, domain: &str) -> Target {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) => return Target::Unknown,
        None => host,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let label =
        name.split_once('.').filter(|(_, rest)| rest.eq_ignore_ascii_case(domain)).map(|(label, _)| label);
    label.and_then(label_id).map_or(Target::Unknown, Target::Endpoint)
}

/// A UUID in its one usual form; the parser alone would take others too.
fn label_id(label: &str) -> Option<Uuid> {
    const HYPHENATED: usize = 36;
    (label.len() == HYPHENATED).then(|| Uuid::try_parse(label).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LABEL: &str = "0b6e5e1e-1111-4222-8333-000000000001";

    #[test]
    fn names_mean_what_they_should() {
        let endpoint = Target::Endpoint(LABEL.parse().unwrap());
        for (host, expected) in [
            (format!("{LABEL}.microvms.localhost"), endpoint),
            (format!("{LABEL}.microvms.localhost:8443"), endpoint),
            (format!("{}.MicroVMs.LocalHost.", LABEL.to_uppercase()), endpoint),
            (format!("{LABEL}.microvms.localhost:"), Target::Unknown),
            (format!("{LABEL}.microvms.localhost:x"), Target::Unknown),
            (format!("{LABEL}.other.localhost"), Target::Unknown),
            (format!("x.{LABEL}.microvms.localhost"), Target::Unknown),
            (format!("{}.microvms.localhost", LABEL.replace('-', "")), Target::Unknown),
            (format!("{{{LABEL}}}.microvms.localhost"), Target::Unknown),
            ("microvms.localhost".to_owned(), Target::Unknown),
            (String::new(), Target::Unknown),
            ("[::1]:8443".to_owned(), Target::Unknown),
        ] {
            assert_eq!(target(&host, "microvms.localhost"), expected, "{host}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(host in "\\PC{0,80}") {
            let _ = target(&host, "microvms.localhost");
        }
    }
}
