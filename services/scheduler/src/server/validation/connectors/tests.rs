use super::*;

const ARN: &str = "arn:aws:lambda:us-east-1:000000000000:network-connector:nc-1";

fn whole() -> CreateNetworkConnectorRequest {
    CreateNetworkConnectorRequest {
        name: "net".into(),
        configuration: Some(NetworkConnectorConfiguration {
            subnet_ids: vec!["subnet-1".into()],
            security_group_ids: vec![],
            network_protocol: NetworkProtocol::Ipv4.into(),
            associated_compute_resource_types: vec![ComputeResourceType::MicroVm.into()],
            elastic_ip_type: 0,
        }),
        operator_role: "arn:aws:iam::000000000000:role/operator".into(),
        client_token: "token".into(),
        tags: HashMap::new(),
    }
}

type Change = fn(&mut CreateNetworkConnectorRequest);

fn created(change: Change) -> String {
    let mut request = whole();
    change(&mut request);
    create(&request).map_or_else(|refusal| refusal.to_string(), |_| String::new())
}

fn configuration(request: &mut CreateNetworkConnectorRequest) -> &mut NetworkConnectorConfiguration {
    request.configuration.get_or_insert_default()
}

#[test]
fn what_is_left_out_is_asked_for_one_sentence_at_a_time() {
    let cases: [(Change, &str); 7] = [
        (|_| {}, ""),
        (|r| r.client_token.clear(), "ClientToken is a required field"),
        (|r| r.configuration = None, "Configuration is a required field"),
        (
            |r| configuration(r).associated_compute_resource_types.clear(),
            "AssociatedComputeResourceTypes is required for VPC_EGRESS connector type",
        ),
        (
            |r| configuration(r).network_protocol = 0,
            "NetworkProtocol cannot be null or empty for VPC_EGRESS connector",
        ),
        (
            |r| r.operator_role.clear(),
            "NetworkConnectorOperatorRole is required for VPC_EGRESS connector type",
        ),
        (|r| configuration(r).subnet_ids.clear(), "SubnetIds is required for VPC_EGRESS connector type"),
    ];
    for (change, text) in cases {
        assert_eq!(created(change), text);
    }
    let nothing: Change = |r| {
        *r = CreateNetworkConnectorRequest { name: "net".into(), ..Default::default() };
    };
    assert_eq!(created(nothing), "ClientToken is a required field");
}

#[test]
fn forms_and_lengths_are_told_first_and_together() {
    let cases: [(Change, &[&str]); 18] = [
        (|r| r.name = "n".repeat(64), &[]),
        (|r| r.name = "n".repeat(65), &["name: must be 1 to 64"]),
        (|r| r.name = ARN.into(), &["name: must be 1 to 64"]),
        (|r| r.client_token = "t".repeat(64), &[]),
        (|r| r.client_token = "t".repeat(65), &["clientToken: must be 1 to 64"]),
        (|r| configuration(r).subnet_ids = vec!["subnet-1".into(); 16], &[]),
        (
            |r| {
                configuration(r).subnet_ids = vec!["subnet-1".into(); 17];
                r.client_token.clear();
            },
            &["configuration.subnetIds: must have at most 16"],
        ),
        (|r| configuration(r).security_group_ids = vec!["sg-1A".into(); 16], &[]),
        (
            |r| configuration(r).security_group_ids = vec!["sg-1".into(); 17],
            &["configuration.securityGroupIds: must have at most 16"],
        ),
        (
            |r| configuration(r).subnet_ids = vec!["subnet-1".into(), "subnet-A".into(), "x".into()],
            &["configuration.subnetIds[1]: must be 'subnet-'", "configuration.subnetIds[2]"],
        ),
        (
            |r| configuration(r).subnet_ids = vec![format!("subnet-{}", "1".repeat(1018))],
            &["configuration.subnetIds[0]: must be 'subnet-' and letters or digits, at most 1024"],
        ),
        (
            |r| configuration(r).associated_compute_resource_types = vec![1, 1],
            &["associatedComputeResourceTypes: must be exactly one"],
        ),
        (
            |r| configuration(r).associated_compute_resource_types = vec![9],
            &["associatedComputeResourceTypes: must be exactly one"],
        ),
        (|r| configuration(r).network_protocol = 9, &["networkProtocol: must be IPv4"]),
        (|r| configuration(r).elastic_ip_type = 9, &["elasticIpConfiguration.type"]),
        (|r| r.operator_role = "operator".into(), &["operatorRole: must be the ARN of a role"]),
        (
            |r| drop(r.tags.insert("torpor:allow-cidrs".into(), "10.0.0.1/8".into())),
            &["tags.torpor:allow-cidrs: '10.0.0.1/8' has host bits"],
        ),
        (
            |r| {
                r.name.clear();
                r.tags.insert("a,b".into(), "x".repeat(257));
            },
            &["name: ", "tags: keys must be", "tags: values must be at most 256"],
        ),
    ];
    for (number, (change, texts)) in cases.into_iter().enumerate() {
        let found = created(change);
        assert_eq!(found.is_empty(), texts.is_empty(), "case {number}: {found}");
        for text in texts {
            assert!(found.contains(text), "case {number}: {found}");
        }
    }
    let many = |count: usize| {
        let mut request = whole();
        request.tags = (0..count).map(|n| (format!("k{n}"), String::new())).collect();
        create(&request).is_ok()
    };
    assert!(many(50) && !many(51));
}

#[test]
fn roles_by_their_form() {
    let longest = format!("arn:aws:iam::000000000000:role/{}", "r".repeat(CONNECTOR_ROLE_MAX - 31));
    for (text, good) in [
        ("arn:aws:iam::000000000000:role/a/b+=,.@-_", true),
        ("arn:aws-cn:iam::000000000000:role/x", true),
        ("arn::iam::000000000000:role/x", true),
        (longest.as_str(), true),
        (&format!("{longest}r"), false),
        ("arn:aws:iam::00000000000:role/x", false),
        ("arn:aws:iam::000000000000:role/", false),
        ("arn:aws:iam::000000000000:user/x", false),
        ("arn:gcp:iam::000000000000:role/x", false),
        ("arn:aws:iam::000000000000:role/a b", false),
    ] {
        let mut violations = Violations::default();
        role(text, &mut violations);
        assert_eq!(violations.is_empty(), good, "{text}");
    }
}

#[test]
fn the_same_request_has_the_same_digest_whatever_the_order_of_tags() {
    let used = |tags: &[(&str, &str)], token: &str| {
        let mut request = whole();
        request.client_token = token.into();
        request.tags = tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        create(&request).unwrap().token
    };
    let many: Vec<(String, String)> = (0..30).map(|n| (format!("k{n}"), n.to_string())).collect();
    let forth: Vec<(&str, &str)> = many.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let back: Vec<(&str, &str)> = forth.iter().rev().copied().collect();
    assert_eq!(used(&forth, "a"), used(&back, "a"));
    assert_ne!(used(&forth, "a").parameters, used(&forth[1..], "a").parameters);
    assert_eq!(used(&forth, "a").parameters, used(&forth, "b").parameters);
}

#[test]
fn identifiers_are_names_ids_or_arns_of_this_account() {
    let config = Config::default();
    let named = |key: &str, version| ConnectorRef { key: key.parse().unwrap(), version };
    for (text, expected) in [
        ("net", named("net", None)),
        ("nc-1", named("nc-1", None)),
        (ARN, named("nc-1", None)),
        (&format!("{ARN}:3"), named("nc-1", Some(3))),
    ] {
        assert_eq!(identifier(text, &config).unwrap(), expected);
    }
    for (text, message) in [
        ("", "identifier: must be 1 to 140"),
        (&"x".repeat(141), "identifier: must be 1 to 140"),
        ("a b", "identifier: must be 1 to 64"),
        ("arn:aws:lambda:us-east-1:000000000000:network-connector:", "Malformed network connector ARN"),
        (&ARN.replace("us-east-1", "eu-west-1"), "belongs to another region"),
        (&ARN.replace("000000000000", "111111111111"), "belongs to another account"),
        (
            "arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:INTERNET_EGRESS",
            "belongs to another account",
        ),
    ] {
        let found = identifier(text, &config).unwrap_err().to_string();
        assert!(found.contains(message), "{found}");
    }
    assert!(unqualified(ARN, &config).is_ok());
    let found = unqualified(&format!("{ARN}:3"), &config).unwrap_err().to_string();
    assert!(found.contains("names one version"), "{found}");
}

#[test]
fn updates_need_a_token_and_keep_what_is_left_out() {
    let request = UpdateNetworkConnectorRequest { identifier: "net".into(), ..Default::default() };
    let found = update(&request).unwrap_err().to_string();
    assert_eq!(found, "ClientToken is a required field");
    let request = UpdateNetworkConnectorRequest { client_token: "t".into(), ..request };
    assert_eq!(update(&request).unwrap().0, crate::domain::connector::Change::default());
    let bad = UpdateNetworkConnectorRequest {
        operator_role: "x".into(),
        configuration: Some(NetworkConnectorConfiguration {
            subnet_ids: vec!["x".into()],
            ..Default::default()
        }),
        ..request
    };
    let found = update(&bad).unwrap_err().to_string();
    assert!(found.contains("operatorRole") && found.contains("subnetIds[0]"), "{found}");
}
