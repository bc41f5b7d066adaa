//! `torpor domain` against a service that is scripted and speaks real gRPC.

use std::time::{Duration, SystemTime};

use api::domain::v1::create_domain_request::Target as AskedTarget;
use api::domain::v1::domain::Target;
use api::domain::v1::*;
use api::errors::reason;
use tonic::Code;

use crate::scripted::{Scripted, text};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn domain(name: &str, days_left: u32) -> Domain {
    Domain {
        name: name.to_owned(),
        account_id: "000000000000".to_owned(),
        target: Some(Target::ImageName("web".to_owned())),
        certificate_expire_time: Some(api::timestamp(SystemTime::now() + DAY * days_left)),
        certificate_sha256: "ab".repeat(32),
        create_time: Some(api::timestamp(SystemTime::now())),
        ..Domain::default()
    }
}

impl Scripted {
    /// Writes a file; returns its path.
    fn file(&self, name: &str, content: &str) -> String {
        let path = self.directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn a_domain_is_added_changed_and_removed() {
    let fleet = Scripted::start().await;
    let (cert, key) = (fleet.file("chain.pem", "a chain"), fleet.file("key.pem", "a key"));
    let pem = ["--cert", &*cert, "--key", &*key];
    let id = "microvm-0190a5e2-7c3b-3f00-8000-000000000001";
    let bound = Domain {
        target: Some(Target::MicrovmId(id.into())),
        url: "https://a.example/".into(),
        ..domain("a.example", 90)
    };
    fleet.script.answer("CreateDomain", Ok(CreateDomainResponse { domain: Some(bound) }));
    let added = fleet.torpor(&[&["domain", "add", "a.example", "--microvm", id][..], &pem].concat()).await;
    let (stdout, stderr) = (text(&added.stdout), text(&added.stderr));
    assert!(added.status.success(), "{stderr}");
    assert!(stdout.contains(id) && stdout.contains("https://a.example/"), "{stdout}");
    assert!(
        stderr.contains("have DNS lead a.example to the edge") && !stderr.contains("warning"),
        "{stderr}"
    );
    assert!(!format!("{stdout}{stderr}").contains("a key"));
    let asked: CreateDomainRequest = fleet.script.only("CreateDomain");
    assert!(asked.target == Some(AskedTarget::MicrovmId(id.into())));
    assert_eq!((asked.certificate_chain.as_str(), asked.private_key.as_str()), ("a chain", "a key"));

    fleet.script.answer("UpdateDomain", Ok(UpdateDomainResponse { domain: Some(domain("*.b.example", 5)) }));
    let updated = fleet.torpor(&[&["domain", "update", "*.b.example"][..], &pem].concat()).await;
    assert!(text(&updated.stderr).contains("warning: the certificate of *.b.example expires in 4d"));
    fleet.script.take();
    fleet.script.answer("DeleteDomain", Ok(DeleteDomainResponse {}));
    let removed = fleet.torpor(&["domain", "rm", "a.example", "*.b.example"]).await;
    assert_eq!(text(&removed.stdout), "a.example removed\n*.b.example removed\n");
}

#[tokio::test]
async fn domains_are_listed_with_those_that_expire() {
    let fleet = Scripted::start().await;
    let empty = fleet.torpor(&["domain", "--help"]).await;
    assert!(text(&empty.stdout).contains("Bind a name to a microVM"), "{}", text(&empty.stdout));
    fleet.script.react("ListDomains", |request: ListDomainsRequest| {
        let (one, next) = match request.page_token.as_str() {
            "" => (domain("a.example", 90), "a.example"),
            _ => (domain("*.b.example", 0), ""),
        };
        Ok(ListDomainsResponse { domains: vec![one], next_page_token: next.to_owned() })
    });
    let listed = fleet.torpor(&["domain", "list"]).await;
    let (stdout, stderr) = (text(&listed.stdout), text(&listed.stderr));
    assert!(
        stdout.contains("in 89d") && stdout.contains("expired") && stdout.contains("microVMs of web"),
        "{stdout}"
    );
    let warning =
        "warning: the certificate of *.b.example has expired; next: torpor domain update '*.b.example'";
    assert!(stderr.contains(warning) && !stderr.contains("of a.example"), "{stderr}");
    let json = fleet.json(&["domain", "list"]).await;
    let names: Vec<&str> = json.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a.example", "*.b.example"]);
    assert_eq!(json[0]["imageName"], "web");
    assert!(json[0].get("privateKey").is_none() && json[0]["certificateExpireTime"].is_string(), "{json}");
}

#[tokio::test]
async fn what_is_wrong_is_said_in_flags() {
    let fleet = Scripted::start().await;
    let (cert, key) = (fleet.file("chain.pem", "a chain"), fleet.file("key.pem", "a key"));
    let add = ["domain", "add", "a.example", "--image", "web", "--cert", &*cert, "--key", &*key];
    let violation = ("privateKey".to_owned(), "is not the key of the first certificate".to_owned());
    fleet.script.answer::<CreateDomainResponse>("CreateDomain", Err(api::errors::invalid(&[violation])));
    let refused = fleet.torpor(&add).await;
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("--key: is not the key of the first certificate"));
    let taken = api::errors::status(
        Code::AlreadyExists,
        reason::ALREADY_EXISTS,
        "The own domain 'a.example' is bound already",
        &[],
    );
    fleet.script.answer::<CreateDomainResponse>("CreateDomain", Err(taken));
    let refused = fleet.torpor(&add).await;
    assert_eq!(refused.status.code(), Some(4));
    assert!(text(&refused.stderr).contains("next: replace its certificate: torpor domain update a.example"));
    let missing = fleet.torpor(&["domain", "update", "a.example", "--cert", "/none", "--key", &key]).await;
    assert_eq!(missing.status.code(), Some(2));
    assert!(text(&missing.stderr).contains("--cert /none: "), "{}", text(&missing.stderr));
    let neither = fleet.torpor(&["domain", "add", "a.example", "--cert", &cert, "--key", &key]).await;
    assert_eq!(neither.status.code(), Some(2));
}
