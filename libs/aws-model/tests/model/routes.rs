//! Methods and paths.

use aws_cases::minimal_case;
use aws_model::{Limits, OperationName, Routed, Service, encode, operation, operations, parse, route};
use proptest::prelude::*;

#[test]
fn every_operation_is_reached_by_its_method_and_path() {
    assert_eq!(operations().len(), OperationName::ALL.len());
    for operation in operations() {
        let case = minimal_case(operation);
        let Routed::Operation(found, _) = route(case.method, &case.path) else {
            panic!("{} is not reached", operation.name)
        };
        assert_eq!(found.name, operation.name);
        assert_eq!(aws_model::operation(operation.name), found);
        assert_eq!(found.action, format!("lambda:{}", found.name.as_str()));
        assert_eq!(found.path.starts_with("/2026-04-04/"), found.service == Service::Core);
    }
}

#[test]
fn arns_come_encoded_and_raw() {
    let arn = "arn:aws:lambda:us-east-1:000000000000:microvm-image:app";
    for spelling in [arn.to_owned(), encode(arn), arn.replace(':', "%3a")] {
        let path = format!("/2025-09-09/microvm-images/{spelling}/versions/1.0/builds/b1");
        let Routed::Operation(operation, parameters) = route("GET", &path) else {
            panic!("{path} leads nowhere")
        };
        assert_eq!(operation.name, OperationName::GetMicrovmImageBuild);
        let parameters: Vec<(&str, &str)> = parameters.iter().collect();
        assert_eq!(parameters, [("imageIdentifier", arn), ("imageVersion", "1.0"), ("buildId", "b1")]);
    }
}

#[test]
fn a_slash_in_an_arn_separates_only_when_raw() {
    let slashed = "arn:aws:lambda:us-east-1:000000000000:microvm-image/app";
    assert_eq!(route("GET", &format!("/2025-09-09/microvm-images/{slashed}")), Routed::NoSuchPath);
    let Routed::Operation(operation, parameters) =
        route("GET", &format!("/2025-09-09/microvm-images/{}", encode(slashed)))
    else {
        panic!("an encoded slash is part of the parameter")
    };
    assert_eq!(operation.name, OperationName::GetMicrovmImage);
    assert_eq!(parameters.get("imageIdentifier"), Some(slashed));
}

#[test]
fn parameters_are_decoded_once() {
    let Routed::Operation(_, parameters) = route("GET", "/2025-09-09/microvms/a%253Ab+c") else {
        panic!("leads nowhere")
    };
    assert_eq!(parameters.get("microvmIdentifier"), Some("a%3Ab+c"));
    for malformed in ["%", "%4", "%zz", "%ff", "%+1"] {
        let path = format!("/2025-09-09/microvms/{malformed}");
        assert!(matches!(route("GET", &path), Routed::Refused(Service::Microvms, _)), "{path}");
    }
}

#[test]
fn other_paths_and_methods_lead_nowhere() {
    for path in [
        "",
        "/",
        "*",
        "microvms",
        "/2025-09-09",
        "/2025-09-08/microvms",
        "/2025-09-09/microvms/a/b/c/d/e/f/g/h",
    ] {
        assert_eq!(route("GET", path), Routed::NoSuchPath, "{path}");
    }
    assert_eq!(route("PATCH", "/2025-09-09/microvms"), Routed::NoSuchMethod(Service::Microvms));
    assert_eq!(route("get", "/2025-09-09/microvms"), Routed::NoSuchMethod(Service::Microvms));
    assert_eq!(
        route("POST", "/2026-04-04/network-connectors/a/versions"),
        Routed::NoSuchMethod(Service::Core)
    );
    for (path, form) in [
        ("/2015-03-31/functions", "application/json"),
        ("//", "application/json"),
        ("/2025-09-09/microvm-images/arn:aws:lambda:us-east-1:000000000000:microvm-image/app", "text/html"),
    ] {
        let reply = aws_model::no_such_path(path);
        assert_eq!(reply.status, 404);
        assert!(reply.headers.contains(&("content-type", form.to_owned())), "{path}");
    }
    assert_eq!(aws_model::no_such_method(Service::Core).status, 404);
}

proptest! {
    #[test]
    fn any_parameter_comes_back_as_it_was(value in "\\PC{1,40}", index in 0_usize..30) {
        let operation = &operations()[index];
        let path = operation.path.split('/').map(|segment| {
            if segment.starts_with('{') { encode(&value) } else { segment.to_owned() }
        });
        let path = path.collect::<Vec<_>>().join("/");
        let Routed::Operation(found, parameters) = route(operation.method, &path) else {
            panic!("{path} leads nowhere")
        };
        prop_assert_eq!(found.name, operation.name);
        for (_, parameter) in parameters.iter() {
            prop_assert_eq!(parameter, &value);
        }
    }

    #[test]
    fn nothing_panics(
        method in "(GET|POST|PUT|PATCH|DELETE|\\PC{0,5})",
        path in "(/2025-09-09|/2017-03-31|/2026-04-04)?(/[a-z%:{}0-9./-]{0,20}){0,8}",
        query in "([a-zA-Z]{0,12}=?[^&]{0,12}&?){0,4}",
        body in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        if let Routed::Operation(operation, parameters) = route(&method, &path) {
            let _ = parse(operation, &parameters, &query, &body, &Limits::default());
        }
        let (create, parameters) = (operation(OperationName::CreateMicrovmImage), Default::default());
        let _ = parse(create, &parameters, &query, &body, &Limits::default());
    }
}
