"""RunMicrovm and what follows: its answer and defaults, states, ends, and what is refused."""

import re
import uuid
from dataclasses import dataclass, field

import pytest
from botocore.exceptions import ClientError, ParamValidationError

from rig.clients import refusal
from rig.fleet import Fleet
from rig.images import Image
from rig.microvms import Microvms
from rig.waiting import until
from rig.wire import Answer, Wire, segment

MICROVMS = "/2025-09-09/microvms"
MEMBERS = {
    "egressNetworkConnectors",
    "endpoint",
    "executionRoleArn",
    "idlePolicy",
    "imageArn",
    "imageVersion",
    "ingressNetworkConnectors",
    "maximumDurationInSeconds",
    "microvmId",
    "startedAt",
    "state",
    "stateReason",
    "terminatedAt",
    "terminationReasonCode",
}
ITEM_MEMBERS = {"microvmId", "state", "imageArn", "imageVersion", "startedAt"}
HEX = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
PAYLOAD_MAX = 4096


@dataclass
class Story:
    """A microVM from its launch to its end, and every raw answer on the way."""

    image: Image
    launched: Answer
    answers: dict[str, Answer] = field(default_factory=dict)
    states: list[str] = field(default_factory=list)

    @property
    def id(self) -> str:
        """Its id."""
        return self.launched.json()["microvmId"]


@pytest.fixture(scope="module")
def story(plain: Image, wire: Wire, module_microvms: Microvms) -> Story:
    """Run, suspend, suspend's effect, resume, terminate, and once more of each that has something to say."""
    launched = wire.request("POST", MICROVMS, {"imageIdentifier": plain.arn})
    assert launched.status == 200, launched
    story = Story(plain, launched)
    module_microvms.note(story.id)
    path = f"{MICROVMS}/{story.id}"

    def note(step: str, method: str, suffix: str = "") -> None:
        story.answers[step] = wire.request(method, path + suffix)

    def follow(state: str) -> None:
        """Polls until a state, keeping every state seen."""

        def ask() -> bool:
            seen = wire.request("GET", path).json()["state"]
            if not story.states or story.states[-1] != seen:
                story.states.append(seen)
            return seen == state

        until(f"{story.id} to be {state}", ask, every=0.05)

    follow("RUNNING")
    note("running", "GET")
    note("suspend", "POST", "/suspend")
    follow("SUSPENDED")
    note("suspended", "GET")
    note("resume", "POST", "/resume")
    follow("RUNNING")
    note("resumed", "GET")
    note("terminate", "DELETE")
    follow("TERMINATED")
    note("terminated", "GET")
    note("terminate again", "DELETE")
    note("suspend terminated", "POST", "/suspend")
    note("resume terminated", "POST", "/resume")
    return story


@pytest.mark.row(62)
def test_a_launch_is_answered_at_once(story: Story) -> None:
    microvm = story.launched.json()
    assert (story.launched.status, microvm["state"]) == (200, "PENDING")
    assert microvm["endpoint"] and microvm["microvmId"]


@pytest.mark.row(63)
def test_defaults_are_shown(story: Story, fleet: Fleet) -> None:
    microvm = story.launched.json()
    assert microvm["maximumDurationInSeconds"] == 28800
    assert microvm["ingressNetworkConnectors"] == [fleet.connector_arn("HTTP_INGRESS")]
    assert microvm["egressNetworkConnectors"] == [fleet.connector_arn("INTERNET_EGRESS")]
    assert microvm["idlePolicy"] is None


@pytest.mark.row(66)
def test_no_execution_role_is_needed(story: Story) -> None:
    assert story.launched.json()["executionRoleArn"] is None
    assert story.answers["running"].json()["state"] == "RUNNING"


@pytest.mark.row(77)
def test_ids(story: Story) -> None:
    assert re.fullmatch(f"microvm-{HEX}", story.id)


@pytest.mark.row(
    78, differs="the domain is the fleet's own setting; a UUID that is not the id before it, and no scheme, as there"
)
def test_endpoints(story: Story, fleet: Fleet) -> None:
    label, domain = story.launched.json()["endpoint"].split(".", 1)
    assert re.fullmatch(HEX, label)
    assert label not in story.id
    assert domain == fleet.domain


@pytest.mark.row(79)
def test_members_of_a_microvm(story: Story, hooked: Image, wire: Wire, microvms: Microvms) -> None:
    assert len(MEMBERS) == 14
    assert set(story.launched.json()) == MEMBERS
    for step in ("running", "suspended", "terminated"):
        assert set(story.answers[step].json()) == MEMBERS, step
    launched = microvms.launch(hooked.arn, runHookPayload="nobody repeats this")
    answer = wire.request("GET", f"{MICROVMS}/{launched['microvmId']}")
    assert b"nobody repeats this" not in answer.body


@pytest.mark.row(80)
def test_items_of_a_list(story: Story, wire: Wire) -> None:
    items = wire.request("GET", MICROVMS, query=f"imageIdentifier={segment(story.image.arn)}").json()["items"]
    (item,) = [item for item in items if item["microvmId"] == story.id]
    assert set(item) == ITEM_MEMBERS
    assert item["startedAt"] == story.launched.json()["startedAt"]


@pytest.mark.row(81)
def test_an_ended_one_is_still_there(story: Story, api) -> None:
    assert story.answers["terminated"].json()["state"] == "TERMINATED"
    pages = api.get_paginator("list_microvms").paginate(imageIdentifier=story.image.arn)
    found = {item["microvmId"]: item["state"] for page in pages for item in page["items"]}
    assert found[story.id] == "TERMINATED"


@pytest.mark.row(82)
def test_why_it_ended(story: Story) -> None:
    microvm = story.answers["terminated"].json()
    assert (microvm["stateReason"], microvm["terminationReasonCode"]) == ("Success.", None)
    assert microvm["terminatedAt"] >= microvm["startedAt"]
    assert all(story.answers[step].json()["stateReason"] is None for step in ("running", "suspended", "resumed"))


@pytest.mark.row(83)
def test_ending_it_again(story: Story) -> None:
    answer = story.answers["terminate again"]
    assert (answer.status, answer.json()) == (200, {})


@pytest.mark.row(84)
@pytest.mark.parametrize("call", ["suspend", "resume"])
def test_an_ended_one_keeps_its_state(story: Story, call: str) -> None:
    answer = story.answers[f"{call} terminated"]
    expected = f"The MicroVM {story.id} has been terminated and its state cannot be changed."
    assert (answer.status, answer.error, answer.message) == (400, "ValidationException", expected)


@pytest.mark.row(85)
@pytest.mark.parametrize("call", ["suspend", "resume", "terminate"])
def test_changes_answer_nothing(story: Story, call: str) -> None:
    assert (story.answers[call].status, story.answers[call].json()) == (200, {})


@pytest.mark.row(86)
def test_suspending_needs_no_idle_policy(story: Story) -> None:
    microvm = story.answers["suspended"].json()
    assert (microvm["state"], microvm["idlePolicy"]) == ("SUSPENDED", None)


@pytest.mark.row(87)
def test_resuming(story: Story) -> None:
    after = story.states[story.states.index("SUSPENDED") :]
    assert after[:2] == ["SUSPENDED", "RUNNING"], story.states
    endpoints = {story.answers[step].json()["endpoint"] for step in ("running", "suspended", "resumed", "terminated")}
    assert len(endpoints) == 1


def test_only_known_states_are_shown(story: Story) -> None:
    assert set(story.states) <= {"PENDING", "RUNNING", "SUSPENDING", "SUSPENDED", "TERMINATING", "TERMINATED"}


@pytest.mark.row(88)
@pytest.mark.parametrize(
    ("method", "suffix", "body"),
    [
        ("GET", "", None),
        ("DELETE", "", None),
        ("POST", "/suspend", None),
        ("POST", "/resume", None),
        ("POST", "/auth-token", {"expirationInMinutes": 1, "allowedPorts": [{"allPorts": {}}]}),
        ("POST", "/shell-auth-token", {"expirationInMinutes": 1}),
    ],
)
def test_an_unknown_id(wire: Wire, method: str, suffix: str, body: object) -> None:
    microvm_id = f"microvm-{uuid.uuid4()}"
    answer = wire.request(method, f"{MICROVMS}/{microvm_id}{suffix}", body)
    assert (answer.status, answer.error) == (404, "ResourceNotFoundException"), answer
    expected = {"message": f"MicroVM not found: {microvm_id}", "resourceId": None, "resourceType": None}
    assert answer.json() == expected


@pytest.fixture
def run(wire: Wire, microvms: Microvms):
    """RunMicrovm by raw HTTP."""

    def run(image_identifier: str, **members) -> Answer:
        answer = wire.request("POST", MICROVMS, {"imageIdentifier": image_identifier} | members)
        if answer.status == 200:
            microvms.note(answer.json()["microvmId"])
        return answer

    return run


def violation(value: str, path: str, constraint: str) -> str:
    """One violated constraint, as a whole message."""
    return f"1 validation error detected: Value {value} at '{path}' failed to satisfy constraint: {constraint}"


def refused(answer: Answer, message: str) -> None:
    """A 400 with exactly this message."""
    assert (answer.status, answer.error, answer.message) == (400, "ValidationException", message)


@pytest.mark.row(64)
def test_the_bare_name_of_an_image(run, plain: Image) -> None:
    refused(run(plain.name), "Malformed ARN - doesn't start with 'arn:'")


@pytest.mark.row(65)
def test_an_image_that_is_not_there(run, fleet: Fleet) -> None:
    arn = fleet.image_arn(fleet.name("never-was"))
    answer = run(arn)
    expected = f"No active version found for MicroVM image {arn}"
    assert (answer.status, answer.error, answer.message) == (404, "ResourceNotFoundException", expected)


@pytest.mark.row(67)
@pytest.mark.parametrize("missing", ["autoResumeEnabled", "maxIdleDurationSeconds", "suspendedDurationSeconds"])
def test_an_incomplete_idle_policy(run, plain: Image, missing: str) -> None:
    policy = {"autoResumeEnabled": True, "maxIdleDurationSeconds": 60, "suspendedDurationSeconds": 60}
    del policy[missing]
    refused(run(plain.arn, idlePolicy=policy), violation("null", f"idlePolicy.{missing}", "Member must not be null"))


@pytest.mark.row(68)
def test_a_short_idle_window(run, plain: Image, api) -> None:
    policy = {"autoResumeEnabled": True, "maxIdleDurationSeconds": 59, "suspendedDurationSeconds": 0}
    with pytest.raises(ParamValidationError):
        api.run_microvm(imageIdentifier=plain.arn, idlePolicy=policy)
    constraint = "Member must have value greater than or equal to 60"
    refused(run(plain.arn, idlePolicy=policy), violation("'59'", "idlePolicy.maxIdleDurationSeconds", constraint))


def test_an_idle_policy_is_shown(run, plain: Image) -> None:
    policy = {"autoResumeEnabled": False, "maxIdleDurationSeconds": 60, "suspendedDurationSeconds": 0}
    answer = run(plain.arn, idlePolicy=policy)
    assert (answer.status, answer.json()["idlePolicy"]) == (200, policy)


@pytest.mark.row(69)
def test_the_length_of_a_payload(run, hooked: Image) -> None:
    assert run(hooked.arn, runHookPayload="x" * PAYLOAD_MAX).status == 200
    # Bytes, not characters.
    assert run(hooked.arn, runHookPayload="é" * (PAYLOAD_MAX // 2)).status == 200
    constraint = f"Member must have length less than or equal to {PAYLOAD_MAX}"
    for payload in ("x" * (PAYLOAD_MAX + 1), "é" * (PAYLOAD_MAX // 2) + "x"):
        answer = run(hooked.arn, runHookPayload=payload)
        expected = f"1 validation error detected: Value at 'runHookPayload' failed to satisfy constraint: {constraint}"
        refused(answer, expected)


@pytest.mark.row(70)
def test_a_payload_nobody_takes(run, plain: Image) -> None:
    refused(
        run(plain.arn, runHookPayload="x"),
        "The run hook must be enabled in the MicroVM image to pass the run hook payload",
    )


@pytest.mark.row(71)
def test_the_longest_life(run, plain: Image) -> None:
    answer = run(plain.arn, maximumDurationInSeconds=28800)
    assert (answer.status, answer.json()["maximumDurationInSeconds"]) == (200, 28800)
    constraint = "Member must have value less than or equal to 28800"
    refused(
        run(plain.arn, maximumDurationInSeconds=28801), violation("'28801'", "maximumDurationInSeconds", constraint)
    )


@pytest.mark.row(72)
def test_a_client_token_again(plain: Image, microvms: Microvms, fleet: Fleet) -> None:
    token = fleet.name("run-token")
    first = microvms.launch(plain.arn, clientToken=token, maximumDurationInSeconds=3600)
    again = microvms.launch(plain.arn, clientToken=token, maximumDurationInSeconds=3600)
    assert again["microvmId"] == first["microvmId"]
    microvms.wait(first["microvmId"], "RUNNING")
    microvms.api.suspend_microvm(microvmIdentifier=first["microvmId"])
    microvms.wait(first["microvmId"], "SUSPENDED")
    asleep = microvms.launch(plain.arn, clientToken=token, maximumDurationInSeconds=3600)
    assert (asleep["microvmId"], asleep["state"]) == (first["microvmId"], "SUSPENDED")


@pytest.mark.row(73)
def test_a_client_token_for_something_else(plain: Image, microvms: Microvms, fleet: Fleet) -> None:
    token = fleet.name("run-conflict")
    microvms.launch(plain.arn, clientToken=token)
    with pytest.raises(ClientError) as error:
        microvms.launch(plain.arn, clientToken=token, maximumDurationInSeconds=60)
    assert refusal(error.value)[:2] == (409, "ConflictException")


@pytest.mark.row(75)
@pytest.mark.parametrize("member", ["ingressNetworkConnectors", "egressNetworkConnectors"])
def test_the_short_name_of_a_connector(run, plain: Image, member: str) -> None:
    answer = run(plain.arn, **{member: ["HTTP_INGRESS" if member.startswith("in") else "INTERNET_EGRESS"]})
    assert (answer.status, answer.error) == (400, "ValidationException"), answer
    assert "Malformed network connector ARN" in answer.message


def test_logging_of_a_microvm(run, plain: Image) -> None:
    assert run(plain.arn, logging={"disabled": {}}).status == 200
    assert run(plain.arn, logging={"cloudWatch": {"logGroup": "/mine/app"}}).status == 200


def test_an_execution_role_is_recorded(run, plain: Image, fleet: Fleet) -> None:
    answer = run(plain.arn, executionRoleArn=fleet.role_arn)
    assert (answer.status, answer.json()["executionRoleArn"]) == (200, fleet.role_arn)


def test_lists_by_image_and_version(story: Story, wire: Wire, fleet: Fleet) -> None:
    arn, nobodys = story.image.arn, fleet.image_arn(fleet.name("never-was"))
    mine = wire.request("GET", MICROVMS, query=f"imageIdentifier={segment(arn)}&imageVersion=1.0").json()["items"]
    assert mine and {item["imageArn"] for item in mine} == {arn}
    assert wire.request("GET", MICROVMS, query=f"imageIdentifier={segment(arn)}&imageVersion=9.0").json()["items"] == []
    answer = wire.request("GET", MICROVMS, query=f"imageIdentifier={segment(nobodys)}")
    assert (answer.status, answer.json()["items"]) == (200, [])
