"""Quotas: what is answered when there is too much of something.

The quotas are AWS's own but for memory, which `deploy/test` sets: an account of the test has little of it.
"""

import pytest
from botocore.exceptions import ClientError

from rig.clients import refusal
from rig.connectors import remove, settled
from rig.fleet import Fleet
from rig.images import Image, Images
from rig.microvms import Microvms
from rig.waiting import until
from rig.wire import Answer, Wire, segment

IMAGES = "/2025-09-09/microvm-images"
MICROVMS = "/2025-09-09/microvms"
BUILDS_MAX = 5
IMAGES_MAX = 100
VERSIONS_MAX = 50
CONNECTORS_MAX = 100
CONNECTOR_VERSIONS_MAX = 50
# More than the memory that deploy/test gives the account, at 512 MiB each.
LAUNCHES_MAX = 64
QUOTA_MEMBERS = {"message", "quotaCode", "serviceCode", "resourceId", "resourceType"}


@pytest.mark.row(35)
def test_builds_at_a_time(images: Images, fleet: Fleet, wire: Wire) -> None:
    slow = images.slow()
    refused: Answer | None = None
    for number in range(BUILDS_MAX + 3):
        body = images.configuration(slow) | {"name": fleet.name(f"build-{number}")}
        answer = wire.request("POST", IMAGES, body)
        if answer.status != 201:
            refused = answer
            break
        images.note(Image(body["name"], answer.json()["imageArn"]))
    assert refused is not None and number <= BUILDS_MAX, f"{number} builds at a time"
    expected = f"Account {fleet.account} has reached the maximum number of concurrent builds allowed."
    assert (refused.status, refused.error, refused.message) == (402, "ServiceQuotaExceededException", expected)
    assert set(refused.json()) == QUOTA_MEMBERS
    # Nothing was made.
    assert wire.request("GET", f"{IMAGES}/{segment(fleet.image_arn(body['name']))}").status == 404


def test_images_of_an_account(images: Images) -> None:
    with pytest.raises(ClientError) as error:
        for number in range(IMAGES_MAX + 1):
            images.create(f"many-{number}", images.absent())
    assert refusal(error.value)[:2] == (402, "ServiceQuotaExceededException")


def test_versions_of_an_image(images: Images) -> None:
    images.remove_all()
    image = images.broken("versions")
    api = images.api
    for number in range(2, VERSIONS_MAX + 1):
        answer = api.update_microvm_image(imageIdentifier=image.arn, **images.configuration(images.absent()))
        assert answer["imageVersion"] == f"{number}.0"
        images.settled(image.arn, "UPDATE_FAILED")
    with pytest.raises(ClientError) as error:
        api.update_microvm_image(imageIdentifier=image.arn, **images.configuration(images.absent()))
    assert refusal(error.value)[:2] == (402, "ServiceQuotaExceededException")


@pytest.mark.row(76)
def test_memory_of_an_account(plain: Image, microvms: Microvms, wire: Wire) -> None:
    for _ in range(LAUNCHES_MAX):
        answer = wire.request("POST", MICROVMS, {"imageIdentifier": plain.arn})
        if answer.status != 200:
            break
        microvms.note(answer.json()["microvmId"])
    expected = {
        "message": "The base maximum allocated memory limit has been reached for this account.",
        "quotaCode": None,
        "serviceCode": None,
        "resourceId": None,
        "resourceType": None,
    }
    assert (answer.status, answer.error, answer.json()) == (402, "ServiceQuotaExceededException", expected), answer
    with pytest.raises(ClientError) as error:
        microvms.api.run_microvm(imageIdentifier=plain.arn)
    assert refusal(error.value)[:2] == (402, "ServiceQuotaExceededException")


@pytest.mark.server_errors
def test_no_host_has_room(plain: Image, microvms: Microvms, fleet: Fleet) -> None:
    hosts = [host["spec"]["hostId"] for host in fleet.json("status")["hosts"]]
    for host in hosts:
        fleet.torpor("hosts", "drain", host)
    try:
        with pytest.raises(ClientError) as error:
            microvms.api.run_microvm(imageIdentifier=plain.arn)
        assert refusal(error.value)[:2] == (500, "InsufficientCapacityException")
    finally:
        for host in hosts:
            fleet.torpor("hosts", "undrain", host)
    until("a host to take launches again", lambda: _launches(plain, microvms), within=30, every=0.5)


def _launches(plain: Image, microvms: Microvms) -> bool:
    try:
        microvms.launch(plain.arn)
    except ClientError as error:
        assert refusal(error)[1] == "InsufficientCapacityException", error
        return False
    return True


def test_connectors_of_an_account(core, fleet: Fleet) -> None:
    made = []
    try:
        with pytest.raises(ClientError) as error:
            for number in range(CONNECTORS_MAX + 1):
                made.append(core.create_network_connector(**connector(fleet, f"many-{number}"))["Arn"])
        assert refusal(error.value)[:2] == (400, "NetworkConnectorLimitExceededException")
    finally:
        remove(core, made)


def test_versions_of_a_connector(core, fleet: Fleet) -> None:
    arn = core.create_network_connector(**connector(fleet, "versions"))["Arn"]

    def update(number: int) -> None:
        settled(core, arn)
        changed = connector(fleet, "versions", subnet=f"subnet-{number}")
        core.update_network_connector(
            Identifier=arn, ClientToken=f"version-{number}", Configuration=changed["Configuration"]
        )

    try:
        for number in range(2, CONNECTOR_VERSIONS_MAX + 1):
            update(number)
        with pytest.raises(ClientError) as error:
            update(CONNECTOR_VERSIONS_MAX + 1)
        assert refusal(error.value)[:2] == (400, "NetworkConnectorLimitExceededException")
    finally:
        remove(core, [arn])


def connector(fleet: Fleet, label: str, subnet: str = "subnet-1") -> dict:
    """A complete create."""
    egress = {"SubnetIds": [subnet], "NetworkProtocol": "IPv4", "AssociatedComputeResourceTypes": ["MicroVm"]}
    return {
        "Name": fleet.name(label),
        "OperatorRole": fleet.role_arn,
        "ClientToken": fleet.name(label),
        "Configuration": {"VpcEgressConfiguration": egress},
    }
