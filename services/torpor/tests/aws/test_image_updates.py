"""One image through its life: built, updated, retired, launched, its versions and itself deleted.

The fixtures build on one another, each taking the image a step further and keeping what the API answered meanwhile;
the tests look at the answers.
"""

from dataclasses import dataclass, field

import pytest
from botocore.exceptions import ClientError

from rig.clients import refusal
from rig.fleet import Fleet
from rig.images import CREATED_MEMBERS, READY_HOOK, Image, Images
from rig.microvms import Microvms
from rig.waiting import until
from rig.wire import Answer, Wire, segment

IMAGES = "/2025-09-09/microvm-images"
IMAGE_MEMBERS = {
    "createdAt",
    "id",
    "imageArn",
    "latestActiveImageVersion",
    "latestFailedImageVersion",
    "name",
    "state",
    "tags",
    "updatedAt",
}
ITEM_MEMBERS = IMAGE_MEMBERS - {"tags", "updatedAt"}
UPDATED_MEMBERS = CREATED_MEMBERS - {"tags"}


@dataclass
class Story:
    """The image and what was answered on its way, by step."""

    image: Image
    wire: Wire
    uri: str
    answers: dict[str, Answer] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The image's path."""
        return f"{IMAGES}/{segment(self.image.arn)}"

    def note(self, step: str, method: str, suffix: str = "", body: object = None) -> Answer:
        """Sends a request about the image and keeps the answer."""
        answer = self.answers[step] = self.wire.request(method, self.path + suffix, body)
        return answer


def failed(answer: Answer) -> tuple[int, str | None, str | None]:
    """Status, class and message of a refusal."""
    return answer.status, answer.error, answer.message


@pytest.fixture(scope="module")
def created(images: Images, wire: Wire) -> Story:
    """Version 1.0, with a ready hook and a tag."""
    uri = images.app()
    answer = images.create("life", uri, hooks=READY_HOOK, tags={"stage": "test"}, description="first")
    story = Story(Image(answer["name"], answer["imageArn"]), wire, uri)
    story.note("delete while creating", "DELETE")
    images.settled(story.image.arn, "CREATED")
    story.note("get", "GET")
    story.note("version 1", "GET", "/versions/1.0")
    return story


@pytest.fixture(scope="module")
def updated(created: Story, images: Images) -> Story:
    """Version 2.0, without hooks."""
    created.note("update with nothing", "PUT", body={})
    created.note("update", "PUT", body=images.configuration(created.uri, description="second"))
    created.note("status while updating", "PATCH", "/versions/1.0", {"status": "INACTIVE"})
    created.note("get while updating", "GET")
    images.settled(created.image.arn, "UPDATED")
    created.note("get updated", "GET")
    created.note("version 2", "GET", "/versions/2.0")
    return created


@pytest.fixture(scope="module")
def retired(updated: Story, images: Images) -> Story:
    """Both versions INACTIVE, and launches tried; then both ACTIVE again."""
    launch = {"imageIdentifier": updated.image.arn}
    updated.note("retire 1", "PATCH", "/versions/1.0", {"status": "INACTIVE"})
    updated.answers["run retired"] = updated.wire.request(
        "POST", "/2025-09-09/microvms", launch | {"imageVersion": "1.0"}
    )
    updated.note("retire 2", "PATCH", "/versions/2.0", {"status": "INACTIVE"})
    updated.note("get retired", "GET")
    updated.answers["run unpinned"] = updated.wire.request("POST", "/2025-09-09/microvms", launch)
    updated.note("restore 1", "PATCH", "/versions/1.0", {"status": "ACTIVE"})
    images.api.update_microvm_image_version(imageIdentifier=updated.image.arn, imageVersion="2.0", status="ACTIVE")
    return updated


@pytest.fixture(scope="module")
def launched(retired: Story, module_microvms: Microvms) -> Story:
    """A microVM of the latest version, RUNNING while the image's deletion is tried, then ended."""
    running = module_microvms.run(retired.image.arn)
    retired.answers["microvm"] = retired.wire.request("GET", f"/2025-09-09/microvms/{running.id}")
    retired.note("delete while running", "DELETE")
    running.terminate()
    return retired


@pytest.fixture(scope="module")
def deleted(launched: Story, images: Images) -> Story:
    """First the latest version goes, then the only one left is tried, then the image goes."""
    launched.note("delete version", "DELETE", "/versions/2.0")

    def version_gone() -> bool:
        return launched.note("version 2 gone", "GET", "/versions/2.0").status == 404

    until("version 2.0 to be gone", version_gone)
    images.settled(launched.image.arn, "UPDATED")
    launched.note("get fallen back", "GET")
    launched.note("delete last version", "DELETE", "/versions/1.0")
    launched.note("version 1 kept", "GET", "/versions/1.0")
    launched.note("delete", "DELETE")
    body = images.configuration(images.absent()) | {"name": launched.image.name}
    during = launched.answers["create while deleting"] = launched.wire.request("POST", IMAGES, body)
    if during.status == 201:
        # It was gone before the request came.
        images.delete(during.json()["imageArn"])
    until("the image to be gone", lambda: launched.note("gone", "GET").status == 404)
    return launched


@pytest.mark.row(46)
def test_deleting_during_the_first_build(created: Story) -> None:
    expected = "Cannot delete MicroVM image in its current state: CREATING"
    assert failed(created.answers["delete while creating"]) == (400, "ValidationException", expected)


@pytest.mark.row(50)
def test_reading_an_image(created: Story) -> None:
    image = created.answers["get"].json()
    assert set(image) == IMAGE_MEMBERS
    assert (image["state"], image["latestActiveImageVersion"]) == ("CREATED", "1.0")
    assert image["latestFailedImageVersion"] is None
    assert image["tags"] == {"stage": "test"}


@pytest.mark.row(51)
def test_items_of_a_list_of_images(created: Story, fleet: Fleet, wire: Wire) -> None:
    items = []
    query = f"nameFilter={fleet.name('life')}"
    while True:
        page = wire.request("GET", IMAGES, query=query).json()
        items += page["items"]
        if page["nextToken"] is None:
            break
        query = f"nameFilter={fleet.name('life')}&nextToken={segment(page['nextToken'])}"
    (item,) = items
    assert set(item) == ITEM_MEMBERS
    assert item["imageArn"] == created.image.arn


@pytest.mark.row(44)
def test_a_version_that_was_built_is_active(created: Story) -> None:
    version = created.answers["version 1"].json()
    assert (version["state"], version["status"], version["stateReason"]) == ("SUCCESSFUL", "ACTIVE", None)


@pytest.mark.row(36)
def test_an_update_needs_everything(updated: Story) -> None:
    null = "Value null at '{}' failed to satisfy constraint: Member must not be null"
    listed = "; ".join(null.format(name) for name in ("baseImageArn", "buildRoleArn", "codeArtifact"))
    expected = (400, "ValidationException", f"3 validation errors detected: {listed}")
    assert failed(updated.answers["update with nothing"]) == expected


@pytest.mark.row(36)
def test_an_update_replaces_what_it_does_not_name(updated: Story) -> None:
    first, second = updated.answers["version 1"].json(), updated.answers["version 2"].json()
    assert (first["description"], second["description"]) == ("first", "second")
    # The older version stays as it was built.
    assert updated.wire.request("GET", f"{updated.path}/versions/1.0").json()["description"] == "first"


@pytest.mark.row(37)
def test_an_update_builds_the_next_version(updated: Story) -> None:
    answer = updated.answers["update"]
    assert (answer.status, answer.json()["state"], answer.json()["imageVersion"]) == (200, "UPDATING", "2.0")
    assert updated.answers["get while updating"].json()["state"] == "UPDATING"
    image = updated.answers["get updated"].json()
    assert (image["state"], image["latestActiveImageVersion"]) == ("UPDATED", "2.0")


@pytest.mark.row(38)
def test_the_answer_to_an_update(updated: Story) -> None:
    image = updated.answers["update"].json()
    assert set(image) == UPDATED_MEMBERS
    assert image["latestActiveImageVersion"] == "1.0"


@pytest.mark.row(39)
def test_hooks_are_not_inherited(updated: Story) -> None:
    assert updated.answers["version 1"].json()["hooks"]["microvmImageHooks"]["ready"] == "ENABLED"
    assert updated.answers["update"].json()["hooks"] is None
    assert updated.answers["version 2"].json()["hooks"] is None


@pytest.mark.row(40)
def test_a_status_cannot_change_during_an_update(updated: Story) -> None:
    expected = (409, "ConflictException", "MicroVM Image is already in state: UPDATING")
    assert failed(updated.answers["status while updating"]) == expected


@pytest.mark.row(41)
def test_a_retired_version_stays_successful(retired: Story) -> None:
    answer = retired.answers["retire 1"]
    assert (answer.status, answer.json()["state"], answer.json()["status"]) == (200, "SUCCESSFUL", "INACTIVE")
    answer = retired.answers["restore 1"]
    assert (answer.status, answer.json()["state"], answer.json()["status"]) == (200, "SUCCESSFUL", "ACTIVE")


@pytest.mark.row(42)
def test_a_retired_version_cannot_be_launched(retired: Story) -> None:
    expected = f"No active version found for MicroVM image {retired.image.arn} and version 1.0"
    assert failed(retired.answers["run retired"]) == (404, "ResourceNotFoundException", expected)


@pytest.mark.row(43)
def test_an_image_without_active_versions_cannot_be_launched(retired: Story) -> None:
    assert retired.answers["get retired"].json()["latestActiveImageVersion"] is None
    expected = f"No active version found for MicroVM image {retired.image.arn}"
    assert failed(retired.answers["run unpinned"]) == (404, "ResourceNotFoundException", expected)


def test_the_latest_active_version_is_launched(launched: Story) -> None:
    assert launched.answers["microvm"].json()["imageVersion"] == "2.0"


@pytest.mark.row(45)
def test_an_image_with_a_live_microvm_stays(launched: Story) -> None:
    expected = (400, "ValidationException", "Cannot delete microvm image with running microvms.")
    assert failed(launched.answers["delete while running"]) == expected


@pytest.mark.row(48)
def test_deleting_a_version(deleted: Story) -> None:
    answer = deleted.answers["delete version"]
    assert answer.status == 200
    assert answer.json() == {"imageIdentifier": deleted.image.arn, "imageVersion": "2.0", "state": "DELETING"}
    expected = f"MicroVMImage not found for MicroVMImage: {deleted.image.arn}, Version: 2.0"
    assert failed(deleted.answers["version 2 gone"]) == (404, "ResourceNotFoundException", expected)
    assert deleted.answers["get fallen back"].json()["latestActiveImageVersion"] == "1.0"


@pytest.mark.row(49)
def test_the_last_version_stays(deleted: Story) -> None:
    answer = deleted.answers["delete last version"]
    assert answer.status in (400, 409), answer
    assert answer.error in ("ValidationException", "ConflictException")
    assert deleted.answers["version 1 kept"].json()["state"] == "SUCCESSFUL"


@pytest.mark.row(47)
def test_deleting_an_image(deleted: Story, images: Images) -> None:
    answer = deleted.answers["delete"]
    assert (answer.status, answer.json()) == (200, {"imageIdentifier": deleted.image.arn, "state": "DELETING"})
    during = deleted.answers["create while deleting"]
    if during.status != 201:
        taken = f"A MicroVM image with the name '{deleted.image.name}' already exists in this account"
        assert failed(during) == (400, "ValidationException", taken)
    expected = f"MicroVMImage not found for MicroVMImageID: {deleted.image.arn}"
    assert failed(deleted.answers["gone"]) == (404, "ResourceNotFoundException", expected)
    again = images.create("life", images.absent())
    assert again["imageVersion"] == "1.0"


def test_deleting_what_is_not_there(api, fleet: Fleet) -> None:
    with pytest.raises(ClientError) as error:
        api.delete_microvm_image(imageIdentifier=fleet.image_arn(fleet.name("never-was")))
    assert refusal(error.value)[:2] == (404, "ResourceNotFoundException")


def test_an_update_token_used_for_something_else(images: Images) -> None:
    image = images.broken("update-token")
    arguments = images.configuration(images.absent(), clientToken=images.fleet.name("update-token"))
    first = images.api.update_microvm_image(imageIdentifier=image.arn, **arguments)
    assert first["imageVersion"] == "2.0"
    images.settled(image.arn, "UPDATE_FAILED")
    again = images.api.update_microvm_image(imageIdentifier=image.arn, **arguments)
    assert again["imageVersion"] == "2.0"
    with pytest.raises(ClientError) as error:
        images.api.update_microvm_image(imageIdentifier=image.arn, **arguments | {"description": "another"})
    assert refusal(error.value)[:2] == (409, "ConflictException")


def test_an_update_during_a_build(images: Images) -> None:
    answer = images.create("busy", images.slow())
    with pytest.raises(ClientError) as error:
        images.api.update_microvm_image(imageIdentifier=answer["imageArn"], **images.configuration(images.absent()))
    assert refusal(error.value)[:2] == (409, "ConflictException")


def test_a_version_that_failed_is_deleted(images: Images) -> None:
    image = images.broken("failed-version")
    api = images.api
    api.update_microvm_image(imageIdentifier=image.arn, **images.configuration(images.absent()))
    images.settled(image.arn, "UPDATE_FAILED")
    api.delete_microvm_image_version(imageIdentifier=image.arn, imageVersion="1.0")

    def left() -> list[str]:
        items = api.list_microvm_image_versions(imageIdentifier=image.arn)["items"]
        return [item["imageVersion"] for item in items]

    until("the failed version to be gone", lambda: left() == ["2.0"])
