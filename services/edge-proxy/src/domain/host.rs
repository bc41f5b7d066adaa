//! Host names to microVMs.

use model::domains::endpoint_label;
use uuid::Uuid;

/// The port that a host without one means.
const HTTPS: u16 = 443;

/// The label of "<label>.<domain>", whatever its case, with or without a port and the
/// final dot of a full name. `domain` is lower-case and without dots at its ends.
pub fn label(host: &str, domain: &str) -> Option<Uuid> {
    let (label, rest) = endpoint_label(name(host)?)?;
    rest.eq_ignore_ascii_case(domain).then_some(label)
}

/// The name in a host, without its port and its final dot.
pub fn name(host: &str) -> Option<&str> {
    parts(host).map(|(name, _)| name)
}

/// True when both are the same host and port, however they are spelt.
pub fn same(one: &str, other: &str) -> bool {
    match (parts(one), parts(other)) {
        (Some((name, port)), Some((other_name, other_port))) => {
            name.eq_ignore_ascii_case(other_name) && port.unwrap_or(HTTPS) == other_port.unwrap_or(HTTPS)
        }
        _ => one == other,
    }
}

/// True when a request for `host` may come over a connection to `server_name`, which is what TLS calls a host: no port.
pub fn is_directed(host: &str, server_name: &str) -> bool {
    let server_name = server_name.strip_suffix('.').unwrap_or(server_name);
    parts(host).is_some_and(|(name, _)| name.eq_ignore_ascii_case(server_name))
}

/// Name without its final dot, and port; `None` when the port is none.
fn parts(host: &str) -> Option<(&str, Option<u16>)> {
    let (name, port) = match host.rsplit_once(':') {
        // An address of IPv6, and no port.
        Some(_) if host.ends_with(']') => (host, None),
        Some((name, port)) => {
            let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
            (name, Some(port.parse().ok().filter(|_| digits)?))
        }
        None => (host, None),
    };
    Some((name.strip_suffix('.').unwrap_or(name), port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LABEL: &str = "0b6e5e1e-1111-4222-8333-000000000001";

    #[test]
    fn names_mean_what_they_should() {
        let endpoint = Some(LABEL.parse().unwrap());
        for (host, expected) in [
            (format!("{LABEL}.microvms.localhost"), endpoint),
            (format!("{LABEL}.microvms.localhost:8443"), endpoint),
            (format!("{}.MicroVMs.LocalHost.", LABEL.to_uppercase()), endpoint),
            (format!("{LABEL}.microvms.localhost:"), None),
            (format!("{LABEL}.microvms.localhost:x"), None),
            (format!("{LABEL}.other.localhost"), None),
            (format!("x.{LABEL}.microvms.localhost"), None),
            (format!("{}.microvms.localhost", LABEL.replace('-', "")), None),
            (format!("{{{LABEL}}}.microvms.localhost"), None),
            ("microvms.localhost".to_owned(), None),
            (String::new(), None),
            ("[::1]:8443".to_owned(), None),
        ] {
            assert_eq!(label(&host, "microvms.localhost"), expected, "{host}");
        }
    }

    #[test]
    fn names_are_the_same_however_they_are_spelt() {
        for (one, other, same_host, directed) in [
            ("a.example", "a.example", true, true),
            ("A.Example.", "a.example", true, true),
            ("a.example:443", "a.example", true, true),
            ("a.example:8443", "a.example", false, true),
            ("a.example", "b.example", false, false),
            ("a.example:x", "a.example", false, false),
            ("a.example:99999", "a.example", false, false),
            ("", "a.example", false, false),
        ] {
            assert_eq!(same(one, other), same_host, "{one} {other}");
            assert_eq!(is_directed(one, other), directed, "{one} {other}");
        }
        assert!(is_directed("a.example", "a.example."));
        assert!(same("[::1]:443", "[::1]"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(host in "\\PC{0,80}") {
            let _ = label(&host, "microvms.localhost");
        }
    }
}
