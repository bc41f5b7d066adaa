//! Invitations to browsers: made by operators, redeemed by edges, once.

use std::time::Duration;

use api::errors::reason;
use api::microvm::v1::{
    CreateMicrovmInvitationRequest, Microvm, RedeemMicrovmInvitationRequest, RedeemMicrovmInvitationResponse,
    RevokeMicrovmAuthTokensRequest,
};
use rpc::Role;
use token::{Key, KeySet, Kind, PortScope};
use tonic::Status;

use crate::world::*;

const SPENT: &str = "The link was used before or has expired.";

/// The endpoint's first label.
fn label(microvm: &Microvm) -> String {
    microvm.endpoint.split('.').next().unwrap().to_owned()
}

/// The code of a fresh invitation to port 9000, for an hour.
async fn invited(client: &Client, microvm: &Microvm) -> Result<String, Status> {
    let request = CreateMicrovmInvitationRequest {
        microvm_id: microvm.microvm_id.clone(),
        port: 9000,
        path: "/start?a=1".into(),
        session_duration: seconds(3600),
    };
    let url = client.clone().create_microvm_invitation(request).await?.into_inner().url;
    let (before, code) = url.split_once("?code=").unwrap();
    assert_eq!(before, format!("{}.torpor/open", microvm.endpoint_url));
    Ok(code.to_owned())
}

async fn redeem(edge: &Client, code: &str, label: &str) -> Result<RedeemMicrovmInvitationResponse, Status> {
    let request = RedeemMicrovmInvitationRequest { code: code.into(), endpoint_label: label.into() };
    Ok(edge.clone().redeem_microvm_invitation(request).await?.into_inner())
}

#[tokio::test]
async fn an_invitation_is_redeemed_once() {
    let world = World::on_manual_clock().await;
    let scheduler = world.here(&[]);
    let (world, scheduler, _host, client) = world.and_host(scheduler).await;
    let edge = world.client(&scheduler, Role::EdgeProxy);
    let [microvm, other] = [running(&client).await, running(&client).await];
    let (label, of_other) = (label(&microvm), label(&other));

    let code = invited(&client, &microvm).await.unwrap();
    let stored = world.store.list("invitations/").await.unwrap().0;
    assert_eq!(stored.len(), 1);
    let stored = &stored[0];
    let shown = format!("{} {}", stored.0, String::from_utf8_lossy(&stored.1.value));
    assert!(!shown.contains(&code), "the code is stored: {shown}");
    // Brought to another endpoint it stays what it is.
    refused(redeem(&edge, &code, &of_other).await, reason::NOT_FOUND, SPENT);
    let tries = futures::future::join_all((0..8).map(|_| redeem(&edge, &code, &label))).await;
    let (good, bad): (Vec<_>, Vec<_>) = tries.into_iter().partition(Result::is_ok);
    assert_eq!((good.len(), bad.len()), (1, 7));
    bad.into_iter().for_each(|answer| refused(answer, reason::NOT_FOUND, SPENT));
    let session = good.into_iter().next().unwrap().unwrap();
    assert_eq!((session.path.as_str(), session.session_duration), ("/start?a=1", seconds(3600)));
    assert!(world.listed("invitations/").await.is_empty());
    let keys = world.store.list("keys/").await.unwrap().0;
    let keys = keys.iter().map(|(_, value)| serde_json::from_slice::<Key>(&value.value).unwrap()).collect();
    let claims = KeySet::new(keys).unwrap().verify(&session.session_token, 0).unwrap();
    assert_eq!((claims.kind, claims.ports), (Kind::Browser, vec![PortScope::Single(9000)]));
    assert_eq!(
        (claims.microvm_id.as_str(), claims.expires_at - claims.issued_at),
        (&*microvm.microvm_id, 3600)
    );

    for code in ["", "x", &"A".repeat(43)] {
        refused(redeem(&edge, code, &label).await, reason::NOT_FOUND, SPENT);
    }
    // Revoked, expired, and of what has ended.
    let code = invited(&client, &microvm).await.unwrap();
    let request = RevokeMicrovmAuthTokensRequest { microvm_id: microvm.microvm_id.clone() };
    client.clone().revoke_microvm_auth_tokens(request).await.unwrap();
    refused(redeem(&edge, &code, &label).await, reason::NOT_FOUND, SPENT);
    let (kept, late) = (invited(&client, &microvm).await.unwrap(), invited(&client, &microvm).await.unwrap());
    world.clock.advance(Duration::from_secs(59));
    redeem(&edge, &kept, &label).await.unwrap();
    world.clock.advance(Duration::from_secs(1));
    refused(redeem(&edge, &late, &label).await, reason::NOT_FOUND, SPENT);
    let code = invited(&client, &other).await.unwrap();
    terminate(&client, &other.microvm_id).await.unwrap();
    refused(redeem(&edge, &code, &of_other).await, reason::NOT_FOUND, SPENT);
    refused(invited(&client, &other).await, reason::TERMINATED, &other.microvm_id);

    // Operators make them, edges redeem them.
    refused(invited(&edge, &microvm).await, reason::PERMISSION_DENIED, "edge-proxy");
    refused(redeem(&client, &code, &label).await, reason::PERMISSION_DENIED, "admin");
}
