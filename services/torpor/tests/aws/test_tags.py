"""Tags of images and connectors, through the older tag API."""

import uuid

import pytest
from botocore.exceptions import ClientError

from rig.clients import refusal
from rig.fleet import Fleet
from rig.images import Image, Images
from rig.wire import Wire, segment

TAGS = "/2017-03-31/tags"


@pytest.fixture(scope="module")
def tagged(images: Images) -> Image:
    """An image to be tagged; it needs no version for that."""
    return images.broken("tags")


@pytest.mark.row(58)
def test_tagging(tagged: Image, wire: Wire) -> None:
    path = f"{TAGS}/{segment(tagged.arn)}"
    for tags in ({"team": "a", "stage": "test"}, {"stage": "live"}):
        answer = wire.request("POST", path, {"Tags": tags})
        assert (answer.status, answer.body) == (204, b""), answer
    answer = wire.request("GET", path)
    assert (answer.status, answer.json()) == (200, {"Tags": {"team": "a", "stage": "live"}})


@pytest.mark.row(59)
def test_untagging(tagged: Image, wire: Wire, api) -> None:
    api.tag_resource(Resource=tagged.arn, Tags={"one": "1", "two": "2", "three": ""})
    path = f"{TAGS}/{segment(tagged.arn)}"
    # A key that is not there is no error.
    answer = wire.request("DELETE", path, query="tagKeys=one&tagKeys=two&tagKeys=never")
    assert (answer.status, answer.body) == (204, b""), answer
    left = api.list_tags(Resource=tagged.arn)["Tags"]
    assert "one" not in left and "two" not in left and left["three"] == ""
    api.untag_resource(Resource=tagged.arn, TagKeys=["three"])
    assert "three" not in api.list_tags(Resource=tagged.arn)["Tags"]


@pytest.mark.row(60)
def test_a_microvm_cannot_be_tagged(wire: Wire, fleet: Fleet) -> None:
    arn = f"arn:aws:lambda:{fleet.region}:{fleet.account}:microvm:microvm-{uuid.uuid4()}"
    answer = wire.request("POST", f"{TAGS}/{segment(arn)}", {"Tags": {"a": "b"}})
    assert (answer.status, answer.error) == (400, "ValidationException"), answer
    start = f"1 validation error detected: Value '{arn}' at 'resource' failed to satisfy constraint: "
    assert answer.message.startswith(f"{start}Member must satisfy regular expression pattern: arn:(aws")


@pytest.mark.row(61)
def test_tags_make_no_version(tagged: Image, api) -> None:
    before = api.list_microvm_image_versions(imageIdentifier=tagged.arn)["items"]
    api.tag_resource(Resource=tagged.arn, Tags={"more": "tags"})
    assert api.list_microvm_image_versions(imageIdentifier=tagged.arn)["items"] == before
    image = api.get_microvm_image(imageIdentifier=tagged.arn)
    assert (image["state"], image["tags"]["more"]) == ("CREATE_FAILED", "tags")


def test_tags_given_at_creation(images: Images, api) -> None:
    answer = images.create("born-tagged", images.absent(), tags={"born": "with it", "ü": "é"})
    assert answer["tags"] == {"born": "with it", "ü": "é"}
    assert api.list_tags(Resource=answer["imageArn"])["Tags"] == answer["tags"]


def test_at_most_fifty_tags(images: Images, api) -> None:
    arn = images.broken("many-tags").arn
    api.tag_resource(Resource=arn, Tags={f"key-{number}": "" for number in range(50)})
    with pytest.raises(ClientError) as error:
        api.tag_resource(Resource=arn, Tags={"one-more": ""})
    status, code, _ = refusal(error.value)
    assert status == 400 and code in ("InvalidParameterValueException", "ValidationException"), error.value
    assert len(api.list_tags(Resource=arn)["Tags"]) == 50


@pytest.mark.parametrize("operation", ["list_tags", "tag_resource", "untag_resource"])
def test_tags_of_what_is_not_there(api, fleet: Fleet, operation: str) -> None:
    more = {"tag_resource": {"Tags": {"a": "b"}}, "untag_resource": {"TagKeys": ["a"]}}.get(operation, {})
    with pytest.raises(ClientError) as error:
        getattr(api, operation)(Resource=fleet.image_arn(fleet.name("never-was")), **more)
    assert refusal(error.value)[:2] == (404, "ResourceNotFoundException")


def test_untagging_nothing(tagged: Image, wire: Wire) -> None:
    answer = wire.request("DELETE", f"{TAGS}/{segment(tagged.arn)}")
    expected = (
        "1 validation error detected: Value null at 'tagKeys' failed to satisfy constraint: Member must not be null"
    )
    assert (answer.status, answer.error, answer.message) == (400, "ValidationException", expected)
