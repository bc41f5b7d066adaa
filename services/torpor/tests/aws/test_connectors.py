"""Network connectors of lambda-core: their life, their versions, and what they let out."""

import datetime
import re
from dataclasses import dataclass, field

import pytest
from botocore.exceptions import ClientError

from rig.clients import refusal
from rig.connectors import gone, remove, settled
from rig.fleet import Fleet
from rig.images import Image
from rig.microvms import Microvms
from rig.waiting import until
from rig.wire import Answer, Wire, segment

CONNECTORS = "/2026-04-04/network-connectors"
ISO_8601 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")


class Connectors:
    """Makes connectors and deletes them with the module."""

    def __init__(self, fleet: Fleet, core) -> None:
        self.fleet = fleet
        self.core = core
        self.made: list[str] = []

    def arguments(self, label: str, **changes) -> dict:
        """A create that is complete; `None` takes a member out, also one of the configuration."""
        egress = {
            "SubnetIds": ["subnet-0a1b2c3d"],
            "SecurityGroupIds": ["sg-0a1b2c3d"],
            "NetworkProtocol": "IPv4",
            "AssociatedComputeResourceTypes": ["MicroVm"],
        }
        members = {
            "Name": self.fleet.name(label),
            "OperatorRole": self.fleet.role_arn,
            "ClientToken": self.fleet.name(label),
            "Configuration": {"VpcEgressConfiguration": egress},
        }
        for name, value in changes.items():
            (egress if name[:3] in ("Sub", "Sec", "Net", "Ass", "Ela") else members)[name] = value
        for group in (egress, members):
            for name in [name for name, value in group.items() if value is None]:
                del group[name]
        return members

    def create(self, label: str, **changes) -> dict:
        """A new connector, PENDING."""
        made = self.core.create_network_connector(**self.arguments(label, **changes))
        self.note(made["Arn"])
        return made

    def note(self, arn: str) -> None:
        """A connector to be deleted at the end."""
        self.made.append(arn)

    def active(self, label: str, **changes) -> dict:
        """A connector that may be used."""
        return settled(self.core, self.create(label, **changes)["Arn"])


@pytest.fixture(scope="module")
def connectors(fleet: Fleet, core):
    """Connectors of this module."""
    connectors = Connectors(fleet, core)
    yield connectors
    remove(core, connectors.made)


@dataclass
class Story:
    """A connector from its creation to its end, and the raw answers on the way."""

    arn: str
    answers: dict[str, Answer] = field(default_factory=dict)


@pytest.fixture(scope="module")
def story(connectors: Connectors, wire: Wire) -> Story:
    """Created, read, updated twice (once with nothing new), deleted."""
    created = wire.request("POST", CONNECTORS, connectors.arguments("life"))
    assert created.status == 202, created
    story = Story(created.json()["Arn"], {"create": created})
    connectors.note(story.arn)
    path = f"{CONNECTORS}/{segment(story.arn)}"

    def note(step: str, method: str, suffix: str = "", body: object = None) -> None:
        story.answers[step] = wire.request(method, path + suffix, body)

    settled(connectors.core, story.arn)
    note("get", "GET")
    same = connectors.arguments("life")["Configuration"]
    note("update with the same", "PUT", body={"ClientToken": "same", "Configuration": same})
    note("get after the same", "GET")
    other = connectors.arguments("life", SubnetIds=["subnet-1", "subnet-2"])["Configuration"]
    note("update", "PUT", body={"ClientToken": "other", "Configuration": other})
    settled(connectors.core, story.arn)
    note("get updated", "GET")
    note("versions", "GET", "/versions")
    note("delete", "DELETE")
    until("the connector to be gone", lambda: gone(connectors.core, story.arn))
    note("gone", "GET")
    return story


def test_a_connector_is_made(story: Story, fleet: Fleet) -> None:
    made = story.answers["create"].json()
    assert (made["State"], made["Version"], made["Name"]) == ("PENDING", 1, fleet.name("life"))
    assert made["Id"].startswith("nc-")
    assert made["Arn"] == f"arn:aws:lambda:{fleet.region}:{fleet.account}:network-connector:{made['Id']}"
    assert made["VersionArn"] == f"{made['Arn']}:1"
    assert made["Configuration"]["VpcEgressConfiguration"]["SubnetIds"] == ["subnet-0a1b2c3d"]


def test_a_connector_is_read(story: Story) -> None:
    read = story.answers["get"].json()
    assert (read["State"], read["StateReason"], read["LatestVersion"]) == ("ACTIVE", "Initial creation", 1)


def test_absent_values_are_left_out(story: Story) -> None:
    for step in ("create", "get", "update", "versions", "delete"):
        assert b"null" not in story.answers[step].body, step


@pytest.mark.row(90)
def test_times_of_connectors(story: Story) -> None:
    text = story.answers["get"].json()["LastModified"]
    assert ISO_8601.fullmatch(text), text
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(text)
    assert abs(age.total_seconds()) < 3600


@pytest.mark.row(157)
def test_an_update_that_changes_nothing(story: Story) -> None:
    answer = story.answers["update with the same"]
    read = story.answers["get after the same"].json()
    assert answer.status == 202
    for seen in (answer.json(), read):
        assert seen["LastUpdateStatus"] == "Successful"
        assert seen["LastUpdateStatusReason"] == "No configuration changes detected"
        assert seen["Version"] == 1


def test_an_update_makes_a_version(story: Story) -> None:
    answer = story.answers["update"]
    assert (answer.status, answer.json()["Version"]) == (202, 2)
    read = story.answers["get updated"].json()
    assert (read["LatestVersion"], read["LatestVersionArn"]) == (2, f"{story.arn}:2")
    assert read["LastUpdateStatus"] == "Successful"
    assert read["Configuration"]["VpcEgressConfiguration"]["SubnetIds"] == ["subnet-1", "subnet-2"]
    listed = story.answers["versions"].json()
    assert [item["Version"] for item in listed["NetworkConnectorVersions"]] == [2, 1]
    assert "NextMarker" not in listed


@pytest.mark.row(158)
def test_a_connector_is_deleted(story: Story) -> None:
    answer = story.answers["delete"]
    assert (answer.status, answer.json()["State"]) == (202, "DELETING")
    assert story.answers["gone"].status == 404


@pytest.mark.row(156)
@pytest.mark.parametrize(
    ("method", "suffix", "body"),
    [("GET", "", None), ("GET", "/versions", None), ("PUT", "", {"ClientToken": "t"}), ("DELETE", "", None)],
)
def test_a_connector_that_is_not_there(wire: Wire, fleet: Fleet, method: str, suffix: str, body: object) -> None:
    answer = wire.request(method, f"{CONNECTORS}/{fleet.name('never-was')}{suffix}", body)
    assert (answer.status, answer.error) == (404, "ResourceNotFoundException"), answer
    assert answer.json()["Message"] and set(answer.json()) == {"Message"}


@pytest.mark.row(154)
@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("ClientToken", "ClientToken is a required field"),
        ("OperatorRole", "NetworkConnectorOperatorRole is required for VPC_EGRESS connector type"),
        ("NetworkProtocol", "NetworkProtocol cannot be null or empty for VPC_EGRESS connector"),
        (
            "AssociatedComputeResourceTypes",
            "AssociatedComputeResourceTypes is required for VPC_EGRESS connector type",
        ),
    ],
)
def test_what_the_service_asks_for(connectors: Connectors, wire: Wire, missing: str, sentence: str) -> None:
    answer = wire.request("POST", CONNECTORS, connectors.arguments("incomplete", **{missing: None}))
    assert (answer.status, answer.error, answer.message) == (400, "InvalidParameterValueException", sentence)


@pytest.mark.row(155)
def test_too_many_subnets(connectors: Connectors, wire: Wire) -> None:
    subnets = [f"subnet-{number}" for number in range(17)]
    # The shape comes before what the service asks for.
    body = connectors.arguments("subnets", SubnetIds=subnets, ClientToken=None)
    answer = wire.request("POST", CONNECTORS, body)
    expected = (
        f"1 validation error detected: Value '[{', '.join(subnets)}]' at "
        "'configuration.vpcEgressConfiguration.subnetIds' failed to satisfy constraint: "
        "Member must have length less than or equal to 16"
    )
    assert (answer.status, answer.error, answer.message) == (400, "ValidationException", expected)
    assert wire.request("POST", CONNECTORS, connectors.arguments("subnets", SubnetIds=subnets[:16])).status == 202
    connectors.note(connectors.fleet.name("subnets"))


def test_names_are_unique(connectors: Connectors) -> None:
    connectors.create("taken")
    with pytest.raises(ClientError) as error:
        connectors.create("taken", ClientToken=connectors.fleet.name("another"))
    assert refusal(error.value)[:2] == (409, "ResourceConflictException")


def test_a_client_token_again(connectors: Connectors) -> None:
    first = connectors.create("token")
    assert connectors.create("token")["Arn"] == first["Arn"]
    with pytest.raises(ClientError) as error:
        connectors.create("token", SubnetIds=["subnet-9"])
    assert refusal(error.value)[:2] == (409, "ResourceConflictException")


def test_a_connector_by_all_its_names(connectors: Connectors, core) -> None:
    made = connectors.active("names")
    for identifier in (made["Arn"], made["Id"], made["Name"], made["VersionArn"]):
        assert core.get_network_connector(Identifier=identifier)["Arn"] == made["Arn"]


def test_lists_of_connectors(connectors: Connectors, core) -> None:
    names = {connectors.active(f"list-{number}")["Name"] for number in range(3)}
    pages = list(core.get_paginator("list_network_connectors").paginate(PaginationConfig={"PageSize": 1}))
    assert all(len(page["NetworkConnectors"]) <= 1 for page in pages)
    found = [item for page in pages for item in page["NetworkConnectors"]]
    assert names <= {item["Name"] for item in found}
    assert {item["Type"] for item in found} == {"VPC_EGRESS"}
    assert len({item["Arn"] for item in found}) == len(found)
    active = core.get_paginator("list_network_connectors").paginate(State="ACTIVE")
    assert names <= {item["Name"] for page in active for item in page["NetworkConnectors"]}
    failed = core.get_paginator("list_network_connectors").paginate(State="FAILED")
    assert not any(page["NetworkConnectors"] for page in failed)


def test_versions_by_boto3(connectors: Connectors, core) -> None:
    arn = connectors.active("versioned")["Arn"]
    versions = core.list_network_connector_versions(Identifier=arn)["NetworkConnectorVersions"]
    assert [version["Version"] for version in versions] == [1]


def test_tags_of_a_connector(connectors: Connectors, api) -> None:
    arn = connectors.create("tags", Tags={"born": "with it"})["Arn"]
    api.tag_resource(Resource=arn, Tags={"later": "on"})
    assert api.list_tags(Resource=arn)["Tags"] == {"born": "with it", "later": "on"}
    api.untag_resource(Resource=arn, TagKeys=["born"])
    assert api.list_tags(Resource=arn)["Tags"] == {"later": "on"}


def test_a_microvm_with_a_connector(connectors: Connectors, plain: Image, microvms: Microvms) -> None:
    connector = connectors.active("used", Tags={"torpor:allow-cidrs": "10.0.0.0/8"})
    launched = microvms.launch(plain.arn, egressNetworkConnectors=[connector["Arn"]])
    assert launched["egressNetworkConnectors"] == [connector["Arn"]]
    microvms.wait(launched["microvmId"], "RUNNING")


def test_a_connector_that_is_not_there_for_a_microvm(plain: Image, microvms: Microvms, fleet: Fleet) -> None:
    arn = f"arn:aws:lambda:{fleet.region}:{fleet.account}:network-connector:nc-0123456789abcdef0"
    with pytest.raises(ClientError) as error:
        microvms.launch(plain.arn, egressNetworkConnectors=[arn])
    status, code, message = refusal(error.value)
    assert (status, code) in ((404, "ResourceNotFoundException"), (400, "ValidationException")), error.value
    assert arn in message or "connector" in message
