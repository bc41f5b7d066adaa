//! What a microVM's connectors mean on this host.

use api::hostagent::v1::MicrovmSpec;

use crate::domain::Failure;

/// What its egress policy allows or, without one, its managed egress connectors.
///
/// # Errors
/// [`Failure::Invalid`] naming the part of the policy that cannot be used.
pub fn egress(spec: &MicrovmSpec) -> Result<slot::Egress, Failure> {
    if let Some(policy) = &spec.egress_policy {
        return slot::Policy::parse(&policy.allow_cidrs, &policy.deny_cidrs)
            .map(slot::Egress::Policy)
            .map_err(|error| {
                Failure::Invalid(vec![(format!("spec.egress_policy.{}", error.field), error.message)])
            });
    }
    let connectors = &spec.egress_network_connectors;
    let internet = |arn: &String| connector_name(arn) == "INTERNET_EGRESS";
    Ok(if connectors.is_empty() || connectors.iter().any(internet) {
        slot::Egress::Internet
    } else {
        slot::Egress::None
    })
}

/// Whether its ingress connectors close the endpoint.
#[must_use]
pub fn no_ingress(spec: &MicrovmSpec) -> bool {
    spec.ingress_network_connectors.iter().any(|arn| connector_name(arn) == "NO_INGRESS")
}

/// Last part of a connector's ARN.
fn connector_name(arn: &str) -> &str {
    arn.rsplit([':', '/']).next().unwrap_or(arn)
}

#[cfg(test)]
mod tests {
    use api::hostagent::v1::EgressPolicy;

    use super::*;

    fn spec(ingress: &[&str], egress: &[&str]) -> MicrovmSpec {
        let arn = |name: &&str| {
            format!("arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:{name}")
        };
        MicrovmSpec {
            ingress_network_connectors: ingress.iter().map(arn).collect(),
            egress_network_connectors: egress.iter().map(arn).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn managed_connectors_decide_what_is_open() {
        for (connectors, expected) in [
            (&[][..], slot::Egress::Internet),
            (&["INTERNET_EGRESS"], slot::Egress::Internet),
            (&["NO_EGRESS"], slot::Egress::None),
        ] {
            assert_eq!(egress(&spec(&[], connectors)), Ok(expected), "{connectors:?}");
        }
        assert!(!no_ingress(&spec(&[], &[])));
        assert!(!no_ingress(&spec(&["HTTP_INGRESS"], &[])));
        assert!(no_ingress(&spec(&["NO_INGRESS"], &[])));
    }

    #[test]
    fn a_policy_goes_before_managed_connectors() {
        for connectors in [&[][..], &["INTERNET_EGRESS"], &["NO_EGRESS"], &["of-a-customer"]] {
            let mut spec = spec(&[], connectors);
            let mut policy = EgressPolicy {
                allow_cidrs: vec!["10.0.0.0/8".to_owned()],
                deny_cidrs: vec!["10.1.0.0/16".to_owned()],
            };
            let expected = slot::Policy::parse(&policy.allow_cidrs, &policy.deny_cidrs).expect("well-formed");
            spec.egress_policy = Some(policy.clone());
            assert_eq!(egress(&spec), Ok(slot::Egress::Policy(expected)), "{connectors:?}");
            policy.deny_cidrs.push("10.1.0.0".to_owned());
            spec.egress_policy = Some(policy);
            let Err(Failure::Invalid(violations)) = egress(&spec) else {
                panic!("a network without a length was taken");
            };
            assert_eq!(violations[0].0, "spec.egress_policy.deny_cidrs[1]");
        }
    }
}
