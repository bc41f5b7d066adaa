"""Builds: what they show, what they call, and how they say why they failed."""

import base64
import json

import pytest

from rig import apps
from rig.fleet import Fleet
from rig.images import READY_HOOK, Image, Images
from rig.microvms import Microvms
from rig.wire import Wire, segment

HOOKS = "/aws/lambda-microvms/runtime/v1/"
IMAGES = "/2025-09-09/microvm-images"
BUILD_MEMBERS = {
    "architecture",
    "buildId",
    "buildState",
    "chipset",
    "chipsetGeneration",
    "createdAt",
    "imageArn",
    "imageVersion",
    "stateReason",
    "terminationReasonCode",
}
SIZES = {"memorySnapshotSizeInBytes", "codeInstallSizeInBytes", "diskSnapshotSizeInBytes"}


def builds_path(image: Image) -> str:
    """Path of the builds of version 1.0."""
    return f"{IMAGES}/{segment(image.arn)}/versions/1.0/builds"


@pytest.mark.row(
    18,
    differs="the fleet's hosts are of one kind each, and a version is built once per architecture, not per generation",
)
def test_one_build_per_architecture(plain: Image, images: Images) -> None:
    (build,) = images.builds(plain.arn)
    assert (build["buildState"], build["architecture"], build["chipset"]) == ("SUCCESSFUL", "X86_64", "INTEL")
    assert build["chipsetGeneration"]
    assert (build["imageArn"], build["imageVersion"]) == (plain.arn, "1.0")


@pytest.mark.row(19)
@pytest.mark.parametrize(
    ("member", "other"), [("architecture", "ARM_64"), ("chipset", "GRAVITON"), ("chipsetGeneration", "0")]
)
def test_filters_of_builds(plain: Image, images: Images, member: str, other: str) -> None:
    (build,) = images.builds(plain.arn)

    def found(value: str) -> list[str]:
        page = images.api.list_microvm_image_builds(imageIdentifier=plain.arn, imageVersion="1.0", **{member: value})
        return [item["buildId"] for item in page["items"]]

    assert found(build[member]) == [build["buildId"]]
    assert found(other) == []


@pytest.mark.row(20)
def test_sizes_are_shown_by_one_build_only(plain: Image, wire: Wire) -> None:
    (item,) = wire.request("GET", builds_path(plain)).json()["items"]
    assert set(item) == BUILD_MEMBERS
    build = wire.request("GET", f"{builds_path(plain)}/{item['buildId']}").json()
    assert set(build) == BUILD_MEMBERS | {"snapshotBuild"}
    assert set(build["snapshotBuild"]) == SIZES
    assert all(isinstance(size, int) for size in build["snapshotBuild"].values())
    assert build["snapshotBuild"]["memorySnapshotSizeInBytes"] > 1 << 20
    assert build["snapshotBuild"]["codeInstallSizeInBytes"] > 1 << 20


def test_builds_that_are_not_there(plain: Image, wire: Wire) -> None:
    answer = wire.request("GET", f"{builds_path(plain)}/0190a5e2-7c3b-4f00-8000-000000000001")
    assert (answer.status, answer.error) == (404, "ResourceNotFoundException"), answer
    answer = wire.request("GET", f"{IMAGES}/{segment(plain.arn)}/versions/9.0/builds")
    assert (answer.status, answer.error) == (404, "ResourceNotFoundException"), answer


@pytest.fixture(scope="module")
def failures(images: Images) -> dict[str, Image]:
    """Images whose builds fail, each in its own way; all are begun before the first is waited for."""
    app = images.app()
    short = {"port": 8080, "microvmImageHooks": {"ready": "ENABLED", "readyTimeoutInSeconds": 5}}
    # The name that the service's own base has is good in FROM too.
    broken_step = apps.dockerfile().replace("debian-12", "al2023-1") + "RUN echo about to fail && exit 3\n"
    other_cpu = apps.dockerfile().replace("FROM ", "FROM --platform=linux/arm64 ")
    cases = {
        # The slow ones first: they share the two builders.
        "ready-hangs": (app, {"hooks": short, "environmentVariables": {"READY_HANGS": "1"}}),
        "ready-refuses": (app, {"hooks": READY_HOOK, "environmentVariables": {"READY_STATUS": "404"}}),
        "dockerfile": (images.upload("broken-step", apps.app_zip(broken_step)), {}),
        "platform": (images.upload("platform", apps.app_zip(other_cpu)), {}),
        "no-dockerfile": (images.upload("no-dockerfile", apps.zip_of({"app.py": "pass"})), {}),
        "no-zip": (images.upload("no-zip", b"PK but not a zip"), {}),
        "no-key": (images.absent(), {}),
        "no-bucket": ("s3://torpor-no-such-bucket/app.zip", {}),
    }
    made = {}
    for label, (uri, changes) in cases.items():
        answer = images.create(f"fails-{label}", uri, **changes)
        made[label] = Image(answer["name"], answer["imageArn"])
    for image in made.values():
        images.settled(image.arn, "CREATE_FAILED")
    return made


def reason(images: Images, image: Image) -> str:
    """Why the image's only build failed."""
    (build,) = images.builds(image.arn)
    assert build["buildState"] == "FAILED", build
    return build["stateReason"]


@pytest.mark.row(21)
def test_a_failing_step_has_no_sizes(failures: dict[str, Image], images: Images) -> None:
    (build,) = images.builds(failures["dockerfile"].arn)
    assert build["buildState"] == "FAILED"
    assert "CONTAINER_BUILD_FAILED" in build["stateReason"]
    assert "snapshotBuild" not in build


def test_images_for_another_cpu(failures: dict[str, Image], images: Images) -> None:
    said = reason(images, failures["platform"])
    assert "line 1 asks for images for linux/arm64" in said and "write --platform=linux/amd64" in said, said


@pytest.mark.row(22)
def test_a_failing_ready_hook_has_the_size_of_the_code(failures: dict[str, Image], wire: Wire) -> None:
    path = builds_path(failures["ready-hangs"])
    (item,) = wire.request("GET", path).json()["items"]
    sizes = wire.request("GET", f"{path}/{item['buildId']}").json()["snapshotBuild"]
    assert {name for name, size in sizes.items() if size is not None} == {"codeInstallSizeInBytes"}


@pytest.mark.row(23)
def test_the_build_says_why(failures: dict[str, Image], images: Images, wire: Wire) -> None:
    image = failures["dockerfile"]
    assert reason(images, image)
    path = f"{IMAGES}/{segment(image.arn)}"
    version = wire.request("GET", f"{path}/versions/1.0").json()
    assert (version["state"], version["stateReason"]) == ("FAILED", None)
    assert "stateReason" not in wire.request("GET", path).json()


@pytest.mark.row(24)
def test_the_image_names_the_failed_version(failures: dict[str, Image], images: Images) -> None:
    image = images.api.get_microvm_image(imageIdentifier=failures["no-key"].arn)
    assert (image["state"], image["latestFailedImageVersion"]) == ("CREATE_FAILED", "1.0")
    assert "latestActiveImageVersion" not in image


@pytest.mark.row(26)
def test_a_ready_hook_that_refuses(failures: dict[str, Image], images: Images) -> None:
    expected = "Ready hook check failed: the application returned a client error (HTTP 4xx) response."
    assert expected in reason(images, failures["ready-refuses"])


@pytest.mark.row(27)
def test_a_ready_hook_that_never_answers(failures: dict[str, Image], images: Images) -> None:
    assert "Ready hook invocation timed out after PT5S" in reason(images, failures["ready-hangs"])


@pytest.mark.row(31)
def test_a_zip_without_dockerfile(failures: dict[str, Image], images: Images) -> None:
    assert "ARCHIVE_DOCKERFILE_NOT_FOUND" in reason(images, failures["no-dockerfile"])


@pytest.mark.row(32)
def test_a_damaged_zip(failures: dict[str, Image], images: Images) -> None:
    assert "ARCHIVE_INVALID" in reason(images, failures["no-zip"])


@pytest.mark.row(33)
def test_an_artifact_that_is_not_there(failures: dict[str, Image], images: Images) -> None:
    assert "S3_NO_SUCH_KEY" in reason(images, failures["no-key"])
    assert "S3_NO_SUCH_BUCKET" in reason(images, failures["no-bucket"])


@pytest.mark.row(30)
def test_steps_reach_the_internet(images: Images) -> None:
    # A step of its own, so that no cached layer answers for it.
    fetch = f"RUN apt-get update --error-on=any && echo fetched-{images.fleet.tag} && exit 3\n"
    uri = images.upload("fetches", apps.zip_of({"Dockerfile": f"FROM debian-12\n{fetch}"}))
    answer = images.create("fetches", uri)
    images.settled(answer["imageArn"], "CREATE_FAILED")
    # It failed where it should, and not before.
    assert f"\nfetched-{images.fleet.tag}" in images.fleet.torpor("image", "logs", answer["name"])


@pytest.mark.row(
    152, differs="there is no CloudWatch: the fleet keeps the logs, and `torpor image logs` and `torpor logs` show them"
)
def test_logs_of_builds(plain: Image, fleet: Fleet) -> None:
    assert "COPY app.py" in fleet.torpor("image", "logs", plain.name)


@pytest.fixture(scope="module")
def hook_calls(hooked: Image, module_microvms: Microvms) -> list[dict]:
    """What a microVM of the image with hooks remembers of its own past."""
    payload = json.dumps({"session": "s-1", "bytes": base64.b64encode(bytes(8)).decode()})
    return module_microvms.run(hooked.arn, runHookPayload=payload).json("/hooks")["calls"]


def called(calls: list[dict], hook: str) -> list[dict]:
    """Calls of one hook."""
    return [call for call in calls if call["path"] == HOOKS + hook]


@pytest.mark.row(25)
def test_ready_is_asked_again(hook_calls: list[dict]) -> None:
    # 503, 503, 200: the image's environment says so.
    assert len(called(hook_calls, "ready")) == 3


@pytest.mark.row(28)
def test_the_snapshot_is_taken_when_ready(hook_calls: list[dict]) -> None:
    (run,) = called(hook_calls, "run")
    # The app's own clock, twenty ticks a second, has hardly moved between its 200 and the first thing after the restore.
    assert run["tick"] - called(hook_calls, "ready")[-1]["tick"] <= 40


@pytest.mark.row(29)
def test_validate_has_a_microvm_of_its_own(hook_calls: list[dict], hooked: Image, images: Images) -> None:
    # It answers 200 only where ready was called before it, in the memory it was made from, and the build needed that 200...
    (build,) = images.builds(hooked.arn)
    assert build["buildState"] == "SUCCESSFUL"
    # ...but the snapshot knows nothing of it.
    assert called(hook_calls, "validate") == []


@pytest.mark.row(29)
def test_validate_can_fail_the_build(images: Images) -> None:
    hooks = {
        "port": 8080,
        "microvmImageHooks": {"ready": "ENABLED", "validate": "ENABLED", "validateTimeoutInSeconds": 30},
    }
    answer = images.create("fails-validate", images.app(), hooks=hooks, environmentVariables={"VALIDATE_STATUS": "500"})
    images.settled(answer["imageArn"], "CREATE_FAILED")
    (build,) = images.builds(answer["imageArn"])
    assert "alidate" in build["stateReason"]


@pytest.mark.row(94, 95, 99, 100)
def test_the_run_hook(hook_calls: list[dict]) -> None:
    (run,) = called(hook_calls, "run")
    body = json.loads(run["body"])
    assert body["microvmId"].startswith("microvm-")
    assert json.loads(body["runHookPayload"])["session"] == "s-1"
    assert run["from"] == "127.0.0.1"


@pytest.mark.row(99)
def test_hooks_that_are_off_are_not_called(plain: Image, microvms: Microvms) -> None:
    running = microvms.run(plain.arn)
    running.suspend()
    running.resume()
    assert running.json("/hooks")["calls"] == []
