//! Every case that the descriptions give behaves as it says.

use std::collections::BTreeSet;

use aws_cases::{Case, cases, minimal_case};
use aws_model::{Input, Limits, Rejection, Routed, operations, parse, route};

/// Routes and parses a case the way a server does.
fn ask(case: &Case, limits: &Limits) -> Result<Input, Rejection> {
    match route(case.method, &case.path) {
        Routed::Operation(operation, parameters) => {
            assert_eq!(operation.name.as_str(), case.operation, "{} {}", case.method, case.path);
            let body = case.body.as_deref().unwrap_or_default();
            parse(operation, &parameters, &case.query, body.as_bytes(), limits)
        }
        other => panic!("{} {} leads to {other:?}", case.method, case.path),
    }
}

fn check(case: &Case, limits: &Limits) {
    let (operation, what) = (case.operation, &case.what);
    match (ask(case, limits), case.valid) {
        (Ok(_), true) => {}
        (Ok(input), false) => panic!("{operation}: {what}: passes as {input:?}"),
        (Err(rejection), true) => panic!("{operation}: {what}: {rejection}"),
        (Err(rejection), false) => {
            assert_eq!(Some(rejection.class.name()), case.class, "{operation}: {what}: {rejection}");
            let message = rejection.message.unwrap_or_default();
            let violation = case.violation.as_deref().expect("a refused case says why");
            assert!(message.contains(violation), "{operation}: {what}:\n{message}\nlacks\n{violation}");
        }
    }
}

#[test]
fn every_case_behaves() {
    let limits = Limits::default();
    let cases = cases(&limits);
    assert!(cases.len() > 1500, "{} cases", cases.len());
    cases.iter().for_each(|case| check(case, &limits));
}

#[test]
fn a_moved_limit_moves_its_cases() {
    let limits = Limits { run_hook_payload_bytes_max: 16_384, ..Limits::default() };
    let moved: Vec<Case> =
        cases(&limits).into_iter().filter(|case| case.what.starts_with("runHookPayload: length")).collect();
    assert!(moved.iter().any(|case| !case.valid && case.what.ends_with("16385")), "{moved:?}");
    moved.iter().for_each(|case| check(case, &limits));
}

#[test]
fn every_operation_has_a_request_that_passes_and_requests_that_do_not() {
    for operation in operations() {
        let case = minimal_case(operation);
        let input = ask(&case, &Limits::default()).unwrap();
        assert_eq!(input.operation(), operation);
        let refused = cases(&Limits::default())
            .into_iter()
            .filter(|case| case.operation == operation.name.as_str() && !case.valid);
        let has_input = !operation.path.contains("managed-microvm-images") || operation.path.contains('{');
        assert!(refused.count() >= 1 || !has_input, "{}", operation.name);
    }
}

#[test]
fn case_names_are_unique_within_an_operation() {
    let mut seen = BTreeSet::new();
    for case in cases(&Limits::default()) {
        let name = format!("{}: {} {}", case.operation, case.what, case.body.unwrap_or_default());
        assert!(seen.insert((name.clone(), case.path, case.query)), "{name}");
    }
}
