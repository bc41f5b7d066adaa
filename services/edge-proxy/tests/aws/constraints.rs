//! Every constraint of the model, on both sides of its bound, through the edge.

use api::errors;
use api::microvm::v1::GetMicrovmResponse;
use aws_cases::{Case, cases};
use aws_model::{Limits, operations};
use tonic::Status;

use crate::world::{World, signer};

/// The names of the gRPC methods behind the operations.
pub const METHODS: [&str; 31] = [
    "CreateImage",
    "GetImage",
    "ListImages",
    "UpdateImage",
    "DeleteImage",
    "GetImageVersion",
    "ListImageVersions",
    "UpdateImageVersion",
    "DeleteImageVersion",
    "ListImageBuilds",
    "GetImageBuild",
    "ListBaseImages",
    "ListBaseImageVersions",
    "RunMicrovm",
    "GetMicrovm",
    "ListMicrovms",
    "SuspendMicrovm",
    "ResumeMicrovm",
    "TerminateMicrovm",
    "CreateMicrovmAuthToken",
    "CreateMicrovmShellAuthToken",
    "TagImage",
    "UntagImage",
    "TagNetworkConnector",
    "UntagNetworkConnector",
    "CreateNetworkConnector",
    "GetNetworkConnector",
    "ListNetworkConnectors",
    "UpdateNetworkConnector",
    "DeleteNetworkConnector",
    "ListNetworkConnectorVersions",
];

/// Every call is answered with NOT_FOUND: whoever gets there was let through.
pub fn nothing_is_found(world: &World) {
    for method in METHODS {
        let absent: Result<GetMicrovmResponse, Status> = Err(errors::not_found("resource", "any"));
        world.scheduler.answer(method, absent.clone());
        world.image_builder.answer(method, absent);
    }
}

pub fn target(case: &Case) -> String {
    if case.query.is_empty() { case.path.clone() } else { format!("{}?{}", case.path, case.query) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_constraint_is_kept_on_both_sides() {
    let world = World::start().await;
    nothing_is_found(&world);
    let mut connection = world.connection();
    let (mut passed, mut refused) = (0, 0);
    let mut reached = std::collections::BTreeSet::new();
    for case in cases(&Limits::default()) {
        let body = case.body.clone().unwrap_or_default();
        let request = signer().request(case.method, &target(&case), body);
        let answer = connection.send(request).await;
        let what = format!("{}: {}: {}", case.operation, case.what, String::from_utf8_lossy(&answer.body));
        let called = world.scheduler.take().len() + world.image_builder.take().len();
        if !case.plain_path {
            assert_eq!(answer.status, 404, "{what}");
            assert_eq!(called, 0, "{what}");
            continue;
        }
        if case.valid {
            // Names are for the gRPC API, and a page token is one that was given out.
            let message = answer.message();
            let unknown = message.contains("ARN") || message.contains("is not valid for this request");
            let refused = answer.status == 400 && unknown;
            assert!(refused || answer.status == 404, "{what}");
            assert_eq!(called, usize::from(!refused), "{what}");
            if called == 1 {
                reached.insert(case.operation);
            }
            passed += 1;
        } else {
            assert_eq!(Some(answer.status), case.status, "{what}");
            assert_eq!(Some(answer.class()), case.class, "{what}");
            let part = case.violation.unwrap();
            assert!(answer.message().contains(&part), "{what} without {part}");
            assert_eq!(called, 0, "{what}");
            refused += 1;
        }
    }
    assert_eq!(reached.len(), operations().len(), "{reached:?}");
    assert!(passed > 200 && refused > 500, "{passed} {refused}");
}
