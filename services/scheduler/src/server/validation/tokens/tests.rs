use super::super::tests::{fields, seconds};
use super::*;
use api::microvm::v1::{AllPorts, PortRange};

fn wire(scopes: Vec<Scope>) -> Vec<WirePortScope> {
    scopes.into_iter().map(|scope| WirePortScope { scope: Some(scope) }).collect()
}

#[test]
fn token_requests() {
    let range = |start_port, end_port| Scope::Range(PortRange { start_port, end_port });
    let minute = seconds(60);
    for (expiration, scopes, expected) in [
        (minute, vec![Scope::Port(8080), range(1, 2), Scope::AllPorts(AllPorts {})], &[][..]),
        (seconds(3600), vec![Scope::Port(1)], &[]),
        (seconds(3601), vec![Scope::Port(1)], &["expirationInMinutes"]),
        (seconds(90), vec![Scope::Port(1)], &["expirationInMinutes"]),
        (seconds(0), vec![Scope::Port(1)], &["expirationInMinutes"]),
        (minute, vec![], &["allowedPorts"]),
        (minute, vec![Scope::Port(1); 100], &[]),
        (minute, vec![Scope::Port(1); 101], &["allowedPorts"]),
        (minute, vec![Scope::Port(1), Scope::Port(0)], &["allowedPorts[1]"]),
        (minute, vec![Scope::Port(65_536)], &["allowedPorts[0]"]),
        (minute, vec![range(2, 1)], &["allowedPorts[0]"]),
    ] {
        let request = CreateMicrovmAuthTokenRequest {
            microvm_id: String::new(),
            expiration: Some(expiration),
            allowed_ports: wire(scopes),
            ..Default::default()
        };
        let violated = endpoint(&request).map_or_else(fields, |_| Vec::new());
        assert_eq!(violated, expected, "{request:?}");
    }
}

#[test]
fn scopes_of_tokens() {
    let rule = "must be a path as it stands in a URL";
    let path = |path: &str| (vec![path.to_owned()], vec![]);
    let method = |method: &str| (vec![], vec![method.to_owned()]);
    for ((allowed_paths, allowed_methods), field, text) in [
        (
            (vec!["/".to_owned(), "/a%20b/c;d=1".to_owned()], vec!["GET".to_owned(), "M-SEARCH".to_owned()]),
            "",
            "",
        ),
        (path("api"), "allowedPaths[0]", rule),
        (path(""), "allowedPaths[0]", rule),
        (path("/a?b"), "allowedPaths[0]", rule),
        (path("/a#b"), "allowedPaths[0]", rule),
        (path("/a b"), "allowedPaths[0]", rule),
        (path("/ä"), "allowedPaths[0]", rule),
        (path("/a\"b"), "allowedPaths[0]", rule),
        (path("/a//b"), "allowedPaths[0]", rule),
        (path("/a/../b"), "allowedPaths[0]", rule),
        (path("/a/%2E%2e/b"), "allowedPaths[0]", rule),
        (path(&format!("/{}", "x".repeat(511))), "", ""),
        (path(&format!("/{}", "x".repeat(512))), "allowedPaths[0]", "must be at most 512 bytes"),
        ((vec!["/x".to_owned(); 16], vec![]), "", ""),
        ((vec!["/x".to_owned(); 17], vec![]), "allowedPaths", "must have at most 16 entries"),
        ((vec![format!("/{}", "x".repeat(383)); 8], vec![]), "", ""),
        (
            (vec![format!("/{}", "x".repeat(384)); 8], vec![]),
            "allowedPaths",
            "must be at most 3072 bytes together",
        ),
        (method("get"), "allowedMethods[0]", "must be an HTTP method"),
        (method(""), "allowedMethods[0]", "must be an HTTP method"),
        (method(&"X".repeat(33)), "allowedMethods[0]", "must be an HTTP method"),
        ((vec![], vec!["GET".to_owned(); 17]), "allowedMethods", "must have at most 16 entries"),
    ] {
        let request = CreateMicrovmAuthTokenRequest {
            microvm_id: String::new(),
            expiration: Some(seconds(60)),
            allowed_ports: wire(vec![Scope::Port(8080)]),
            allowed_paths: allowed_paths.clone(),
            allowed_methods: allowed_methods.clone(),
        };
        let answer = endpoint(&request).map_err(|refusal| refusal.to_string());
        match answer {
            Ok(asked) => {
                assert_eq!((asked.paths, asked.methods), (allowed_paths, allowed_methods));
                assert_eq!(field, "");
            }
            Err(said) => assert!(!field.is_empty() && said.contains(&format!("{field}: {text}")), "{said}"),
        }
    }
}
