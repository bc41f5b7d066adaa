//! Own domains, from the command that binds one to the microVM's end.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use api::domain::v1::ListDomainsRequest;
use api::microvm::v1::MicrovmState;
use client::{AUTH_HEADER, HttpVersion};
use testkit::certificates::chain;

use crate::world::{Answer, World};

const NAME: &str = "app.own-domain.example";
const WILDCARD: &str = "*.apps.own-domain.example";
/// How long news may take to the edge.
const NEWS: Duration = Duration::from_secs(10);

impl World {
    async fn torpor(&self, arguments: &[&str]) -> String {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_torpor"));
        let done = command.arg("--data-dir").arg(&self.data_dir).args(arguments).output().await.unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    }

    /// The answer of a name whose certificate is of the CA; `None` while another is shown.
    async fn shown(&self, ca: &Path, name: &str, token: &str) -> Option<Answer> {
        let headers = HashMap::from([(AUTH_HEADER, token)]);
        self.request_trusting(ca, name, "/count", &headers, HttpVersion::Http2).await.ok()
    }
}

#[tokio::test]
async fn own_domains_lead_to_a_microvm_until_it_ends() {
    let fleet = World::open();
    let image = fleet.app_image().await;
    let microvm = fleet.run_idle(image, Duration::from_secs(600), Duration::from_secs(600)).await;
    let directory = tempfile::tempdir().unwrap();
    let (cert, key) = (directory.path().join("chain.pem"), directory.path().join("key.pem"));
    let (chain, private_key) = chain(&[NAME, WILDCARD], 2020..2100);
    std::fs::write(&cert, chain).unwrap();
    std::fs::write(&key, private_key).unwrap();
    let files = ["--cert", cert.to_str().unwrap(), "--key", key.to_str().unwrap()];
    fleet.torpor(&[&["domain", "add", NAME, "--microvm", &microvm.id][..], &files].concat()).await;
    fleet.torpor(&[&["domain", "add", WILDCARD, "--image", image][..], &files].concat()).await;
    let label = microvm.endpoint.split('.').next().unwrap();
    let of_image = format!("{label}{}", &WILDCARD[1..]);

    assert_eq!(microvm.count().await, 1);
    let answers =
        async |name: &str| fleet.until(name, NEWS, || fleet.shown(&cert, name, &microvm.token)).await;
    for (name, count) in [(NAME, 2), (&of_image, 3)] {
        let answer = answers(name).await;
        assert_eq!((answer.status, answer.json()["count"].as_u64()), (200, Some(count)), "{name}");
    }
    let link = fleet.torpor(&["open", &microvm.id, "--domain", NAME, "--print"]).await;
    assert!(link.starts_with(&format!("https://{NAME}")), "{link}");
    // A request under it wakes, as under the endpoint.
    microvm.suspend().await.unwrap();
    assert_eq!(answers(NAME).await.json()["count"], 4);

    fleet.torpor(&["domain", "rm", WILDCARD]).await;
    microvm.terminate().await;
    fleet
        .until("the domain to go with its microVM", NEWS, || async {
            let listed = fleet.context.call(ListDomainsRequest::default()).await.unwrap().domains;
            listed.iter().all(|domain| domain.name != NAME && domain.name != WILDCARD).then_some(())
        })
        .await;
    fleet
        .until("its certificate to go", NEWS, || async {
            fleet.shown(&cert, NAME, &microvm.token).await.is_none().then_some(())
        })
        .await;
    assert_eq!(microvm.record().await.state(), MicrovmState::Terminated);
}
