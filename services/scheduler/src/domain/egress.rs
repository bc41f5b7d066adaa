//! What a microVM may reach, from the customer connectors it is launched with.
//!
//! A connector lets out what its tag `torpor:allow-cidrs` lists, or everything its protocol speaks when it
//! has none, except what `torpor:deny-cidrs` lists. Several connectors together let out what any of them
//! allows and none of them denies. When in doubt nothing is let out.
//!
//! Everywhere is said by an empty allow list and never by 0.0.0.0/0: on a host,
//! a list reaches private networks that its operator opened to lists.

use std::collections::BTreeMap;

use api::connector::v1::NetworkProtocol;
use api::hostagent::v1::EgressPolicy;
use ipnet::IpNet;
use model::Violations;

/// Tag with the destinations that are allowed.
pub const ALLOW: &str = "torpor:allow-cidrs";
/// Tag with the destinations that are denied.
pub const DENY: &str = "torpor:deny-cidrs";
/// Tags that begin so mean something to us; a slip of the pen must not open a network.
const RESERVED: &str = "torpor:";
const ALL_IPV4: &str = "0.0.0.0/0";
const ALL_IPV6: &str = "::/0";

/// Checks what the tags of a connector say about destinations.
pub fn check(tags: &BTreeMap<String, String>, protocol: NetworkProtocol, violations: &mut Violations) {
    for (key, value) in tags {
        let field = format!("tags.{key}");
        if !key.starts_with(RESERVED) {
            continue;
        }
        if key != ALLOW && key != DENY {
            violations.add(
                field,
                format!("keys that begin with '{RESERVED}' are reserved; known are {ALLOW} and {DENY}"),
            );
            continue;
        }
        match cidrs(value) {
            Err(message) => violations.add(field, message),
            Ok(list) => {
                let spoken = protocol == NetworkProtocol::DualStack || list.iter().all(is_ipv4);
                violations.check(
                    spoken || key == DENY,
                    field,
                    "lists IPv6, which needs NetworkProtocol DualStack",
                );
            }
        }
    }
}

/// The policy of connectors together: their tags and protocols. `internet` says
/// that the platform's connector to everywhere is among them.
pub fn policy<'a>(
    connectors: impl Iterator<Item = (&'a BTreeMap<String, String>, NetworkProtocol)>,
    internet: bool,
) -> EgressPolicy {
    let mut policy = EgressPolicy::default();
    let (mut everywhere, mut everywhere_ipv6) = (internet, internet);
    for (tags, protocol) in connectors {
        let lists = (
            tags.get(ALLOW).map(|text| cidrs(text)).transpose(),
            tags.get(DENY).map(|text| cidrs(text)).transpose(),
        );
        let (Ok(allow), Ok(deny)) = lists else {
            return nothing();
        };
        match allow {
            None => {
                everywhere = true;
                everywhere_ipv6 |= protocol == NetworkProtocol::DualStack;
            }
            Some(list) => {
                let spoken = |net: &IpNet| protocol == NetworkProtocol::DualStack || is_ipv4(net);
                for net in list.iter().filter(|net| spoken(net)) {
                    add(&mut policy.allow_cidrs, net.to_string());
                }
            }
        }
        for net in deny.unwrap_or_default() {
            add(&mut policy.deny_cidrs, net.to_string());
        }
    }
    match (everywhere, policy.allow_cidrs.is_empty()) {
        // An empty list means everywhere; it must not come to that by accident.
        (false, true) => nothing(),
        (true, _) => {
            policy.allow_cidrs.clear();
            if !everywhere_ipv6 {
                add(&mut policy.deny_cidrs, ALL_IPV6.to_owned());
            }
            policy
        }
        (false, false) => policy,
    }
}

fn nothing() -> EgressPolicy {
    EgressPolicy { allow_cidrs: Vec::new(), deny_cidrs: vec![ALL_IPV4.to_owned(), ALL_IPV6.to_owned()] }
}

fn add(list: &mut Vec<String>, cidr: String) {
    if !list.contains(&cidr) {
        list.push(cidr);
    }
}

fn is_ipv4(net: &IpNet) -> bool {
    matches!(net, IpNet::V4(_))
}

/// A list of CIDRs separated by spaces or '+': a tag's value has no comma.
fn cidrs(text: &str) -> Result<Vec<IpNet>, String> {
    let words = text.split(|c: char| c.is_whitespace() || c == '+');
    let nets = words.filter(|word| !word.is_empty()).map(|word| {
        let net: IpNet = word
            .parse()
            .map_err(|_| format!("'{word}' is not a CIDR, for example 10.0.0.0/8 or 2001:db8::/32"))?;
        if net.trunc() == net {
            Ok(net)
        } else {
            Err(format!("'{word}' has host bits; write {}", net.trunc()))
        }
    });
    let nets: Vec<IpNet> = nets.collect::<Result<_, _>>()?;
    if nets.is_empty() {
        return Err("must list at least one CIDR; leave the tag out for no rule".to_owned());
    }
    Ok(nets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use NetworkProtocol::{DualStack, Ipv4};
    use proptest::prelude::*;

    fn tags(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn lists_are_checked() {
        for (key, value, protocol, text) in [
            (ALLOW, "10.0.0.0/8 192.168.1.0/24", Ipv4, ""),
            (ALLOW, "10.0.0.0/8+1.1.1.1/32", Ipv4, ""),
            (ALLOW, "10.0.0.0/8  2001:db8::/32", DualStack, ""),
            (DENY, "::/0", Ipv4, ""),
            ("team", "anything", Ipv4, ""),
            (ALLOW, "", Ipv4, "at least one"),
            (ALLOW, " + ", Ipv4, "at least one"),
            (ALLOW, "10.0.0.0/33", Ipv4, "'10.0.0.0/33' is not a CIDR"),
            (ALLOW, "10.0.0.0", Ipv4, "is not a CIDR"),
            (ALLOW, "10.0.0.1/8", Ipv4, "write 10.0.0.0/8"),
            (ALLOW, "2001:db8::/32", Ipv4, "DualStack"),
            (DENY, "example.com", Ipv4, "is not a CIDR"),
            ("torpor:allow-cidr", "10.0.0.0/8", Ipv4, "reserved"),
        ] {
            let mut violations = Violations::default();
            check(&tags(&[(key, value)]), protocol, &mut violations);
            let found = violations.to_string();
            assert_eq!(found.is_empty(), text.is_empty(), "{key}={value}: {found}");
            assert!(found.contains(text), "{key}={value}: {found}");
        }
    }

    #[test]
    fn connectors_together() {
        let plain = tags(&[]);
        let ten = tags(&[(ALLOW, "10.0.0.0/8"), (DENY, "10.1.0.0/16")]);
        let both = tags(&[(ALLOW, "10.0.0.0/8 2001:db8::/32")]);
        let six = tags(&[(ALLOW, "2001:db8::/32")]);
        let broken = tags(&[(ALLOW, "x")]);
        type Case<'a> =
            (&'a [(&'a BTreeMap<String, String>, NetworkProtocol)], bool, &'a [&'a str], &'a [&'a str]);
        let cases: [Case<'_>; 12] = [
            (&[(&plain, DualStack)], false, &[], &[]),
            (&[(&plain, Ipv4)], false, &[], &["::/0"]),
            (&[(&plain, Ipv4), (&plain, DualStack)], false, &[], &[]),
            (&[(&plain, Ipv4)], true, &[], &[]),
            (&[(&ten, Ipv4)], false, &["10.0.0.0/8"], &["10.1.0.0/16"]),
            (&[(&both, DualStack)], false, &["10.0.0.0/8", "2001:db8::/32"], &[]),
            (&[(&both, Ipv4)], false, &["10.0.0.0/8"], &[]),
            (&[(&ten, Ipv4), (&both, DualStack)], false, &["10.0.0.0/8", "2001:db8::/32"], &["10.1.0.0/16"]),
            (&[(&ten, Ipv4)], true, &[], &["10.1.0.0/16"]),
            (&[(&ten, Ipv4), (&plain, DualStack)], false, &[], &["10.1.0.0/16"]),
            (&[(&six, Ipv4)], false, &[], &["0.0.0.0/0", "::/0"]),
            (&[(&broken, Ipv4)], true, &[], &["0.0.0.0/0", "::/0"]),
        ];
        for (number, (connectors, internet, allow, deny)) in cases.into_iter().enumerate() {
            let found = policy(connectors.iter().copied(), internet);
            assert_eq!(found.allow_cidrs, allow, "case {number}");
            assert_eq!(found.deny_cidrs, deny, "case {number}");
        }
    }

    proptest! {
        /// Whatever a tag says, only a connector without the tag opens everything.
        #[test]
        fn a_list_never_opens_everything(text in ".{0,60}|([0-9]{1,3}\\.0\\.0\\.0/[0-9]{1,2}[ +]?){0,4}", dual: bool) {
            let tags = tags(&[(ALLOW, &text)]);
            let protocol = if dual { DualStack } else { Ipv4 };
            let policy = policy(std::iter::once((&tags, protocol)), false);
            prop_assert!(!policy.allow_cidrs.is_empty() || policy == nothing(), "{policy:?}");
        }
    }
}
