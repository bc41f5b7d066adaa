//! Answers, in the manner of each service.

use aws_model::OperationName::{self as Name, *};
use aws_model::{ErrorClass, Rejection, Service, operation, operations};
use serde_json::{Map, Value, json};

fn body(rejection: &Rejection, service: Service) -> Value {
    serde_json::from_slice(&rejection.reply(service).body).expect("an error answer is JSON")
}

fn members(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        other => panic!("{other} has no members"),
    }
}

fn answer(name: Name, given: Value) -> Value {
    let reply = operation(name).reply(members(given));
    assert_eq!(reply.content_type, Some("application/json"));
    serde_json::from_slice(&reply.body).unwrap()
}

#[test]
fn errors_have_the_members_of_their_class() {
    use ErrorClass as C;
    use Service::{Core, Microvms};
    for (class, service, expected) in [
        (C::Validation, Microvms, json!({"message": "m"})),
        (C::Validation, Core, json!({"message": "m"})),
        (C::AccessDenied, Microvms, json!({"Message": "m"})),
        (C::Serialization, Microvms, json!({"Message": "m"})),
        (C::ResourceNotFound, Microvms, json!({"message": "m", "resourceId": null, "resourceType": null})),
        (C::ResourceNotFound, Core, json!({"Message": "m"})),
        (C::Conflict, Microvms, json!({"message": "m", "resourceId": null, "resourceType": null})),
        (
            C::ServiceQuotaExceeded,
            Microvms,
            json!({"message": "m", "quotaCode": null, "resourceId": null, "resourceType": null, "serviceCode": null}),
        ),
        (C::Throttling, Microvms, json!({"message": "m", "quotaCode": null, "serviceCode": null})),
        (C::InternalServer, Microvms, json!({"message": "m"})),
        (C::InsufficientCapacity, Microvms, json!({"message": "m"})),
        (C::InvalidParameterValue, Core, json!({"message": "m", "Type": "User"})),
        (C::ResourceConflict, Core, json!({"message": "m", "Type": "User"})),
        (C::NetworkConnectorLimitExceeded, Core, json!({"message": "m", "Type": "User"})),
        (
            C::TooManyRequests,
            Core,
            json!({"message": "m", "Reason": "CallerRateLimitExceeded", "Type": "User"}),
        ),
        (C::Service, Core, json!({"Message": "m", "Type": "Service"})),
        (C::Service, Microvms, json!({"message": "m", "Type": "Service"})),
        (C::MissingAuthenticationToken, Core, json!({"message": "m"})),
        (C::InvalidSignature, Microvms, json!({"message": "m"})),
    ] {
        assert_eq!(body(&Rejection::new(class, "m"), service), expected, "{class} {service:?}");
    }
    assert_eq!(body(&Rejection::silent(C::AccessDenied), Microvms), json!({"Message": null}));
    let named = Rejection::new(C::ResourceNotFound, "m").with("resourceId", "x");
    assert_eq!(body(&named, Microvms)["resourceId"], "x");
}

#[test]
fn the_class_travels_in_a_header() {
    let reply =
        Rejection::new(ErrorClass::Throttling, "Rate exceeded").retry_after(1).reply(Service::Microvms);
    assert_eq!(reply.status, 429);
    assert_eq!(
        reply.headers,
        [
            ("content-type", "application/json".to_owned()),
            ("x-amzn-errortype", "ThrottlingException".to_owned()),
            ("retry-after", "1".to_owned()),
        ]
    );
    assert!(!String::from_utf8(reply.body).unwrap().contains("__type"));
}

#[test]
fn classes_have_the_statuses_of_the_models() {
    for (class, name, status) in [
        (ErrorClass::AccessDenied, "AccessDeniedException", 403),
        (ErrorClass::Conflict, "ConflictException", 409),
        (ErrorClass::ResourceNotFound, "ResourceNotFoundException", 404),
        (ErrorClass::Validation, "ValidationException", 400),
        (ErrorClass::Throttling, "ThrottlingException", 429),
        (ErrorClass::ServiceQuotaExceeded, "ServiceQuotaExceededException", 402),
        (ErrorClass::InternalServer, "InternalServerException", 500),
        (ErrorClass::InsufficientCapacity, "InsufficientCapacityException", 500),
        (ErrorClass::Service, "ServiceException", 500),
        (ErrorClass::TooManyRequests, "TooManyRequestsException", 429),
        (ErrorClass::InvalidParameterValue, "InvalidParameterValueException", 400),
        (ErrorClass::ResourceConflict, "ResourceConflictException", 409),
        (ErrorClass::NetworkConnectorLimitExceeded, "NetworkConnectorLimitExceededException", 400),
    ] {
        assert_eq!((class.name(), class.status()), (name, status));
    }
    let names: std::collections::BTreeSet<&str> = ErrorClass::all().map(ErrorClass::name).collect();
    assert_eq!(names.len(), ErrorClass::all().count());
}

#[test]
fn operations_name_the_classes_of_their_model() {
    let class = |name| {
        let found = operation(name);
        (found.throttled(), found.internal(), found.invalid())
    };
    let microvms = (ErrorClass::Throttling, ErrorClass::InternalServer, ErrorClass::Validation);
    let core = (ErrorClass::TooManyRequests, ErrorClass::Service, ErrorClass::InvalidParameterValue);
    assert_eq!((class(RunMicrovm), class(ListTags)), (microvms, microvms));
    assert_eq!(class(GetNetworkConnector), core);
    assert_eq!(operation(SuspendMicrovm).conflict(), ErrorClass::Conflict);
    assert_eq!(operation(TagResource).conflict(), ErrorClass::ResourceConflict);
    assert_eq!(operation(DeleteNetworkConnector).conflict(), ErrorClass::ResourceConflict);
    assert!(operation(RunMicrovm).models(ErrorClass::InsufficientCapacity));
    assert!(!operation(GetMicrovm).models(ErrorClass::Conflict));
}

#[test]
fn absent_members_are_null_or_not_there() {
    let microvm = answer(GetMicrovm, json!({"microvmId": "microvm-1", "state": "RUNNING"}));
    assert_eq!(microvm.as_object().unwrap().len(), 14);
    for name in ["stateReason", "terminatedAt", "terminationReasonCode", "executionRoleArn", "idlePolicy"] {
        assert_eq!(microvm.get(name), Some(&Value::Null), "{name}");
    }
    let page = answer(ListMicrovms, json!({"items": [{"microvmId": "microvm-1"}]}));
    assert_eq!(page["nextToken"], Value::Null);
    assert_eq!(page["items"][0].as_object().unwrap().len(), 5);
    let connectors = answer(
        ListNetworkConnectors,
        json!({"NetworkConnectors": [{"Id": "nc-1", "State": null}], "NextMarker": null}),
    );
    assert_eq!(connectors, json!({"NetworkConnectors": [{"Id": "nc-1"}]}));
    let build = answer(GetMicrovmImageBuild, json!({"buildId": "b"}));
    assert_eq!((build.get("snapshotBuild"), build.get("stateReason")), (None, Some(&Value::Null)));
    let version = answer(GetMicrovmImageVersion, json!({"kmsKeyIdentifier": null}));
    assert_eq!((version.get("kmsKeyIdentifier"), version.get("hooks")), (None, Some(&Value::Null)));
    assert_eq!(answer(GetMicrovmImage, json!({"tags": {}}))["tags"], json!({}));
    assert_eq!(answer(UpdateMicrovmImage, json!({})).get("tags"), None);
    assert_eq!(answer(CreateMicrovmImage, json!({})).get("tags"), Some(&Value::Null));
}

#[test]
fn empty_answers() {
    for name in [SuspendMicrovm, ResumeMicrovm, TerminateMicrovm] {
        assert_eq!(answer(name, json!({})), json!({}));
    }
    for name in [TagResource, UntagResource] {
        let reply = operation(name).reply(Map::new());
        assert_eq!((reply.status, reply.content_type, reply.body), (204, None, Vec::new()));
    }
    let statuses = |status| operations().iter().filter(move |operation| operation.success == status).count();
    assert_eq!((statuses(200), statuses(201), statuses(202), statuses(204)), (24, 1, 3, 2));
}

#[test]
fn times_have_the_form_of_the_service() {
    for (seconds, nanos, microvms, core) in [
        (1_785_391_920, 123_456_789, "1785391920.123", "2026-07-30T06:12:00.123Z"),
        (0, 0, "0.0", "1970-01-01T00:00:00.000Z"),
        (1_785_391_920, 999_999_999, "1785391920.999", "2026-07-30T06:12:00.999Z"),
    ] {
        assert_eq!(Service::Microvms.timestamp(seconds, nanos).to_string(), microvms);
        assert_eq!(Service::Core.timestamp(seconds, nanos), core);
    }
    assert_eq!(Service::Core.timestamp(i64::MAX, 0), Value::Null);
    assert!(Service::Microvms.timestamp(i64::MAX, u32::MAX).is_number());
}
