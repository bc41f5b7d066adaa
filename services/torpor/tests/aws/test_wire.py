"""The manner of answers: headers, nulls, times, paths, and what is said where nothing is."""

import re
import time
import uuid

import pytest

from rig import models
from rig.fleet import Fleet
from rig.images import Image
from rig.wire import Answer, Signing, Wire, segment

IMAGES = "/2025-09-09/microvm-images"
MICROVMS = "/2025-09-09/microvms"
CONNECTORS = "/2026-04-04/network-connectors"
TAGS = "/2017-03-31/tags"
HEX = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


@pytest.mark.row(89)
def test_the_class_of_an_error_is_in_a_header(wire: Wire) -> None:
    for answer in (
        wire.request("GET", f"{MICROVMS}/microvm-{uuid.uuid4()}"),
        wire.request("POST", IMAGES, {}),
        wire.request("GET", f"{CONNECTORS}/nobody"),
        wire.request("GET", IMAGES, signing=Signing(key=("AKIAAAAAAAAAAAAAAAAA", "x" * 40))),
    ):
        assert answer.status >= 400
        assert re.fullmatch(r"\w+Exception", answer.error or ""), answer
        assert "__type" not in answer.json()
        assert answer.headers["Content-Type"] == "application/json"


def test_every_answer_has_a_request_id(wire: Wire) -> None:
    seen = set()
    for answer in (
        wire.request("GET", IMAGES),
        wire.request("GET", f"{MICROVMS}/microvm-{uuid.uuid4()}"),
        wire.request("GET", IMAGES, signing=Signing(key=("AKIAAAAAAAAAAAAAAAAA", "x" * 40))),
        wire.request("GET", "/no/such/path"),
    ):
        request_id = answer.headers["x-amzn-requestid"]
        assert re.fullmatch(HEX, request_id), answer
        seen.add(request_id)
    assert len(seen) == 4


@pytest.mark.row(90)
def test_times_are_seconds_with_a_fraction(plain: Image, wire: Wire) -> None:
    answer = wire.request("GET", f"{IMAGES}/{segment(plain.arn)}")
    for name in ("createdAt", "updatedAt"):
        text = re.search(rf'"{name}":\s*([0-9.]+)[,}}]'.encode(), answer.body)[1].decode()
        assert "." in text, f"{name} is {text}"
        assert abs(time.time() - float(text)) < 86400


@pytest.mark.row(91)
@pytest.mark.parametrize("path", [IMAGES, CONNECTORS, f"{TAGS}/{{tagged}}"])
def test_the_name_that_signatures_carry(wire: Wire, plain: Image, path: str) -> None:
    path = path.format(tagged=segment(plain.arn))
    assert wire.request("GET", path, signing=Signing(service="lambda")).status == 200
    for service in ("lambda-microvms", "lambda-core", "execute-api"):
        answer = wire.request("GET", path, signing=Signing(service=service))
        assert (answer.status, answer.error) == (403, "InvalidSignatureException"), answer
        assert "'lambda'" in answer.message


@pytest.mark.row(92)
def test_arns_in_paths(plain: Image, wire: Wire) -> None:
    answers = [wire.request("GET", f"{IMAGES}/{spelling}") for spelling in (plain.arn, segment(plain.arn))]
    assert [answer.status for answer in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()
    assert wire.request("GET", f"{IMAGES}/{plain.arn}/versions/1.0").status == 200
    assert wire.request("GET", f"{TAGS}/{plain.arn}").status == 200


@pytest.mark.row(93)
def test_an_arn_with_a_slash(plain: Image, wire: Wire) -> None:
    slashed = plain.arn.replace(":microvm-image:", ":microvm-image/")
    answer = wire.request("GET", f"{IMAGES}/{segment(slashed)}")
    assert (answer.status, answer.error) == (403, "AccessDeniedException"), answer
    # Unencoded it is another path.
    assert wire.request("GET", f"{IMAGES}/{slashed}").status == 404


def test_an_arn_of_another_account(wire: Wire, fleet: Fleet) -> None:
    foreign = fleet.image_arn("app", account="111111111111")
    for method, suffix in (("GET", ""), ("GET", "/versions"), ("DELETE", ""), ("GET", "/versions/1.0/builds")):
        answer = wire.request(method, f"{IMAGES}/{segment(foreign)}{suffix}")
        assert (answer.status, answer.error) == (403, "AccessDeniedException"), answer
        assert answer.json()["Message"] and "message" not in answer.json()
    answer = wire.request("POST", MICROVMS, {"imageIdentifier": foreign})
    assert (answer.status, answer.error) == (403, "AccessDeniedException"), answer


def test_the_bare_name_of_an_image(plain: Image, wire: Wire) -> None:
    answer = wire.request("GET", f"{IMAGES}/{plain.name}")
    assert (answer.status, answer.message) == (400, f"Invalid ARN format: {plain.name}"), answer


def test_an_image_that_is_not_there(wire: Wire, fleet: Fleet) -> None:
    arn = fleet.image_arn(fleet.name("never-was"))
    answer = wire.request("GET", f"{IMAGES}/{segment(arn)}")
    expected = {
        "message": f"MicroVMImage not found for MicroVMImageID: {arn}",
        "resourceId": None,
        "resourceType": None,
    }
    assert (answer.status, answer.error, answer.json()) == (404, "ResourceNotFoundException", expected)
    answer = wire.request("GET", f"{IMAGES}/{segment(arn)}/versions/1.0")
    expected = f"MicroVMImage not found for MicroVMImage: {arn}, Version: 1.0"
    assert (answer.status, answer.error, answer.message) == (404, "ResourceNotFoundException", expected)


@pytest.mark.parametrize(
    "path",
    ["/", "/2025-09-09", "/2025-09-09/functions", "/2015-03-31/functions", f"{MICROVMS}/x/y/z", "/%", "//", "/\u00e9"],
)
def test_paths_that_lead_nowhere(wire: Wire, path: str) -> None:
    answer = wire.request("GET", segment(path).replace("%2F", "/").replace("%25", "%"))
    assert answer.status in (400, 403, 404), answer


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/2015-03-31/functions"), ("POST", "/2026-04-04/nothing"), ("DELETE", IMAGES)]
)
def test_operations_that_there_are_not(wire: Wire, method: str, path: str) -> None:
    answer = wire.request(method, path)
    assert (answer.status, answer.error) == (404, "UnknownOperationException"), answer
    assert (answer.headers["Content-Type"], answer.json()) == ("application/json", {"message": None})


@pytest.mark.parametrize(
    ("method", "path"), [("DELETE", IMAGES), ("PUT", MICROVMS), ("PATCH", CONNECTORS), ("TRACE", IMAGES)]
)
def test_methods_that_a_path_does_not_have(wire: Wire, method: str, path: str) -> None:
    answer = wire.request(method, path)
    assert answer.status in (403, 404, 405), answer


def test_answers_have_the_members_of_the_model(plain: Image, fleet: Fleet, api) -> None:
    """boto3 reads what the model requires: a member that is absent where it is required would be absent here."""
    calls = {
        "GetMicrovmImage": {"imageIdentifier": plain.arn},
        "GetMicrovmImageVersion": {"imageIdentifier": plain.arn, "imageVersion": "1.0"},
        "ListMicrovmImages": {},
        "ListMicrovmImageVersions": {"imageIdentifier": plain.arn},
        "ListMicrovmImageBuilds": {"imageIdentifier": plain.arn, "imageVersion": "1.0"},
        "ListManagedMicrovmImages": {},
        "ListManagedMicrovmImageVersions": {"imageIdentifier": fleet.base_arn},
        "ListMicrovms": {},
        "ListTags": {"Resource": plain.arn},
    }
    for operation, arguments in calls.items():
        answer = getattr(api, models.method(operation))(**arguments)
        shape = models.operation(models.MICROVMS, operation).output_shape
        assert set(shape.required_members) <= set(answer), operation
        if "items" in shape.members:
            required = set(shape.members["items"].member.required_members)
            assert all(required <= set(item) for item in answer["items"]), operation


def test_bodies_that_are_not_asked_for(plain: Image, wire: Wire) -> None:
    """Operations without a body do not look at one."""
    answer: Answer = wire.request("GET", f"{IMAGES}/{segment(plain.arn)}", {"imageIdentifier": "another"})
    assert (answer.status, answer.json()["imageArn"]) == (200, plain.arn)
