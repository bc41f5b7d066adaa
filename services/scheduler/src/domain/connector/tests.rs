use super::*;
use api::connector::v1::{ComputeResourceType, NetworkProtocol};

/// A connector with one subnet, ACTIVE when `settled`.
pub(crate) fn sample(settled: bool) -> Connector {
    let content = Content {
        configuration: NetworkConnectorConfiguration {
            subnet_ids: vec!["subnet-1".into()],
            network_protocol: NetworkProtocol::Ipv4.into(),
            associated_compute_resource_types: vec![ComputeResourceType::MicroVm.into()],
            ..Default::default()
        },
        operator_role: "arn:aws:iam::000000000000:role/operator".into(),
    };
    let names = ("nc-1".parse().unwrap(), "net".parse().unwrap());
    let used = TokenUse::of("create", b"");
    let mut connector = Connector::new(names, content, BTreeMap::new(), used, SystemTime::UNIX_EPOCH);
    assert!(!settled || connector.settle());
    connector
}

fn role(text: &str) -> Change {
    Change { operator_role: Some(text.to_owned()), ..Change::default() }
}

fn update(connector: &mut Connector, change: &Change, token: &str) -> Result<(), Illegal> {
    let parameters = format!("{change:?}");
    connector.update(change, TokenUse::of(token, parameters.as_bytes()), 3, SystemTime::UNIX_EPOCH)
}

#[test]
fn a_life() {
    let mut connector = sample(false);
    assert_eq!(connector.state_reason, REASON_CREATED);
    assert!(connector.is_unsettled() && connector.usable().is_none());
    assert_eq!(connector.delete(None), Err(Illegal::State(ConnectorState::Pending)));
    assert_eq!(update(&mut connector, &role("x"), "a"), Err(Illegal::State(ConnectorState::Pending)));
    assert!(connector.settle() && !connector.is_unsettled());
    assert_eq!(connector.usable().map(|found| found.0), Some(1));

    update(&mut connector, &role("x"), "a").unwrap();
    assert_eq!(connector.state, ConnectorState::Active, "an update leaves it in use");
    assert_eq!(connector.usable().map(|found| found.0), Some(1), "the old version until then");
    assert_eq!(update(&mut connector, &role("y"), "b"), Err(Illegal::Updating));
    assert!(connector.settle());
    assert_eq!(connector.usable().map(|found| found.0), Some(2));
    assert_eq!(connector.versions[&1].content, sample(true).versions[&1].content);
    assert_eq!(connector.update, Some(Update { done: true, reason: String::new() }));

    connector.delete(None).unwrap();
    connector.delete(None).unwrap();
    assert_eq!(connector.state, ConnectorState::Deleting);
    assert!(!connector.settle());
}

#[test]
fn an_update_without_a_change_makes_no_version() {
    let mut connector = sample(true);
    let same = Change { configuration: Some(NetworkConnectorConfiguration::default()), operator_role: None };
    update(&mut connector, &same, "a").unwrap();
    assert_eq!(connector.newest().0, 1);
    assert!(!connector.is_unsettled());
    assert_eq!(connector.update.unwrap().reason, REASON_NO_CHANGE);
    assert_eq!(connector.state_reason, REASON_CREATED);
}

#[test]
fn a_token_means_one_update() {
    let mut connector = sample(true);
    update(&mut connector, &role("x"), "a").unwrap();
    let once = connector.clone();
    update(&mut connector, &role("x"), "a").unwrap();
    assert_eq!(connector, once);
    assert_eq!(update(&mut connector, &role("y"), "a"), Err(Illegal::TokenConflict));
    for number in 0..40 {
        assert!(connector.settle());
        update(&mut connector, &Change::default(), &number.to_string()).unwrap();
    }
    assert_eq!(connector.updated_with.len(), UPDATE_TOKENS_MAX);
}

#[test]
fn versions_are_bounded_and_go_one_by_one_but_the_newest() {
    let mut connector = sample(true);
    for number in 2..=3 {
        update(&mut connector, &role(&number.to_string()), &number.to_string()).unwrap();
        assert!(connector.settle());
    }
    assert_eq!(update(&mut connector, &role("4"), "4"), Err(Illegal::TooManyVersions(3)));
    assert_eq!(connector.delete(Some(3)), Err(Illegal::Newest(3)));
    assert_eq!(connector.delete(Some(9)), Err(Illegal::NoVersion(9)));
    connector.delete(Some(1)).unwrap();
    assert_eq!(connector.state, ConnectorState::Active, "the connector stays in use");
    assert!(connector.settle());
    assert_eq!(connector.versions.keys().copied().collect::<Vec<_>>(), [2, 3]);
    update(&mut connector, &role("4"), "5").unwrap();
    assert_eq!(connector.newest().0, 4, "numbers are never used again");
}

#[test]
fn what_it_is_used_for_is_fixed() {
    let mut connector = sample(true);
    let other = Change {
        configuration: Some(NetworkConnectorConfiguration {
            associated_compute_resource_types: vec![ComputeResourceType::WebFunction.into()],
            ..Default::default()
        }),
        operator_role: None,
    };
    assert_eq!(update(&mut connector, &other, "a"), Err(Illegal::ComputeType));
}
