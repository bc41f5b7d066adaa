"""Errors of the models, operation by operation, as boto3 raises them.

What is systematic is here: rights, constraints, resources that do not exist, conflicts. Quotas, rates and outages have
modules of their own. `test_session.py` checks that nothing the models list is left out without a reason.
"""

import json

import pytest
from botocore.exceptions import ClientError

from rig import models, requests
from rig.clients import Boto, refusal
from rig.connectors import remove
from rig.fleet import Fleet
from rig.images import Image, Images
from rig.journal import Journal
from rig.microvms import Microvms, Running
from rig.waiting import until

EVERY_OPERATION = [pytest.param(s, o, id=o) for s, o in models.every_operation()]
NAMING = [
    pytest.param(s, o, id=o)
    for s, o in models.every_operation()
    if "ResourceNotFoundException" in models.modelled_errors(s, o) and o not in ("CreateMicrovmImage", "ListMicrovms")
]


@pytest.fixture(scope="module")
def powerless(fleet: Fleet, journal: Journal):
    """boto3 with a key that may do nothing."""
    policy = json.dumps({"Statement": [{"Effect": "Deny", "Action": "*", "Resource": "*"}]})
    made = json.loads(
        fleet.torpor("key", "create", "--description", "powerless", "--policy", "-", "-o", "json", input=policy)
    )
    key = made["accessKey"]["accessKeyId"], made["secretAccessKey"]
    boto = Boto(fleet, journal, key)

    def known() -> bool:
        try:
            boto.microvms.list_microvms()
        except ClientError as error:
            return refusal(error)[1] == "AccessDeniedException"
        return False

    until("the key to be known", known, within=10)
    yield boto
    fleet.torpor("key", "delete", key[0])


@pytest.mark.parametrize(("service", "operation"), EVERY_OPERATION)
def test_without_the_right(powerless: Boto, fleet: Fleet, service: str, operation: str) -> None:
    with pytest.raises(ClientError) as error:
        powerless.call(service, operation, **requests.of_nobody(fleet, operation))
    status, code, message = refusal(error.value)
    assert (status, code) == (403, "AccessDeniedException")
    assert f"is not authorized to perform: lambda:{operation} on resource: " in message


@pytest.mark.parametrize(("service", "operation"), EVERY_OPERATION)
def test_a_broken_constraint(boto: Boto, fleet: Fleet, service: str, operation: str) -> None:
    with pytest.raises(ClientError) as error:
        boto.call(service, operation, **requests.invalid(fleet, operation))
    status, code, message = refusal(error.value)
    assert (status, code) == (400, "ValidationException")
    assert message.startswith("1 validation error detected: Value '")


@pytest.mark.parametrize(("service", "operation"), NAMING)
def test_what_does_not_exist(boto: Boto, fleet: Fleet, service: str, operation: str) -> None:
    arguments = requests.of_nobody(fleet, operation)
    if operation == "UpdateMicrovmImage":
        arguments["codeArtifact"] = {"uri": f"s3://{fleet.bucket}/absent.zip"}
    with pytest.raises(ClientError) as error:
        boto.call(service, operation, **arguments)
    assert refusal(error.value)[:2] == (404, "ResourceNotFoundException")


@pytest.mark.row(96)
def test_a_microvm_that_is_not_up_yet(hooked: Image, microvms: Microvms) -> None:
    """Neither sleep nor wake is possible before the launch is done, which a slow run hook holds up; requests wait for it."""
    launched = microvms.launch(hooked.arn, runHookPayload="slow")
    for call in (microvms.api.suspend_microvm, microvms.api.resume_microvm):
        with pytest.raises(ClientError) as error:
            call(microvmIdentifier=launched["microvmId"])
        assert refusal(error.value)[:2] == (409, "ConflictException")
    seen = Running(microvms, launched["microvmId"], launched["endpoint"]).json("/hooks")["calls"]
    (run,) = [call for call in seen if call["path"].endswith("/run")]
    assert run["answered"]


def test_repeated_changes_of_state(plain: Image, microvms: Microvms) -> None:
    """Suspend, resume and terminate are idempotent, as the model says."""
    running = microvms.run(plain.arn)
    microvms.api.resume_microvm(microvmIdentifier=running.id)
    assert microvms.get(running.id)["state"] == "RUNNING"
    running.suspend()
    microvms.api.suspend_microvm(microvmIdentifier=running.id)
    assert microvms.get(running.id)["state"] == "SUSPENDED"
    running.terminate()
    microvms.api.terminate_microvm(microvmIdentifier=running.id)


def test_versions_during_an_update(images: Images) -> None:
    """They change neither their status nor do they go."""
    image = images.broken("status")
    version = {"imageIdentifier": image.arn, "imageVersion": "1.0"}
    images.api.update_microvm_image(imageIdentifier=image.arn, **images.configuration(images.slow()))
    for call in (
        lambda: images.api.update_microvm_image_version(**version, status="INACTIVE"),
        lambda: images.api.delete_microvm_image_version(**version),
    ):
        with pytest.raises(ClientError) as error:
            call()
        assert refusal(error.value)[:2] == (409, "ConflictException")


def test_a_connector_that_is_being_made(core, fleet: Fleet) -> None:
    """PENDING and DELETING connectors do not change."""
    arguments = requests.of_nobody(fleet, "CreateNetworkConnector") | {
        "Name": fleet.name("busy"),
        "OperatorRole": fleet.role_arn,
        "ClientToken": fleet.name("busy"),
    }
    arn = core.create_network_connector(**arguments)["Arn"]
    with pytest.raises(ClientError) as error:
        core.update_network_connector(Identifier=arn, ClientToken="too-early", OperatorRole=f"{fleet.role_arn}-2")
    assert refusal(error.value)[:2] == (409, "ResourceConflictException")
    with pytest.raises(ClientError) as error:
        core.delete_network_connector(Identifier=arn)
    assert refusal(error.value)[:2] == (409, "ResourceConflictException")
    remove(core, [arn])


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        ("CreateNetworkConnector", {"ClientToken": "no-role"}),
        ("GetNetworkConnector", {"Identifier": "arn:aws:lambda:us-east-1:000000000000:function:x"}),
        ("DeleteNetworkConnector", {"Identifier": "arn:aws:lambda:us-east-1:000000000000:function:x"}),
        ("UpdateNetworkConnector", {"Identifier": "arn:aws:lambda:us-east-1:000000000000:function:x"}),
        ("ListNetworkConnectorVersions", {"Identifier": "arn:aws:lambda:us-east-1:000000000000:function:x"}),
        ("ListNetworkConnectors", {"Marker": "no-marker"}),
    ],
)
def test_rules_beyond_the_shapes(boto: Boto, fleet: Fleet, operation: str, arguments: dict) -> None:
    with pytest.raises(ClientError) as error:
        boto.call(models.CORE, operation, **requests.of_nobody(fleet, operation) | arguments)
    assert refusal(error.value)[:2] == (400, "InvalidParameterValueException")
