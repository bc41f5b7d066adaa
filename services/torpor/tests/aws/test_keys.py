"""Access keys of their own: made, used, narrowed by policies, expired and deleted; and what is recorded of each request."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from botocore.exceptions import ClientError

from rig.clients import Boto, refusal
from rig.connectors import remove, settled
from rig.fleet import Fleet
from rig.images import Image
from rig.journal import Journal
from rig.microvms import Microvms
from rig.waiting import until
from rig.wire import Answer, Signing, Wire, segment

IMAGES = "/2025-09-09/microvm-images"
MICROVMS = "/2025-09-09/microvms"


@dataclass(frozen=True)
class Key:
    """A key and its secret."""

    id: str
    secret: str

    @property
    def pair(self) -> tuple[str, str]:
        """For clients."""
        return self.id, self.secret


def allow(*actions: str, resources: tuple[str, ...] = ("*",)) -> dict:
    """A statement that permits."""
    return {"Effect": "Allow", "Action": list(actions), "Resource": list(resources)}


def deny(*actions: str, resources: tuple[str, ...] = ("*",)) -> dict:
    """A statement that forbids."""
    return allow(*actions, resources=resources) | {"Effect": "Deny"}


@pytest.fixture
def make_key(fleet: Fleet) -> Iterator[Callable[..., Key]]:
    """Makes keys by `torpor key create`; they are deleted with the test."""
    made = []

    def make(*statements: dict, expires: str | None = None) -> Key:
        arguments = ["key", "create", "--description", "test"]
        arguments += ["--expires", expires] if expires else []
        policy = json.dumps({"Version": "2012-10-17", "Statement": list(statements)}) if statements else None
        arguments += ["--policy", "-"] if policy else []
        answer = json.loads(fleet.torpor(*arguments, "-o", "json", input=policy))
        key = Key(answer["accessKey"]["accessKeyId"], answer["secretAccessKey"])
        made.append(key.id)
        return key

    yield make
    for key_id in made:
        if key_id in [key["accessKeyId"] for key in json.loads(fleet.torpor("key", "list", "-o", "json"))]:
            fleet.torpor("key", "delete", key_id)


def known(wire: Wire, key: Key) -> None:
    """Waits until the edge knows a key."""

    def ask() -> bool:
        return wire.request("GET", IMAGES, signing=Signing(key=key.pair)).error != "UnrecognizedClientException"

    until(f"{key.id} to be known", ask, within=10)


def denied(answer: Answer, fleet: Fleet, action: str, resource: str) -> None:
    """A 403 that says who may not do what to what."""
    assert (answer.status, answer.error) == (403, "AccessDeniedException"), answer
    assert set(answer.json()) == {"Message"}
    message = answer.message
    assert message.startswith(f"User: arn:aws:iam::{fleet.account}:user/"), message
    assert message.endswith(f" is not authorized to perform: {action} on resource: {resource}"), message


def test_a_key_of_its_own(make_key, wire: Wire) -> None:
    key = make_key()
    known(wire, key)
    assert wire.request("GET", IMAGES, signing=Signing(key=key.pair)).status == 200
    wrong = Signing(key=(key.id, key.secret[::-1]))
    assert wire.request("GET", IMAGES, signing=wrong).error == "InvalidSignatureException"


def test_a_deleted_key(make_key, wire: Wire, fleet: Fleet) -> None:
    key = make_key()
    known(wire, key)
    fleet.torpor("key", "delete", key.id)

    def refused() -> bool:
        return wire.request("GET", IMAGES, signing=Signing(key=key.pair)).error == "UnrecognizedClientException"

    until("the key to be gone", refused, within=5)


def test_an_expired_key(make_key, wire: Wire) -> None:
    key = make_key(expires="3s")
    known(wire, key)

    def refused() -> bool:
        answer = wire.request("GET", IMAGES, signing=Signing(key=key.pair))
        assert answer.status in (200, 403), answer
        return answer.status == 403

    until("the key to expire", refused, within=15)


def test_keys_rotate(make_key, wire: Wire, fleet: Fleet) -> None:
    """Two keys at a time; deleting the older one leaves the newer."""
    older, newer = make_key(), make_key()
    for key in (older, newer):
        known(wire, key)
    fleet.torpor("key", "delete", older.id)
    assert wire.request("GET", IMAGES, signing=Signing(key=newer.pair)).status == 200


def test_secrets_are_shown_once(make_key, fleet: Fleet) -> None:
    key = make_key()
    listed = fleet.torpor("key", "list", "-o", "json")
    assert key.id in listed and key.secret not in listed


def test_silence_denies(make_key, wire: Wire, fleet: Fleet, plain: Image) -> None:
    key = make_key(allow("lambda:ListMicrovmImages"))
    known(wire, key)
    signing = Signing(key=key.pair)
    assert wire.request("GET", IMAGES, signing=signing).status == 200
    denied(wire.request("GET", MICROVMS, signing=signing), fleet, "lambda:ListMicrovms", "*")
    answer = wire.request("GET", f"{IMAGES}/{plain.arn}", signing=signing)
    denied(answer, fleet, "lambda:GetMicrovmImage", plain.arn)


def test_patterns_of_images(make_key, wire: Wire, fleet: Fleet, plain: Image, hooked: Image) -> None:
    pattern = f"arn:aws:lambda:*:*:microvm-image:{plain.name[:-1]}?"
    key = make_key(allow("lambda:Get*", resources=(pattern,)))
    known(wire, key)
    signing = Signing(key=key.pair)
    assert wire.request("GET", f"{IMAGES}/{plain.arn}", signing=signing).status == 200
    answer = wire.request("GET", f"{IMAGES}/{hooked.arn}", signing=signing)
    denied(answer, fleet, "lambda:GetMicrovmImage", hooked.arn)


def test_denial_wins(make_key, wire: Wire, fleet: Fleet, plain: Image) -> None:
    key = make_key(allow("*"), deny("lambda:*Image", resources=(plain.arn,)))
    known(wire, key)
    signing = Signing(key=key.pair)
    answer = wire.request("GET", f"{IMAGES}/{plain.arn}", signing=signing)
    denied(answer, fleet, "lambda:GetMicrovmImage", plain.arn)
    assert wire.request("GET", f"{IMAGES}/{plain.arn}/versions", signing=signing).status == 200


def test_roles_and_connectors_must_be_passed(
    make_key, wire: Wire, fleet: Fleet, plain: Image, microvms: Microvms
) -> None:
    body = {"imageIdentifier": plain.arn, "executionRoleArn": fleet.role_arn}
    run = allow("lambda:RunMicrovm")
    pass_role = allow("iam:PassRole", resources=(fleet.role_arn,))
    pass_ingress = allow("lambda:PassNetworkConnector", resources=("arn:*:HTTP_INGRESS",))
    pass_egress = allow("lambda:PassNetworkConnector", resources=("arn:*:INTERNET_EGRESS",))
    for statements, action, resource in (
        ((run, pass_ingress, pass_egress), "iam:PassRole", fleet.role_arn),
        ((run, pass_role, pass_egress), "lambda:PassNetworkConnector", fleet.connector_arn("HTTP_INGRESS")),
        ((run, pass_role, pass_ingress), "lambda:PassNetworkConnector", fleet.connector_arn("INTERNET_EGRESS")),
    ):
        key = make_key(*statements)
        known(wire, key)
        answer = wire.request("POST", MICROVMS, body, signing=Signing(key=key.pair))
        denied(answer, fleet, action, resource)
    key = make_key(run, pass_role, pass_ingress, pass_egress)
    known(wire, key)
    answer = wire.request("POST", MICROVMS, body, signing=Signing(key=key.pair))
    assert answer.status == 200, answer
    microvms.note(answer.json()["microvmId"])


def test_the_policy_that_the_help_shows(make_key, wire: Wire, fleet: Fleet, plain: Image, microvms: Microvms) -> None:
    """As it is printed, for an image of this name: launch, look, open, end, and nothing else."""
    printed = fleet.torpor("key", "create", "--help")
    policy = json.loads(printed[printed.index("\n  {") : printed.index("\n  }") + 4].replace(":web", f":{plain.name}"))
    key = make_key(*policy["Statement"])
    known(wire, key)
    signing = Signing(key=key.pair)
    launched = wire.request("POST", MICROVMS, {"imageIdentifier": plain.arn}, signing=signing)
    assert launched.status == 200, launched
    path = f"{MICROVMS}/{launched.json()['microvmId']}"
    microvms.note(launched.json()["microvmId"])
    assert wire.request("GET", path, signing=signing).status == 200
    token = {"expirationInMinutes": 5, "allowedPorts": [{"allPorts": {}}]}
    assert wire.request("POST", f"{path}/auth-token", token, signing=signing).status == 200
    answer = wire.request("GET", f"{IMAGES}/{plain.arn}", signing=signing)
    denied(answer, fleet, "lambda:GetMicrovmImage", plain.arn)
    assert wire.request("DELETE", path, signing=signing).status == 200


def test_a_microvm_is_under_what_is_said_of_its_image(
    make_key, wire: Wire, fleet: Fleet, plain: Image, microvms: Microvms
) -> None:
    key = make_key(allow("*"), deny("lambda:TerminateMicrovm", resources=(plain.arn,)))
    known(wire, key)
    microvm_id = microvms.launch(plain.arn)["microvmId"]
    answer = wire.request("DELETE", f"{MICROVMS}/{microvm_id}", signing=Signing(key=key.pair))
    resource = f"arn:aws:lambda:{fleet.region}:{fleet.account}:microvm:{microvm_id}"
    denied(answer, fleet, "lambda:TerminateMicrovm", resource)
    assert microvms.get(microvm_id)["state"] in ("PENDING", "RUNNING")


def test_no_name_of_a_connector_is_a_way_around_a_denial(make_key, wire: Wire, fleet: Fleet, core) -> None:
    egress = {"SubnetIds": ["subnet-1"], "NetworkProtocol": "IPv4", "AssociatedComputeResourceTypes": ["MicroVm"]}
    name = fleet.name("fenced")
    made = core.create_network_connector(
        Name=name,
        OperatorRole=fleet.role_arn,
        ClientToken=name,
        Configuration={"VpcEgressConfiguration": egress},
        Tags={"torpor:allow-cidrs": "192.0.2.0/24"},
    )
    try:
        settled(core, made["Arn"])
        fenced = deny("lambda:DeleteNetworkConnector", "lambda:UpdateNetworkConnector", resources=(made["Arn"],))
        key = make_key(allow("*"), fenced)
        known(wire, key)
        signing = Signing(key=key.pair)
        by_name = made["Arn"].rsplit(":", 1)[0] + f":{name}"
        for identifier in (made["Id"], name, made["Arn"], by_name):
            path = f"/2026-04-04/network-connectors/{segment(identifier)}"
            answer = wire.request("DELETE", path, signing=signing)
            assert (answer.status, answer.error) == (403, "AccessDeniedException"), (identifier, answer)
        # Its tags are its rules.
        for arn in (made["Arn"], by_name):
            tags = f"/2017-03-31/tags/{segment(arn)}"
            answer = wire.request("DELETE", tags, query="tagKeys=torpor%3Aallow-cidrs", signing=signing)
            assert (answer.status, answer.error) == (403, "AccessDeniedException"), (arn, answer)
        assert wire.request("POST", tags, {"Tags": {"team": "a"}}, signing=signing).status == 204
    finally:
        remove(core, [made["Arn"]])


def test_rights_come_before_sense(make_key, wire: Wire) -> None:
    """Who may not ask learns nothing about whether the question makes sense."""
    key = make_key(allow("lambda:ListMicrovms"))
    known(wire, key)
    answer = wire.request("POST", IMAGES, {"name": "bad name!"}, signing=Signing(key=key.pair))
    assert (answer.status, answer.error) == (403, "AccessDeniedException"), answer


def test_boto3_with_a_key_of_its_own(make_key, wire: Wire, fleet: Fleet, journal: Journal) -> None:
    key = make_key(allow("lambda:List*"))
    known(wire, key)
    boto = Boto(fleet, journal, key.pair)
    assert "items" in boto.microvms.list_microvms()
    with pytest.raises(ClientError) as error:
        boto.microvms.get_microvm(microvmIdentifier="microvm-0190a5e2-7c3b-4f00-8000-000000000001")
    assert refusal(error.value)[:2] == (403, "AccessDeniedException")


def record_of(fleet: Fleet, answer: Answer) -> str:
    """The line that a request left."""
    trails = [fleet.data_dir / "audit" / f"aws-api{kind}.jsonl" for kind in ("", "-unauthenticated")]
    request_id = answer.headers["x-amzn-requestid"]

    def found() -> str | None:
        lines = (line for trail in trails if trail.exists() for line in trail.read_text().splitlines())
        return next((line for line in lines if request_id in line), None)

    return until("the record of a request", found, within=10)


def test_a_right_that_is_missing_is_recorded(make_key, wire: Wire, fleet: Fleet, plain: Image) -> None:
    key = make_key(allow("lambda:RunMicrovm", "lambda:PassNetworkConnector"))
    known(wire, key)
    body = {"imageIdentifier": plain.arn, "executionRoleArn": fleet.role_arn}
    answer = wire.request("POST", MICROVMS, body, signing=Signing(key=key.pair))
    denied(answer, fleet, "iam:PassRole", fleet.role_arn)
    record = json.loads(record_of(fleet, answer))
    assert record["missing_right"] == f"iam:PassRole on {fleet.role_arn}"
    assert (record["action"], record["resource"]) == ("lambda:RunMicrovm", plain.arn)


def test_every_request_is_recorded(wire: Wire, fleet: Fleet, hooked: Image, microvms: Microvms) -> None:
    refused = wire.request("GET", f"{MICROVMS}/microvm-0190a5e2-7c3b-4f00-8000-000000000001")
    launched = wire.request("POST", MICROVMS, {"imageIdentifier": hooked.arn, "runHookPayload": "for nobody else"})
    microvms.note(launched.json()["microvmId"])
    unknown = wire.request("GET", IMAGES, signing=Signing(key=("AKIAAAAAAAAAAAAAAAAA", "x" * 40)))
    root = fleet.variables["AWS_ACCESS_KEY_ID"]
    for answer, facts in (
        (
            refused,
            {
                "action": "lambda:GetMicrovm",
                "result": "ResourceNotFoundException",
                "status": 404,
                "access_key_id": root,
            },
        ),
        (
            launched,
            {
                "action": "lambda:RunMicrovm",
                "result": "ok",
                "status": 200,
                "resource": hooked.arn,
                "access_key_id": root,
                "authenticated": True,
                "account_id": fleet.account,
            },
        ),
        (
            unknown,
            {
                "action": "lambda:ListMicrovmImages",
                "result": "UnrecognizedClientException",
                "status": 403,
                "access_key_id": "AKIAAAAAAAAAAAAAAAAA",
                "authenticated": False,
            },
        ),
    ):
        line = record_of(fleet, answer)
        record = json.loads(line)
        assert {name: record[name] for name in facts} == facts
        assert "for nobody else" not in line and fleet.variables["AWS_SECRET_ACCESS_KEY"] not in line


def test_a_key_without_rights_may_ask_whose_it_is(make_key, wire: Wire, fleet: Fleet, journal: Journal) -> None:
    key = make_key(deny("*"))
    known(wire, key)
    assert Boto(fleet, journal, key.pair).client("sts").get_caller_identity()["UserId"] == key.id
