use super::*;
use api::connector::v1::{ComputeResourceType, NetworkProtocol};

pub(crate) const MADE: SystemTime = SystemTime::UNIX_EPOCH;

/// So many settling times after the sample was made.
pub(crate) fn later(times: u32) -> SystemTime {
    MADE + SETTLE * times
}

/// A connector with one subnet, made at [`MADE`].
pub(crate) fn sample() -> Connector {
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
    Connector::new(names, content, BTreeMap::new(), used, MADE)
}

fn role(text: &str) -> Change {
    Change { operator_role: Some(text.to_owned()), ..Change::default() }
}

fn update(connector: &mut Connector, change: &Change, token: &str, now: SystemTime) -> Result<(), Refusal> {
    let parameters = format!("{change:?}");
    connector.update(change, TokenUse::of(token, parameters.as_bytes()), 3, now)
}

#[test]
fn a_life() {
    use ConnectorState::{Active, Deleting, Pending};
    let mut connector = sample();
    assert_eq!((connector.life.state(MADE), connector.state_reason.as_str()), (Pending, REASON_CREATED));
    assert!(connector.usable(MADE).is_none());
    assert_eq!(connector.to_launch(None, MADE), Err(Pending));
    assert_eq!(connector.delete(None, MADE), Err(Refusal::State(Pending)));
    assert_eq!(update(&mut connector, &role("x"), "a", MADE), Err(Refusal::State(Pending)));
    assert_eq!(connector.life.state(later(1)), Active);
    assert_eq!(connector.usable(later(1)).map(|found| found.0), Some(1));

    update(&mut connector, &role("x"), "a", later(1)).unwrap();
    assert_eq!(connector.life.state(later(1)), Active, "an update leaves it in use");
    assert!(connector.is_updating(later(1)));
    assert_eq!(connector.usable(later(1)).map(|found| found.0), Some(1), "the old version until then");
    assert_eq!(connector.to_launch(Some(2), later(1)), Err(Pending));
    assert_eq!(connector.to_launch(Some(3), later(1)), Err(ConnectorState::Deleted));
    assert_eq!(update(&mut connector, &role("y"), "b", later(1)), Err(Refusal::Updating));
    assert!(!connector.is_updating(later(2)));
    assert_eq!(connector.usable(later(2)).map(|found| found.0), Some(2));
    assert_eq!(connector.to_launch(None, later(2)), Ok(&connector.versions[&2]));
    assert_eq!(connector.versions[&1], sample().versions[&1]);
    assert_eq!(connector.update_reason.as_deref(), Some(""));

    connector.delete(None, later(2)).unwrap();
    connector.delete(None, later(3)).unwrap();
    assert_eq!(connector.life.state(later(2)), Deleting);
    assert!(
        !connector.has_remains(later(2)) && connector.has_remains(later(3)),
        "counted from the first time"
    );
    assert_eq!(connector.without_remains(later(3)), None);
}

#[test]
fn an_update_without_a_change_makes_no_version() {
    let mut connector = sample();
    let same = Change { configuration: Some(NetworkConnectorConfiguration::default()), operator_role: None };
    update(&mut connector, &same, "a", later(1)).unwrap();
    assert_eq!(connector.newest().0, 1);
    assert!(!connector.is_updating(later(1)));
    assert_eq!(connector.update_reason.as_deref(), Some(REASON_NO_CHANGE));
    assert_eq!(connector.state_reason, REASON_CREATED);
}

#[test]
fn a_token_means_one_update() {
    let mut connector = sample();
    update(&mut connector, &role("x"), "a", later(1)).unwrap();
    let once = connector.clone();
    update(&mut connector, &role("x"), "a", later(1)).unwrap();
    assert_eq!(connector, once);
    assert_eq!(update(&mut connector, &role("y"), "a", later(2)), Err(Refusal::TokenConflict));
    for number in 0..40 {
        update(&mut connector, &Change::default(), &number.to_string(), later(2)).unwrap();
    }
    assert_eq!(connector.updated_with.len(), UPDATE_TOKENS_MAX);
}

#[test]
fn versions_are_bounded_and_go_one_by_one_but_the_newest() {
    let mut connector = sample();
    for number in 2..=3 {
        update(&mut connector, &role(&number.to_string()), &number.to_string(), later(number)).unwrap();
    }
    assert_eq!(update(&mut connector, &role("4"), "4", later(4)), Err(Refusal::TooManyVersions(3)));
    assert_eq!(connector.delete(Some(3), later(4)), Err(Refusal::Newest(3)));
    assert_eq!(connector.delete(Some(9), later(4)), Err(Refusal::NoVersion(9)));
    connector.delete(Some(1), later(4)).unwrap();
    assert_eq!(connector.life.state(later(4)), ConnectorState::Active, "the connector stays in use");
    assert_eq!(connector.to_launch(Some(1), later(4)), Err(ConnectorState::Deleting));
    let mut connector = connector.without_remains(later(5)).unwrap();
    assert_eq!(connector.versions.keys().copied().collect::<Vec<_>>(), [2, 3]);
    update(&mut connector, &role("4"), "5", later(5)).unwrap();
    assert_eq!(connector.newest().0, 4, "numbers are never used again");
}

#[test]
fn what_it_is_used_for_is_fixed() {
    let mut connector = sample();
    let other = Change {
        configuration: Some(NetworkConnectorConfiguration {
            associated_compute_resource_types: vec![ComputeResourceType::WebFunction.into()],
            ..Default::default()
        }),
        operator_role: None,
    };
    assert_eq!(update(&mut connector, &other, "a", later(1)), Err(Refusal::ComputeType));
}
