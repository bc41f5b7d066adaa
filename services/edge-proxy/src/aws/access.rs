//! What a request needs to be allowed: its own action on its resource, and the
//! right to hand on each role and connector that it names. Pure.

use aws_model::arn::ManagedConnector;
use aws_model::{ErrorClass, Operation, Rejection};
use serde_json::{Map, Value};

use crate::aws::aliases::Aliases;
use crate::aws::arn::{Fleet, Kind, clip};
use crate::aws::keys::AccessKey;

const PASS_ROLE: &str = "iam:PassRole";
const PASS_CONNECTOR: &str = "lambda:PassNetworkConnector";
const UPDATE_CONNECTOR: &str = "lambda:UpdateNetworkConnector";
/// Tags of a connector that begin so decide what its microVMs reach: to change
/// them is to change the connector.
const RULE_TAG_PREFIX: &str = "torpor:";
/// Members that carry the ARN of a role.
const ROLES: [&str; 3] = ["buildRoleArn", "executionRoleArn", "OperatorRole"];
/// Members that carry connectors, and the connector of a request without them.
const INGRESS: (&str, ManagedConnector) = ("ingressNetworkConnectors", ManagedConnector::HttpIngress);
const EGRESS: (&str, ManagedConnector) = ("egressNetworkConnectors", ManagedConnector::InternetEgress);

/// Most connectors of a list that are asked about. A request may have ten; this
/// comes before that is checked.
const CONNECTORS_MAX: usize = 64;
/// Longest name of a resource in an answer, in bytes.
const ECHO_BYTES_MAX: usize = 2048;

/// The resource that a request is about: an ARN, or "*" for listings. Members may
/// be incomplete or break constraints.
#[must_use]
pub fn resource(operation: &Operation, members: &Map<String, Value>, fleet: &Fleet) -> String {
    let text = |name: &str| members.get(name).and_then(Value::as_str);
    let named = match operation.name {
        "CreateMicrovmImage" => text("name").map(|name| fleet.arn(Kind::Image, name)),
        // Its id is not known before it is made.
        "CreateNetworkConnector" => Some(fleet.arn(Kind::Connector, "*")),
        _ => text("imageIdentifier")
            .map(|image| fleet.arn(Kind::Image, image))
            .or_else(|| text("microvmIdentifier").map(|id| fleet.arn(Kind::Microvm, id)))
            .or_else(|| text("Identifier").map(|connector| fleet.arn(Kind::Connector, connector)))
            .or_else(|| text("Resource").map(str::to_owned)),
    };
    named.unwrap_or_else(|| "*".to_owned())
}

/// The lists of connectors that an operation hands on.
fn lists(operation: &Operation) -> &'static [(&'static str, ManagedConnector)] {
    match operation.name {
        "RunMicrovm" => &[INGRESS, EGRESS],
        "CreateMicrovmImage" | "UpdateMicrovmImage" => &[EGRESS],
        _ => &[],
    }
}

fn listed<'a>(members: &'a Map<String, Value>, name: &str) -> impl Iterator<Item = &'a str> {
    let list = members.get(name).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str)
}

/// The connectors that a request hands on, as it names them.
pub fn connectors<'a>(
    operation: &Operation,
    members: &'a Map<String, Value>,
) -> impl Iterator<Item = &'a str> {
    let lists = lists(operation).iter();
    lists.flat_map(|(name, _)| listed(members, name).take(CONNECTORS_MAX))
}

/// Whether a request changes the tags that are a connector's rules.
fn changes_rules(members: &Map<String, Value>, resource: &str) -> bool {
    let set = members.get("Tags").and_then(Value::as_object);
    let mut keys =
        set.into_iter().flat_map(|tags| tags.keys().map(String::as_str)).chain(listed(members, "TagKeys"));
    resource.contains(":network-connector:") && keys.any(|key| key.starts_with(RULE_TAG_PREFIX))
}

/// A right that a key does not have.
#[derive(Debug, PartialEq, Eq)]
pub struct Missing {
    action: String,
    resource: String,
}

impl Missing {
    fn new(action: &str, resource: &str) -> Self {
        Self { action: action.to_owned(), resource: clip(resource, ECHO_BYTES_MAX).to_owned() }
    }

    /// What the key's holder is told.
    #[must_use]
    pub fn rejection(&self, key: &AccessKey) -> Rejection {
        let Self { action, resource } = self;
        let AccessKey { account, user, .. } = key;
        let message = format!(
            "User: arn:aws:iam::{account}:user/{user} is not authorized to perform: {action} on resource: {resource}"
        );
        Rejection::new(ErrorClass::AccessDenied, message)
    }
}

/// "iam:PassRole on arn:...", for records.
impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} on {}", self.action, self.resource)
    }
}

/// Checks that a key may do what a request asks for. `aliases` are the further
/// names of what the request names.
///
/// # Errors
/// 403 for a resource of somebody else and for what the key's policy does not
/// permit.
pub fn check(
    operation: &Operation,
    members: &Map<String, Value>,
    resource: &str,
    key: &AccessKey,
    fleet: &Fleet,
    aliases: &Aliases,
) -> Result<(), Missing> {
    let managed = operation.name == "ListManagedMicrovmImageVersions";
    if fleet.is_foreign(resource, managed) {
        return Err(Missing::new(operation.action, resource));
    }
    let Some(policy) = &key.policy else { return Ok(()) };
    let ask = |action: &str, resource: &str| {
        let others = aliases.of(resource).iter().map(String::as_str);
        let names: Vec<&str> = std::iter::once(resource).chain(others).collect();
        let permitted = policy.permits(action, &names);
        permitted.then_some(()).ok_or_else(|| Missing::new(action, resource))
    };
    ask(operation.action, resource)?;
    for role in ROLES.iter().filter_map(|name| members.get(*name)?.as_str()) {
        ask(PASS_ROLE, role)?;
    }
    if changes_rules(members, resource) {
        ask(UPDATE_CONNECTOR, resource)?;
    }
    for (name, default) in lists(operation) {
        let given: Vec<&str> = listed(members, name).collect();
        if given.is_empty() {
            ask(PASS_CONNECTOR, &default.arn(&fleet.region))?;
        }
        for connector in given.iter().take(CONNECTORS_MAX) {
            ask(PASS_CONNECTOR, connector)?;
        }
        if given.len() > CONNECTORS_MAX {
            return Err(Missing::new(PASS_CONNECTOR, "*"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use api::access::v1 as wire;
    use serde_json::json;

    use super::*;

    const ACCOUNT: &str = "000000000000";
    const IMAGE: &str = "arn:aws:lambda:us-east-1:000000000000:microvm-image:team-a";

    fn fleet() -> Fleet {
        Fleet { region: "us-east-1".into(), account: ACCOUNT.into() }
    }

    fn key(allowed: Option<&[(&str, &str)]>) -> AccessKey {
        let statements = |allowed: &[(&str, &str)]| {
            let one = |(action, resource): &(&str, &str)| wire::Statement {
                effect: wire::Effect::Allow.into(),
                actions: vec![(*action).to_owned()],
                resources: vec![(*resource).to_owned()],
            };
            allowed.iter().map(one).collect()
        };
        let stored = wire::StoredAccessKey {
            access_key: Some(wire::AccessKey {
                access_key_id: "AKIAONE".into(),
                account_id: ACCOUNT.into(),
                policy: allowed.map(|allowed| wire::Policy { statements: statements(allowed) }),
                ..wire::AccessKey::default()
            }),
            secret_access_key: "secret".into(),
        };
        AccessKey::new(stored, ACCOUNT).unwrap()
    }

    /// The connector "office" has the id "nc-1"; the microVM is of an image.
    fn aliases() -> Aliases {
        let mut aliases = Aliases::default();
        let office = fleet().arn(Kind::Connector, "office");
        aliases.add(&office, [fleet().arn(Kind::Connector, "nc-1")]);
        aliases.add(&fleet().arn(Kind::Microvm, "microvm-2"), [IMAGE.to_owned()]);
        aliases
    }

    /// What is refused of a request: its first missing permission.
    fn refused(operation: &str, members: Value, allowed: Option<&[(&str, &str)]>) -> Option<String> {
        let operation = aws_model::operation(operation).unwrap();
        let Value::Object(members) = members else { panic!("members are an object") };
        let resource = resource(operation, &members, &fleet());
        let key = key(allowed);
        let missing = check(operation, &members, &resource, &key, &fleet(), &aliases()).err()?;
        let rejection = missing.rejection(&key);
        assert_eq!(rejection.class, ErrorClass::AccessDenied);
        let message = rejection.message.unwrap();
        let said = message
            .strip_prefix("User: arn:aws:iam::000000000000:user/AKIAONE is not authorized to perform: ");
        Some(said.unwrap().to_owned())
    }

    #[test]
    fn a_launch_needs_everything_it_hands_on() {
        let role = "arn:aws:iam::000000000000:role/app";
        let own = "arn:aws:lambda:us-east-1:000000000000:network-connector:nc-1";
        let managed = |name: &str| {
            format!("arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:{name}")
        };
        let request = json!({"imageIdentifier": IMAGE, "executionRoleArn": role});
        let run = ("lambda:RunMicrovm", "*:microvm-image:team-*");
        let pass = ("iam:PassRole", role);
        let connectors = ("lambda:PassNetworkConnector", "*");
        for (allowed, missing) in [
            (None, None),
            (Some(&[run, pass, connectors][..]), None),
            (Some(&[pass, connectors]), Some(format!("lambda:RunMicrovm on resource: {IMAGE}"))),
            (Some(&[run, connectors]), Some(format!("iam:PassRole on resource: {role}"))),
            (
                Some(&[run, pass]),
                Some(format!("lambda:PassNetworkConnector on resource: {}", managed("HTTP_INGRESS"))),
            ),
            (
                Some(&[run, pass, ("lambda:PassNetworkConnector", "*:aws-network-connector:HTTP_INGRESS")]),
                Some(format!("lambda:PassNetworkConnector on resource: {}", managed("INTERNET_EGRESS"))),
            ),
        ] {
            assert_eq!(refused("RunMicrovm", request.clone(), allowed), missing);
        }
        let chosen = json!({
            "imageIdentifier": IMAGE,
            "ingressNetworkConnectors": [managed("HTTP_INGRESS")],
            "egressNetworkConnectors": [own],
        });
        let only_managed = [run, ("lambda:PassNetworkConnector", "*:aws:network-connector:*")];
        assert_eq!(
            refused("RunMicrovm", chosen, Some(&only_managed)),
            Some(format!("lambda:PassNetworkConnector on resource: {own}"))
        );
    }

    #[test]
    fn what_is_asked_about_is_bounded() {
        let connectors = |count: usize| json!({"imageIdentifier": IMAGE, "egressNetworkConnectors": vec!["c"; count], "executionRoleArn": null});
        let everything = Some(&[("*", "*")][..]);
        assert_eq!(refused("RunMicrovm", connectors(CONNECTORS_MAX), everything), None);
        assert!(refused("RunMicrovm", connectors(CONNECTORS_MAX + 1), everything).is_some());
        let long = json!({"name": "x".repeat(1 << 20)});
        let told = refused("CreateMicrovmImage", long, everything).unwrap();
        assert!(told.len() < 2 * ECHO_BYTES_MAX);
    }

    #[test]
    fn every_kind_of_resource_is_found() {
        let everything = |resource| Some(vec![("lambda:*", resource)]);
        for (operation, members, resource) in [
            ("CreateMicrovmImage", json!({"name": "app"}), "*:microvm-image:app"),
            ("GetMicrovmImage", json!({"imageIdentifier": IMAGE}), IMAGE),
            ("GetMicrovmImage", json!({"imageIdentifier": "team-a"}), IMAGE),
            (
                "GetMicrovm",
                json!({"microvmIdentifier": "microvm-1"}),
                "arn:aws:lambda:us-east-1:000000000000:microvm:microvm-1",
            ),
            ("ListTags", json!({"Resource": IMAGE}), IMAGE),
            ("GetNetworkConnector", json!({"Identifier": "nc-1"}), "*:network-connector:nc-1"),
            ("CreateNetworkConnector", json!({"Name": "office"}), "*:network-connector:*"),
            ("ListMicrovmImages", json!({}), "*"),
            ("ListMicrovms", json!({"imageIdentifier": IMAGE}), IMAGE),
        ] {
            let allowed = everything(resource).map(|mut allowed| {
                allowed.push(("lambda:PassNetworkConnector", "*"));
                allowed
            });
            assert_eq!(refused(operation, members.clone(), allowed.as_deref()), None, "{operation}");
            let elsewhere = [("lambda:*", "arn:aws:lambda:us-east-1:000000000000:other:x")];
            assert!(refused(operation, members, Some(&elsewhere)).is_some(), "{operation}");
        }
    }

    #[test]
    fn a_microvm_is_under_the_policy_of_its_image() {
        let allowed = Some(&[("lambda:*", "*:microvm-image:team-*")][..]);
        for (id, permitted) in [("microvm-2", true), ("microvm-1", false)] {
            let refused = refused("TerminateMicrovm", json!({"microvmIdentifier": id}), allowed);
            assert_eq!(refused.is_none(), permitted, "{id}");
        }
    }

    #[test]
    fn rules_of_a_connector_are_not_mere_tags() {
        let office = fleet().arn(Kind::Connector, "office");
        let tagging = Some(&[("lambda:*Tag*", "*"), ("lambda:UntagResource", "*")][..]);
        let untag = |key: &str| json!({"Resource": office, "TagKeys": [key]});
        let tag = |key: &str| json!({"Resource": office, "Tags": {key: "10.0.0.0/8"}});
        for (operation, members, permitted) in [
            ("UntagResource", untag("team"), true),
            ("UntagResource", untag("torpor:allow-cidrs"), false),
            ("TagResource", tag("team"), true),
            ("TagResource", tag("torpor:deny-cidrs"), false),
            ("TagResource", json!({"Resource": IMAGE, "Tags": {"torpor:x": "y"}}), true),
        ] {
            let missing = refused(operation, members.clone(), tagging);
            assert_eq!(missing.is_none(), permitted, "{operation} {members}: {missing:?}");
        }
        let everything = Some(&[("lambda:*", "*:nc-1")][..]);
        assert_eq!(refused("TagResource", tag("torpor:deny-cidrs"), everything), None);
    }

    #[test]
    fn foreign_resources_are_denied_to_everybody() {
        let foreign = "arn:aws:lambda:us-east-1:111111111111:microvm-image:app";
        for (operation, members) in [
            ("GetMicrovmImage", json!({"imageIdentifier": foreign})),
            ("RunMicrovm", json!({"imageIdentifier": foreign})),
            ("ListTags", json!({"Resource": foreign})),
            (
                "GetMicrovmImage",
                json!({"imageIdentifier": "arn:aws:lambda:us-east-1:000000000000:microvm-image/app"}),
            ),
        ] {
            assert!(refused(operation, members, None).is_some(), "{operation}");
        }
        let managed = json!({"imageIdentifier": "arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1"});
        assert_eq!(refused("ListManagedMicrovmImageVersions", managed, None), None);
    }
}
