"""CreateMicrovmImage: its answer, its defaults, and what it refuses before anything is made.

Most images here name an artifact that is not there: what is tested ends before the build needs it.
"""

import re

import pytest
from botocore.exceptions import ClientError

from rig.clients import refusal
from rig.fleet import Fleet
from rig.images import CREATED_MEMBERS, Image, Images
from rig.waiting import until
from rig.wire import Answer, Wire, segment

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
IMAGES = "/2025-09-09/microvm-images"
UNSET_MEMBERS = {
    "additionalOsCapabilities",
    "buildPhaseOverrides",
    "cpuConfigurations",
    "description",
    "environmentVariables",
    "hooks",
    "latestActiveImageVersion",
    "latestFailedImageVersion",
    "logging",
    "roleConfiguration",
    "tags",
}
READY_REQUIRED = (
    "The ready (/ready) MicroVM image hook must be enabled when any MicroVM lifecycle hook "
    "(run, resume, suspend, or terminate) is enabled."
)


@pytest.fixture(scope="module")
def created(fleet: Fleet, wire: Wire, images: Images) -> Answer:
    """The raw answer to a create with nothing but what is required."""
    body = images.configuration(images.absent(), resources=None) | {"name": fleet.name("minimal")}
    answer = wire.request("POST", IMAGES, body)
    assert answer.status == 201, answer
    images.note(Image(body["name"], answer.json()["imageArn"]))
    return answer


@pytest.fixture
def create(fleet: Fleet, wire: Wire, images: Images):
    """Creates by raw HTTP with members changed; None takes one out. Images that come of it are removed later."""

    def create(label: str, **changes) -> Answer:
        body = images.configuration(images.absent(), name=fleet.name(label)) | changes
        body = {name: value for name, value in body.items() if value is not None}

        def ask() -> Answer | None:
            answer = wire.request("POST", IMAGES, body)
            # Five builds at a time; these end within a second.
            return None if answer.status == 402 else answer

        answer = until(f"{label} to be taken for building", ask)
        if answer.status == 201:
            images.note(Image(body["name"], answer.json()["imageArn"]))
        return answer

    return create


def refused(answer: Answer, message: str) -> None:
    """A 400 with exactly this message."""
    assert (answer.status, answer.error, answer.message) == (400, "ValidationException", message)


def violation(value: str, path: str, constraint: str) -> str:
    """One violated constraint, as a whole message."""
    return f"1 validation error detected: Value {value} at '{path}' failed to satisfy constraint: {constraint}"


@pytest.mark.row(1)
def test_the_answer_comes_at_once(created: Answer) -> None:
    image = created.json()
    assert (created.status, image["state"], image["imageVersion"]) == (201, "CREATING", "1.0")
    assert image["latestActiveImageVersion"] is None


@pytest.mark.row(2)
def test_the_answer_has_every_member(created: Answer, fleet: Fleet) -> None:
    image = created.json()
    assert set(image) == CREATED_MEMBERS
    assert {name for name, value in image.items() if value is None} == UNSET_MEMBERS
    assert UUID.fullmatch(image["id"])
    assert image["imageArn"] == fleet.image_arn(image["name"])


@pytest.mark.row(3)
def test_default_memory(created: Answer) -> None:
    assert created.json()["resources"] == [{"minimumMemoryInMiB": 2048}]


def test_a_kms_key_is_recorded_and_shown(create, wire: Wire) -> None:
    image = create("kms", kmsKeyIdentifier="alias/images").json()
    version = wire.request("GET", f"{IMAGES}/{segment(image['imageArn'])}/versions/1.0").json()
    assert (image["kmsKeyIdentifier"], version["kmsKeyIdentifier"]) == ("alias/images", "alias/images")


@pytest.mark.row(4)
def test_default_egress(created: Answer, fleet: Fleet) -> None:
    assert created.json()["egressNetworkConnectors"] == [fleet.connector_arn("INTERNET_EGRESS")]


@pytest.mark.row(5)
def test_default_base_version(created: Answer, fleet: Fleet, api) -> None:
    newest = api.list_managed_microvm_image_versions(imageIdentifier=fleet.base_arn)["items"][0]["imageVersion"]
    assert created.json()["baseImageVersion"] == f"{newest}.0"


@pytest.mark.row(6)
def test_a_name_outside_the_pattern(create) -> None:
    pattern = "Member must satisfy regular expression pattern: [a-zA-Z0-9-_]+"
    refused(create("x", name="bad name!"), violation("'bad name!'", "name", pattern))


@pytest.mark.row(7)
def test_every_missing_member_is_named(fleet: Fleet, wire: Wire) -> None:
    answer = wire.request("POST", IMAGES, {"name": fleet.name("missing")})
    null = "Value null at '{}' failed to satisfy constraint: Member must not be null"
    listed = "; ".join(null.format(name) for name in ("baseImageArn", "buildRoleArn", "codeArtifact"))
    refused(answer, f"3 validation errors detected: {listed}")


@pytest.mark.row(8)
def test_a_name_that_is_taken(create, created: Answer) -> None:
    name = created.json()["name"]
    refused(create("x", name=name), f"A MicroVM image with the name '{name}' already exists in this account")


@pytest.mark.row(9)
@pytest.mark.parametrize("memory", [512, 1024, 2048, 4096, 8192])
def test_memory_sizes(create, memory: int) -> None:
    answer = create(f"memory-{memory}", resources=[{"minimumMemoryInMiB": memory}])
    assert answer.status == 201, answer
    assert answer.json()["resources"] == [{"minimumMemoryInMiB": memory}]


@pytest.mark.row(9)
@pytest.mark.parametrize("memory", [0, -512, 511, 513, 1536, 16384])
def test_other_memory_sizes(create, memory: int) -> None:
    answer = create("memory", resources=[{"minimumMemoryInMiB": memory}])
    assert (answer.status, answer.error) == (400, "ValidationException"), answer


@pytest.mark.row(10)
def test_an_unknown_base_version(create, fleet: Fleet, wire: Wire) -> None:
    answer = create("no-such-base", baseImageVersion="999")
    message = f"No managed MicroVM Image with arn {fleet.base_arn} and version 999 is available"
    assert (answer.status, answer.error) == (400, "ValidationException"), answer
    assert answer.message.startswith(message)
    path = f"{IMAGES}/{segment(fleet.image_arn(fleet.name('no-such-base')))}"
    assert wire.request("GET", path).status == 404


@pytest.mark.row(11)
def test_a_pinned_base_version(create, fleet: Fleet, api) -> None:
    oldest = api.list_managed_microvm_image_versions(imageIdentifier=fleet.base_arn)["items"][-1]["imageVersion"]
    answer = create("pinned-base", baseImageVersion=oldest)
    assert answer.status == 201, answer
    assert answer.json()["baseImageVersion"] == f"{oldest}.0"
    version = api.get_microvm_image_version(imageIdentifier=answer.json()["imageArn"], imageVersion="1.0")
    assert version["baseImageVersion"] == f"{oldest}.0"


@pytest.mark.row(12)
@pytest.mark.parametrize("hook", ["run", "resume", "suspend", "terminate"])
def test_a_runtime_hook_without_ready(create, hook: str) -> None:
    refused(create("hooks", hooks={"port": 8080, "microvmHooks": {hook: "ENABLED"}}), READY_REQUIRED)


@pytest.mark.row(13)
def test_hooks_without_a_port(create) -> None:
    answer = create("hooks", hooks={"microvmImageHooks": {"ready": "ENABLED"}})
    assert (answer.status, answer.error) == (400, "ValidationException"), answer
    assert "port" in answer.message


@pytest.mark.row(14)
@pytest.mark.parametrize("key", ["AWS_REGION", "AWS_LAMBDA_MICROVM_IMAGE_ARN"])
def test_reserved_environment_keys(create, key: str) -> None:
    refused(create("environment", environmentVariables={key: "x"}), f"Environment variable key '{key}' is reserved")


@pytest.mark.row(15)
def test_a_hundred_environment_variables(create) -> None:
    variables = {f"KEY_{number}": "value" for number in range(100)}
    answer = create("environment-100", environmentVariables=variables)
    assert answer.status == 201, answer
    assert answer.json()["environmentVariables"] == variables
    answer = create("environment", environmentVariables=variables | {"ONE_MORE": "value"})
    assert (answer.status, answer.error) == (400, "ValidationException"), answer
    assert (
        "at 'environmentVariables' failed to satisfy constraint: Member must have length less than or equal to 100"
        in (answer.message)
    )


@pytest.mark.row(16)
@pytest.mark.parametrize("hook", ["run", "resume", "suspend", "terminate"])
def test_windows_of_runtime_hooks(create, hook: str) -> None:
    def hooks(seconds: int) -> dict:
        runtime = {hook: "ENABLED", f"{hook}TimeoutInSeconds": seconds}
        return {"port": 8080, "microvmHooks": runtime, "microvmImageHooks": {"ready": "ENABLED"}}

    answer = create(f"window-{hook}", hooks=hooks(60))
    assert answer.status == 201, answer
    assert answer.json()["hooks"]["microvmHooks"][f"{hook}TimeoutInSeconds"] == 60
    path = f"hooks.microvmHooks.{hook}TimeoutInSeconds"
    refused(
        create("window", hooks=hooks(61)), violation("'61'", path, "Member must have value less than or equal to 60")
    )


@pytest.mark.row(17)
@pytest.mark.parametrize("hook", ["ready", "validate"])
def test_windows_of_build_hooks(create, hook: str) -> None:
    def hooks(seconds: int) -> dict:
        enabled = {"ready": "ENABLED", hook: "ENABLED"}
        return {"port": 8080, "microvmImageHooks": enabled | {f"{hook}TimeoutInSeconds": seconds}}

    answer = create(f"window-{hook}", hooks=hooks(3600))
    assert answer.status == 201, answer
    assert answer.json()["hooks"]["microvmImageHooks"][f"{hook}TimeoutInSeconds"] == 3600
    path = f"hooks.microvmImageHooks.{hook}TimeoutInSeconds"
    constraint = "Member must have value less than or equal to 3600"
    refused(create("window", hooks=hooks(3601)), violation("'3601'", path, constraint))


@pytest.mark.row(153)
def test_logging_can_be_disabled(create) -> None:
    answer = create("no-logs", logging={"disabled": {}})
    assert answer.status == 201, answer
    assert answer.json()["logging"] == {"disabled": {}}


def test_logging_to_a_group_is_recorded(create) -> None:
    logging = {"cloudWatch": {"logGroup": "/mine/app", "logStream": "builds"}}
    answer = create("logs", logging=logging)
    assert answer.status == 201, answer
    assert answer.json()["logging"] == logging


@pytest.mark.row(34, differs="roles are recorded and never asked: without IAM every build keeps its log")
def test_any_well_formed_role_will_do(images: Images, fleet: Fleet) -> None:
    role = "arn:aws:iam::123456789012:role/somebody/else"
    image = images.broken("foreign-role", buildRoleArn=role)
    assert images.api.get_microvm_image_version(imageIdentifier=image.arn, imageVersion="1.0")["buildRoleArn"] == role
    # It failed for its artifact, not for its role, and its log can be read.
    (build,) = images.builds(image.arn)
    assert "S3_NO_SUCH_KEY" in build["stateReason"]
    assert fleet.torpor("image", "logs", image.name).strip()


@pytest.mark.parametrize("role", ["arn:aws:iam::1234:role/short", "arn:aws:iam::123456789012:user/someone", "builder"])
def test_a_malformed_role(create, role: str) -> None:
    answer = create("role", buildRoleArn=role)
    assert (answer.status, answer.error) == (400, "ValidationException"), answer
    assert "'buildRoleArn'" in answer.message


@pytest.mark.parametrize("artifact", ["https://example.com/app.zip", "s3://", "s3://bucket-only", "s3:///key"])
def test_an_artifact_that_is_no_s3_uri(create, artifact: str) -> None:
    answer = create("artifact", codeArtifact={"uri": artifact})
    assert (answer.status, answer.error) == (400, "ValidationException"), answer


def test_an_unknown_base(create, fleet: Fleet) -> None:
    arn = fleet.managed_arn("microvm-image", "no-such-base")
    answer = create("base", baseImageArn=arn)
    assert answer.status in (400, 404), answer
    assert arn in answer.message


def test_a_short_connector_name(create) -> None:
    answer = create("connector", egressNetworkConnectors=["INTERNET_EGRESS"])
    assert (answer.status, answer.error) == (400, "ValidationException"), answer
    assert "Malformed network connector ARN" in answer.message


@pytest.mark.parametrize("architecture", ["X86_64"])
def test_an_architecture_by_name(create, architecture: str) -> None:
    answer = create("architecture", cpuConfigurations=[{"architecture": architecture}])
    assert answer.status == 201, answer
    assert answer.json()["cpuConfigurations"] == [{"architecture": architecture}]


def test_the_architecture_that_clients_have_hard_coded(create) -> None:
    """A fleet of `torpor up` reads it as its own, which is what it builds for when nothing is said."""
    answer = create("arm", cpuConfigurations=[{"architecture": "ARM_64"}])
    assert (answer.status, answer.json()["cpuConfigurations"]) == (201, None), answer


@pytest.mark.row(74)
def test_a_client_token_stands_for_its_creation_for_ever(create, images: Images, api, fleet: Fleet) -> None:
    token = fleet.name("token")
    first = create("replay", clientToken=token).json()
    again = create("replay", clientToken=token).json()
    assert (again["id"], again["createdAt"]) == (first["id"], first["createdAt"])

    with pytest.raises(ClientError) as conflict:
        api.create_microvm_image(
            name=first["name"], clientToken=token, **images.configuration(images.absent(), description="another")
        )
    assert refusal(conflict.value)[:2] == (409, "ConflictException")

    images.settled(first["imageArn"], "CREATE_FAILED")
    images.delete(first["imageArn"])
    replayed = create("replay", clientToken=token).json()
    assert (replayed["id"], replayed["createdAt"]) == (first["id"], first["createdAt"])
    # It replays an answer; it makes nothing.
    assert images.gone(first["imageArn"])
    # The name is free for another creation.
    assert create("replay", clientToken=f"{token}-2").json()["id"] != first["id"]
