//! Pages of connectors and versions; tags.

use api::connector::v1::*;
use api::errors::reason;
use tonic::Status;

use super::*;

#[tokio::test]
async fn lists_are_paged_by_name_and_filtered_by_state() {
    let (world, _scheduler, client) = led_on_manual_clock().await;
    for name in ["c", "a", "e", "b", "d"] {
        create(&client, request(name)).await.unwrap();
    }
    let list = |size: u32, token: &str, state: NetworkConnectorState| {
        let request =
            ListNetworkConnectorsRequest { page_size: size, page_token: token.into(), state: state.into() };
        let mut client = client.clone();
        async move { client.list_network_connectors(request).await.map(|answer| answer.into_inner()) }
    };
    let (mut names, mut token) = (Vec::new(), String::new());
    loop {
        let page = list(2, &token, NetworkConnectorState::Unspecified).await.unwrap();
        assert!(page.connectors.len() <= 2);
        names.extend(page.connectors.into_iter().map(|connector| connector.name));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["a", "b", "c", "d", "e"]);
    assert!(list(0, "", Active).await.unwrap().connectors.is_empty());
    world.clock.advance(SETTLE);
    assert_eq!(list(100, "", Active).await.unwrap().connectors.len(), 5);
    delete(&client, "b").await.unwrap();
    let deleting = list(0, "", Deleting).await.unwrap().connectors;
    assert_eq!((deleting.len(), deleting[0].name.as_str()), (1, "b"));
    let failed = list(0, "", NetworkConnectorState::Failed).await.unwrap();
    assert!(failed.connectors.is_empty());
    for (size, token, text) in [(101, "", "maxResults: must be 1 to 100"), (1, "a b", "pageToken")] {
        refused(list(size, token, NetworkConnectorState::Unspecified).await, reason::INVALID_ARGUMENT, text);
    }
}

#[tokio::test]
async fn versions_are_listed_newest_first() {
    let (_world, _scheduler, client) = led(&[]).await;
    active(&client, request("net")).await;
    for number in 2..=4u64 {
        update(&client, subnets("net", &[&format!("subnet-{number}")], &format!("u{number}"))).await.unwrap();
        eventually("the version", || async { (read(&client, "net").await.ok()?.1 == number).then_some(()) })
            .await;
    }
    let list = |token: String| {
        let request = ListNetworkConnectorVersionsRequest {
            identifier: "net".into(),
            page_size: 3,
            page_token: token,
            state: NetworkConnectorState::Unspecified.into(),
        };
        let mut client = client.clone();
        async move {
            let answer = client.list_network_connector_versions(request).await;
            answer.map(|answer| answer.into_inner())
        }
    };
    let page = list(String::new()).await.unwrap();
    let numbers: Vec<u64> = page.versions.iter().map(|version| version.version).collect();
    assert_eq!(numbers, [4, 3, 2]);
    let subnet = |version: &NetworkConnector| version.configuration.clone().unwrap().subnet_ids[0].clone();
    assert_eq!(subnet(&page.versions[1]), "subnet-3");
    let last = list(page.next_page_token).await.unwrap();
    assert_eq!((last.versions.len(), last.versions[0].version), (1, 1));
    assert_eq!(last.next_page_token, "");
    let bad = list("x".into()).await;
    refused(bad, reason::INVALID_ARGUMENT, "pageToken");
}

pub async fn tags_are_set_and_removed_without_a_version(client: &Connectors) {
    active(
        client,
        CreateNetworkConnectorRequest { tags: tagged(&[("team", "a"), ("stage", "test")]), ..request("net") },
    )
    .await;
    let tag = |tags: &[(&str, &str)]| {
        let request = TagNetworkConnectorRequest { identifier: "net".into(), tags: tagged(tags) };
        let mut client = client.clone();
        async move {
            let answer = client.tag_network_connector(request).await?;
            Ok::<_, Status>(answer.into_inner().connector.unwrap())
        }
    };
    let now = tag(&[("team", "b"), ("torpor:deny-cidrs", "10.0.0.0/8")]).await.unwrap();
    let expected = [("team", "b"), ("stage", "test"), ("torpor:deny-cidrs", "10.0.0.0/8")];
    assert_eq!((now.tags, now.version), (tagged(&expected), 1));
    for (key, value, text) in [
        ("torpor:deny-cidrs", "10.0.0.0/33", "'10.0.0.0/33' is not a CIDR"),
        ("torpor:allow-cidrs", "2001:db8::/32", "needs NetworkProtocol DualStack"),
        ("torpor:allowcidrs", "10.0.0.0/8", "reserved"),
        ("", "x", "keys must be 1 to 128"),
    ] {
        refused(tag(&[(key, value)]).await, reason::INVALID_ARGUMENT, text);
    }
    let many: Vec<(String, String)> = (0..48).map(|n| (format!("k{n}"), String::new())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    refused(tag(&many).await, reason::INVALID_ARGUMENT, "tags: must have at most 50 entries");
    let request = UntagNetworkConnectorRequest {
        identifier: "net".into(),
        tag_keys: vec!["team".into(), "torpor:deny-cidrs".into(), "absent".into()],
    };
    let now = client.clone().untag_network_connector(request).await.unwrap();
    assert_eq!(now.into_inner().connector.unwrap().tags, tagged(&[("stage", "test")]));
}

#[tokio::test]
async fn the_largest_connectors_fit_into_pages_and_records() {
    let (_world, _scheduler, client) = led(&[]).await;
    let id = |prefix: &str| format!("{prefix}{}", "1".repeat(1024 - prefix.len()));
    let largest = |name: &str| CreateNetworkConnectorRequest {
        configuration: Some(NetworkConnectorConfiguration {
            subnet_ids: vec![id("subnet-"); 16],
            security_group_ids: vec![id("sg-"); 16],
            ..request(name).configuration.unwrap()
        }),
        operator_role: format!("arn:aws:iam::000000000000:role/{}", "r".repeat(10_000 - 31)),
        // Characters of four bytes each.
        tags: (0..50).map(|n| (format!("{n:02}{}", "𐐀".repeat(126)), "𐐀".repeat(256))).collect(),
        ..request(name)
    };
    for number in 0..30 {
        create(&client, largest(&format!("n{number:02}"))).await.unwrap();
    }
    let (mut names, mut token) = (Vec::new(), String::new());
    let mut pages = 0;
    loop {
        let request = ListNetworkConnectorsRequest { page_token: token, ..Default::default() };
        let page = client.clone().list_network_connectors(request).await.unwrap().into_inner();
        names.extend(page.connectors.into_iter().map(|connector| connector.name));
        pages += 1;
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    let expected: Vec<String> = (0..30).map(|number| format!("n{number:02}")).collect();
    assert_eq!(names, expected);
    assert!(pages > 1, "they do not fit into one");
}
