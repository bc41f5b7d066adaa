"""The AWS CLI: every command it has for both services succeeds, and it shows the services' errors.

It carries models of its own, which may be older than boto3's: what they lack it neither asks for nor shows.
"""

import json
from pathlib import Path

import pytest

from rig.clients import Cli, CliError
from rig.connectors import settled
from rig.fleet import Fleet
from rig.images import Image, Images
from rig.microvms import AUTH_HEADER, Microvms
from rig.waiting import until

MICROVMS = "lambda-microvms"
CORE = "lambda-core"


def refused(aws: Cli, code: str, *words: str) -> str:
    """Runs a command that must fail with a class; its message."""
    with pytest.raises(CliError) as error:
        aws(*words)
    assert error.value.code == code, error.value
    return error.value.output


def test_commands_about_images(aws: Cli, images: Images, fleet: Fleet) -> None:
    name = fleet.name("cli")
    made = aws(
        MICROVMS,
        "create-microvm-image",
        *("--name", name),
        *("--code-artifact", f"uri={images.absent()}"),
        *("--base-image-arn", fleet.base_arn),
        *("--build-role-arn", fleet.role_arn),
        *("--resources", "minimumMemoryInMiB=512"),
        *("--environment-variables", "GREETING=hello"),
        *("--hooks", json.dumps({"port": 8080, "microvmImageHooks": {"ready": "ENABLED"}})),
        *("--logging", "disabled={}"),
        *("--tags", "team=a"),
    )
    arn = made["imageArn"]
    images.note(Image(name, arn))
    assert (made["state"], made["environmentVariables"]) == ("CREATING", {"GREETING": "hello"})
    images.settled(arn, "CREATE_FAILED")
    image = ("--image-identifier", arn)
    assert aws(MICROVMS, "get-microvm-image", *image)["tags"] == {"team": "a"}
    assert aws(MICROVMS, "list-microvm-images", "--name-filter", name)["items"][0]["imageArn"] == arn
    updated = aws(
        MICROVMS,
        "update-microvm-image",
        *image,
        *("--code-artifact", f"uri={images.absent()}"),
        *("--base-image-arn", fleet.base_arn),
        *("--build-role-arn", fleet.role_arn),
    )
    assert updated["imageVersion"] == "2.0"
    images.settled(arn, "UPDATE_FAILED")
    assert len(aws(MICROVMS, "list-microvm-image-versions", *image)["items"]) == 2
    first = (*image, "--image-version", "1.0")
    assert aws(MICROVMS, "get-microvm-image-version", *first)["state"] == "FAILED"
    (build,) = aws(MICROVMS, "list-microvm-image-builds", *first)["items"]
    found = aws(MICROVMS, "get-microvm-image-build", *first, "--build-id", build["buildId"])
    assert "S3_NO_SUCH_KEY" in found["stateReason"]
    assert aws(MICROVMS, "delete-microvm-image-version", *first)["state"] == "DELETING"
    images.settled(arn)
    assert aws(MICROVMS, "delete-microvm-image", *image)["state"] == "DELETING"
    until("the image to be gone", lambda: images.gone(arn))


def test_commands_about_versions(aws: Cli, plain: Image) -> None:
    version = ("--image-identifier", plain.arn, "--image-version", "1.0")
    for status in ("INACTIVE", "ACTIVE"):
        assert aws(MICROVMS, "update-microvm-image-version", *version, "--status", status)["status"] == status


def test_commands_about_managed_images(aws: Cli, fleet: Fleet) -> None:
    items = aws(MICROVMS, "list-managed-microvm-images")["items"]
    assert fleet.base_arn in [item["imageArn"] for item in items]
    versions = aws(MICROVMS, "list-managed-microvm-image-versions", "--image-identifier", fleet.base_arn)["items"]
    assert versions[0]["imageArn"] == fleet.base_arn


def test_commands_about_tags(aws: Cli, plain: Image) -> None:
    resource = ("--resource", plain.arn)
    assert aws(MICROVMS, "tag-resource", *resource, "--tags", "one=1,two=2") == {}
    assert aws(MICROVMS, "list-tags", *resource)["Tags"] == {"one": "1", "two": "2"}
    assert aws(MICROVMS, "untag-resource", *resource, "--tag-keys", "one", "two") == {}
    assert aws(MICROVMS, "list-tags", *resource)["Tags"] == {}


def test_commands_about_microvms(aws: Cli, plain: Image, microvms: Microvms, fleet: Fleet) -> None:
    ingress = [fleet.connector_arn("HTTP_INGRESS"), fleet.connector_arn("SHELL_INGRESS")]
    launched = aws(
        MICROVMS,
        "run-microvm",
        *("--image-identifier", plain.arn),
        *("--image-version", "1.0"),
        *("--execution-role-arn", fleet.role_arn),
        *("--ingress-network-connectors", *ingress),
        *("--idle-policy", "maxIdleDurationSeconds=60,suspendedDurationSeconds=60,autoResumeEnabled=false"),
        *("--maximum-duration-in-seconds", "3600"),
    )
    microvm_id = launched["microvmId"]
    microvms.note(microvm_id)
    microvm = ("--microvm-identifier", microvm_id)
    microvms.wait(microvm_id, "RUNNING")
    assert aws(MICROVMS, "get-microvm", *microvm)["idlePolicy"]["autoResumeEnabled"] is False
    listed = aws(MICROVMS, "list-microvms", "--image-identifier", plain.arn)["items"]
    assert microvm_id in [item["microvmId"] for item in listed]
    minutes = ("--expiration-in-minutes", "5")
    ports = ("--allowed-ports", '[{"range":{"startPort":8080,"endPort":8081}}]')
    assert AUTH_HEADER in aws(MICROVMS, "create-microvm-auth-token", *microvm, *minutes, *ports)["authToken"]
    assert AUTH_HEADER in aws(MICROVMS, "create-microvm-shell-auth-token", *microvm, *minutes)["authToken"]
    assert aws(MICROVMS, "suspend-microvm", *microvm) == {}
    microvms.wait(microvm_id, "SUSPENDED")
    assert aws(MICROVMS, "resume-microvm", *microvm) == {}
    microvms.wait(microvm_id, "RUNNING")
    assert aws(MICROVMS, "terminate-microvm", *microvm) == {}


def test_commands_about_connectors(aws: Cli, core, fleet: Fleet) -> None:
    name = fleet.name("cli-connector")
    egress = {"SubnetIds": ["subnet-1"], "NetworkProtocol": "IPv4", "AssociatedComputeResourceTypes": ["MicroVm"]}
    made = aws(
        CORE,
        "create-network-connector",
        *("--name", name),
        *("--operator-role", fleet.role_arn),
        *("--configuration", json.dumps({"VpcEgressConfiguration": egress})),
        *("--tags", "team=a"),
    )
    assert (made["Name"], made["State"]) == (name, "PENDING")
    connector = ("--identifier", made["Arn"])

    settled(core, made["Arn"])
    assert aws(CORE, "get-network-connector", *connector)["State"] == "ACTIVE"
    egress["SubnetIds"] = ["subnet-2"]
    changed = ("--configuration", json.dumps({"VpcEgressConfiguration": egress}))
    assert aws(CORE, "update-network-connector", *connector, *changed)["Arn"] == made["Arn"]
    assert settled(core, made["Arn"])["LatestVersion"] == 2
    listed = aws(CORE, "list-network-connectors", "--state", "ACTIVE")["NetworkConnectors"]
    assert made["Arn"] in [item["Arn"] for item in listed]
    assert aws(CORE, "delete-network-connector", *connector)["State"] == "DELETING"


def test_errors_are_shown(aws: Cli, fleet: Fleet) -> None:
    arn = fleet.image_arn(fleet.name("never-was"))
    output = refused(aws, "ResourceNotFoundException", MICROVMS, "get-microvm-image", "--image-identifier", arn)
    assert f"MicroVMImage not found for MicroVMImageID: {arn}" in output
    output = refused(aws, "ValidationException", MICROVMS, "run-microvm", "--image-identifier", "bare")
    assert "Malformed ARN - doesn't start with 'arn:'" in output
    output = refused(aws, "ResourceNotFoundException", CORE, "get-network-connector", "--identifier", "nobody")
    assert "nobody" in output
    foreign = fleet.image_arn("app", account="111111111111")
    refused(aws, "AccessDeniedException", MICROVMS, "get-microvm-image", "--image-identifier", foreign)


def test_copies_to_s3(aws: Cli, fleet: Fleet, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    there.write_bytes(bytes(range(256)) * 4096)
    uri = f"s3://{fleet.bucket}/aws-tests/{fleet.tag}/copy"
    aws("s3", "cp", str(there), uri)
    aws("s3", "cp", uri, str(back))
    assert back.read_bytes() == there.read_bytes()
    aws("s3", "rm", uri)
    with pytest.raises(CliError):
        aws("s3", "cp", uri, str(back))


def test_pages_are_followed(aws: Cli, images: Images, fleet: Fleet) -> None:
    for number in range(3):
        images.create(f"cli-page-{number}", images.absent())
    found = aws(MICROVMS, "list-microvm-images", "--name-filter", f"{fleet.tag}-cli-page-", "--page-size", "1")
    assert len(found["items"]) == 3
