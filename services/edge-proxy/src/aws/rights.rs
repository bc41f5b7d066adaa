//! What a request needs to be allowed: its own action on its resource, the right to hand on each role and connector
//! that it names, and the right to read the artifact, which is fetched for it with credentials that are not its caller's. Which
//! these are is in the operations' table.

pub(crate) mod aliases;
pub(crate) mod policy;

use aws_model::{ErrorClass, Members, Operation, Rejection};
use model::{ConnectorArn, ManagedConnector};

use self::aliases::Aliases;
use crate::aws::access_keys::AccessKey;
use crate::aws::account::{Account, Kind, clip};

const PASS_ROLE: &str = "iam:PassRole";
const PASS_CONNECTOR: &str = "lambda:PassNetworkConnector";
const GET_OBJECT: &str = "s3:GetObject";
const UPDATE_CONNECTOR: &str = "lambda:UpdateNetworkConnector";
/// Tags of a connector that begin so decide what its microVMs reach: to change them is to change the connector.
const RULE_TAG_PREFIX: &str = "torpor:";

/// Most connectors of a list that are asked about. A request may have ten; this comes before that is checked.
const CONNECTORS_MAX: usize = 64;
/// Longest name of a resource in an answer, in bytes.
const ECHO_BYTES_MAX: usize = 2048;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    Everything,
    NewImage,
    Image,
    /// An image that may also be the platform's own.
    ManagedImage,
    Microvm,
    /// A connector's id is not known before it is made.
    NewConnector,
    Connector,
    Tagged,
}

impl Subject {
    /// The resource as an ARN, or "*". `member` gives the text of a member; any may be missing or break its constraints.
    pub(crate) fn resource<'a>(self, member: impl Fn(&str) -> Option<&'a str>, account: &Account) -> String {
        let named = |name, kind| member(name).map(|identifier| account.arn(kind, identifier));
        let resource = match self {
            Self::Everything => None,
            Self::NewImage => named("name", Kind::Image),
            Self::Image | Self::ManagedImage => named("imageIdentifier", Kind::Image),
            Self::Microvm => named("microvmIdentifier", Kind::Microvm),
            Self::NewConnector => Some(account.arn(Kind::Connector, "*")),
            Self::Connector => named("Identifier", Kind::Connector),
            Self::Tagged => member("Resource").map(str::to_owned),
        };
        resource.unwrap_or_else(|| "*".to_owned())
    }
}

/// What the requests of an operation need to be allowed.
pub(crate) struct Needs {
    pub subject: Subject,
    /// What they hand on, each with a right of its own.
    pub passes: &'static [Pass],
}

/// What an operation hands on, or changes besides its subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    BuildRole,
    ExecutionRole,
    OperatorRole,
    /// The object in S3 that an image is built from.
    Artifact,
    /// The ingress connectors, or the default.
    Ingress,
    /// The egress connectors, or the default.
    Egress,
    /// The tags that are a connector's rules.
    RuleTags,
}

impl Pass {
    /// The list of connectors that is handed on, and the connector of a request without it.
    fn connectors(self) -> Option<(&'static str, ManagedConnector)> {
        match self {
            Self::Ingress => Some(("ingressNetworkConnectors", ManagedConnector::HttpIngress)),
            Self::Egress => Some(("egressNetworkConnectors", ManagedConnector::InternetEgress)),
            Self::BuildRole | Self::ExecutionRole | Self::OperatorRole | Self::Artifact | Self::RuleTags => {
                None
            }
        }
    }

    /// Asks for every right that handing it on takes.
    fn ask(
        self,
        members: Members<'_>,
        resource: &str,
        account: &Account,
        ask: &impl Fn(&str, &str) -> Result<(), Missing>,
    ) -> Result<(), Missing> {
        let role = |name| members.text(name).map_or(Ok(()), |role| ask(PASS_ROLE, role));
        match self {
            Self::BuildRole => role("buildRoleArn"),
            Self::ExecutionRole => role("executionRoleArn"),
            Self::OperatorRole => role("OperatorRole"),
            Self::Artifact => {
                let uri = members.structure("codeArtifact").and_then(|artifact| artifact.text("uri"));
                // One of another form is refused as such.
                let object = uri.and_then(|uri| uri.strip_prefix("s3://"));
                object.map_or(Ok(()), |object| ask(GET_OBJECT, &format!("arn:aws:s3:::{object}")))
            }
            Self::RuleTags if changes_rules(members, resource) => ask(UPDATE_CONNECTOR, resource),
            Self::RuleTags => Ok(()),
            Self::Ingress | Self::Egress => {
                let Some((name, default)) = self.connectors() else { return Ok(()) };
                let given: Vec<&str> = members.texts(name).collect();
                if given.is_empty() {
                    let default = ConnectorArn::managed(&account.region, default);
                    ask(PASS_CONNECTOR, &default.to_string())?;
                }
                given.iter().take(CONNECTORS_MAX).try_for_each(|connector| ask(PASS_CONNECTOR, connector))?;
                if given.len() > CONNECTORS_MAX { Err(Missing::new(PASS_CONNECTOR, "*")) } else { Ok(()) }
            }
        }
    }
}

/// The connectors that a request hands on, as it names them.
fn connectors<'a>(passes: &[Pass], members: Members<'a>) -> impl Iterator<Item = &'a str> {
    let lists = passes.iter().filter_map(|pass| pass.connectors());
    lists.flat_map(move |(name, _)| members.texts(name).take(CONNECTORS_MAX))
}

/// Whether a request changes the tags that are a connector's rules.
fn changes_rules(members: Members<'_>, resource: &str) -> bool {
    let set = members.structure("Tags").unwrap_or_default().iter().map(|(key, _)| key.as_str());
    let mut keys = set.chain(members.texts("TagKeys"));
    resource.contains(":network-connector:") && keys.any(|key| key.starts_with(RULE_TAG_PREFIX))
}

/// A right that a key does not have.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Missing {
    action: String,
    resource: String,
}

impl Missing {
    fn new(action: &str, resource: &str) -> Self {
        Self { action: action.to_owned(), resource: clip(resource, ECHO_BYTES_MAX).to_owned() }
    }

    /// What the key's holder is told.
    pub(crate) fn rejection(&self, key: &AccessKey) -> Rejection {
        let Self { action, resource } = self;
        let user = key.arn();
        let message = format!("User: {user} is not authorized to perform: {action} on resource: {resource}");
        Rejection::new(ErrorClass::AccessDenied, message)
    }
}

/// "iam:PassRole on arn:...", for records.
impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} on {}", self.action, self.resource)
    }
}

/// What a request asks for. Its members may be incomplete or break their constraints.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub operation: &'static Operation,
    pub needs: &'a Needs,
    pub members: Members<'a>,
    pub resource: &'a str,
}

/// Checks that a key may do what a request asks for. `aliases` are the further names of what the request names.
pub(crate) fn check(
    asked: Asked<'_>,
    key: &AccessKey,
    account: &Account,
    aliases: &Aliases,
) -> Result<(), Missing> {
    let Asked { operation, needs, members, resource } = asked;
    if account.is_foreign(resource, needs.subject == Subject::ManagedImage) {
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
    needs.passes.iter().try_for_each(|pass| pass.ask(members, resource, account, &ask))
}

#[cfg(test)]
mod tests {
    use api::access::v1 as wire;
    use aws_model::OperationName::{self, *};
    use serde_json::{Value, json};

    use super::*;
    use crate::aws::operations::row;

    const ACCOUNT: &str = "000000000000";
    const IMAGE: &str = "arn:aws:lambda:us-east-1:000000000000:microvm-image:team-a";

    fn account() -> Account {
        Account { region: "us-east-1".into(), account: ACCOUNT.into() }
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
        let office = account().arn(Kind::Connector, "office");
        aliases.add(&office, [account().arn(Kind::Connector, "nc-1")]);
        aliases.add(&account().arn(Kind::Microvm, "microvm-2"), [IMAGE.to_owned()]);
        aliases
    }

    /// What is refused of a request: its first missing permission.
    fn refused(name: OperationName, members: Value, allowed: Option<&[(&str, &str)]>) -> Option<String> {
        let (operation, needs) = (aws_model::operation(name), row(name).needs);
        let Value::Object(members) = members else { panic!("members are an object") };
        let members = Members::from(&members);
        let resource = needs.subject.resource(|name| members.text(name), &account());
        let asked = Asked { operation, needs: &needs, members, resource: &resource };
        let key = key(allowed);
        let missing = check(asked, &key, &account(), &aliases()).err()?;
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
            assert_eq!(refused(RunMicrovm, request.clone(), allowed), missing);
        }
        let chosen = json!({
            "imageIdentifier": IMAGE,
            "ingressNetworkConnectors": [managed("HTTP_INGRESS")],
            "egressNetworkConnectors": [own],
        });
        let only_managed = [run, ("lambda:PassNetworkConnector", "*:aws:network-connector:*")];
        assert_eq!(
            refused(RunMicrovm, chosen, Some(&only_managed)),
            Some(format!("lambda:PassNetworkConnector on resource: {own}"))
        );
    }

    #[test]
    fn what_is_asked_about_is_bounded() {
        let connectors = |count: usize| json!({"imageIdentifier": IMAGE, "egressNetworkConnectors": vec!["c"; count], "executionRoleArn": null});
        let everything = Some(&[("*", "*")][..]);
        assert_eq!(refused(RunMicrovm, connectors(CONNECTORS_MAX), everything), None);
        assert!(refused(RunMicrovm, connectors(CONNECTORS_MAX + 1), everything).is_some());
        let long = json!({"name": "x".repeat(1 << 20)});
        let told = refused(CreateMicrovmImage, long, everything).unwrap();
        assert!(told.len() < 2 * ECHO_BYTES_MAX);
    }

    #[test]
    fn an_image_is_built_from_what_its_caller_may_read() {
        let own = [("lambda:*", "*"), ("s3:GetObject", "arn:aws:s3:::artifacts/team-a/*")];
        for operation in [CreateMicrovmImage, UpdateMicrovmImage] {
            let request =
                |uri: &str| json!({"name": "app", "imageIdentifier": "app", "codeArtifact": {"uri": uri}});
            assert_eq!(refused(operation, request("s3://artifacts/team-a/app.zip"), Some(&own)), None);
            let told = refused(operation, request("s3://artifacts/team-b/app.zip"), Some(&own));
            assert_eq!(
                told.as_deref(),
                Some("s3:GetObject on resource: arn:aws:s3:::artifacts/team-b/app.zip")
            );
            assert_eq!(
                refused(operation, request("s3://artifacts/team-b/app.zip"), None),
                None,
                "no policy, no limit"
            );
            // What is no address in S3 is for the validation to refuse.
            assert_eq!(refused(operation, request("https://elsewhere"), Some(&own)), None);
        }
    }

    #[test]
    fn every_kind_of_resource_is_found() {
        let everything = |resource| Some(vec![("lambda:*", resource)]);
        for (operation, members, resource) in [
            (CreateMicrovmImage, json!({"name": "app"}), "*:microvm-image:app"),
            (GetMicrovmImage, json!({"imageIdentifier": IMAGE}), IMAGE),
            (GetMicrovmImage, json!({"imageIdentifier": "team-a"}), IMAGE),
            (
                GetMicrovm,
                json!({"microvmIdentifier": "microvm-1"}),
                "arn:aws:lambda:us-east-1:000000000000:microvm:microvm-1",
            ),
            (ListTags, json!({"Resource": IMAGE}), IMAGE),
            (GetNetworkConnector, json!({"Identifier": "nc-1"}), "*:network-connector:nc-1"),
            (CreateNetworkConnector, json!({"Name": "office"}), "*:network-connector:*"),
            (ListMicrovmImages, json!({}), "*"),
            (ListMicrovms, json!({"imageIdentifier": IMAGE}), IMAGE),
        ] {
            let allowed = everything(resource).map(|mut allowed| {
                allowed.push(("lambda:PassNetworkConnector", "*"));
                allowed
            });
            assert_eq!(refused(operation, members.clone(), allowed.as_deref()), None, "{operation:?}");
            let elsewhere = [("lambda:*", "arn:aws:lambda:us-east-1:000000000000:other:x")];
            assert!(refused(operation, members, Some(&elsewhere)).is_some(), "{operation:?}");
        }
    }

    #[test]
    fn a_microvm_is_under_the_policy_of_its_image() {
        let allowed = Some(&[("lambda:*", "*:microvm-image:team-*")][..]);
        for (id, permitted) in [("microvm-2", true), ("microvm-1", false)] {
            let refused = refused(TerminateMicrovm, json!({"microvmIdentifier": id}), allowed);
            assert_eq!(refused.is_none(), permitted, "{id}");
        }
    }

    #[test]
    fn rules_of_a_connector_are_not_mere_tags() {
        let office = account().arn(Kind::Connector, "office");
        let tagging = Some(&[("lambda:*Tag*", "*"), ("lambda:UntagResource", "*")][..]);
        let untag = |key: &str| json!({"Resource": office, "TagKeys": [key]});
        let tag = |key: &str| json!({"Resource": office, "Tags": {key: "10.0.0.0/8"}});
        for (operation, members, permitted) in [
            (UntagResource, untag("team"), true),
            (UntagResource, untag("torpor:allow-cidrs"), false),
            (TagResource, tag("team"), true),
            (TagResource, tag("torpor:deny-cidrs"), false),
            (TagResource, json!({"Resource": IMAGE, "Tags": {"torpor:x": "y"}}), true),
        ] {
            let missing = refused(operation, members.clone(), tagging);
            assert_eq!(missing.is_none(), permitted, "{operation:?} {members}: {missing:?}");
        }
        let everything = Some(&[("lambda:*", "*:nc-1")][..]);
        assert_eq!(refused(TagResource, tag("torpor:deny-cidrs"), everything), None);
    }

    #[test]
    fn foreign_resources_are_denied_to_everybody() {
        let foreign = "arn:aws:lambda:us-east-1:111111111111:microvm-image:app";
        for (operation, members) in [
            (GetMicrovmImage, json!({"imageIdentifier": foreign})),
            (RunMicrovm, json!({"imageIdentifier": foreign})),
            (ListTags, json!({"Resource": foreign})),
            (
                GetMicrovmImage,
                json!({"imageIdentifier": "arn:aws:lambda:us-east-1:000000000000:microvm-image/app"}),
            ),
        ] {
            assert!(refused(operation, members, None).is_some(), "{operation:?}");
        }
        let managed = json!({"imageIdentifier": "arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1"});
        assert_eq!(refused(ListManagedMicrovmImageVersions, managed, None), None);
    }
}
