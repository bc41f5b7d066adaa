"""Lists and their pages, in both directions of their bounds, and the managed images."""

import re

import pytest

from rig.fleet import BASE, Fleet
from rig.images import Image, Images
from rig.wire import Answer, Wire, segment

IMAGES = "/2025-09-09/microvm-images"
MICROVMS = "/2025-09-09/microvms"
MANAGED = "/2025-09-09/managed-microvm-images"


@pytest.fixture(scope="module")
def several(images: Images) -> list[Image]:
    """Three images with names that differ in one word."""
    made = []
    for word in ("pear", "plum", "quince"):
        answer = images.create(f"list-{word}", images.absent())
        made.append(Image(answer["name"], answer["imageArn"]))
    for image in made:
        images.settled(image.arn)
    return made


def pages(wire: Wire, path: str, query: str = "") -> list[dict]:
    """Every page of a list."""
    found = []
    token = ""
    while True:
        answer = wire.request("GET", path, query="&".join(part for part in (query, token) if part))
        assert answer.status == 200, answer
        found.append(answer.json())
        assert set(found[-1]) == {"items", "nextToken"}
        assert len(found) < 500, "a list that does not end"
        if found[-1]["nextToken"] is None:
            return found
        token = f"nextToken={segment(found[-1]['nextToken'])}"


@pytest.mark.row(52)
def test_name_filters_apply_within_pages(several: list[Image], fleet: Fleet, wire: Wire) -> None:
    # Pages of one: all but one are empty, and have a token all the same.
    found = pages(wire, IMAGES, f"maxResults=1&nameFilter={fleet.tag}-list-plum")
    assert [item["name"] for page in found for item in page["items"]] == [several[1].name]
    assert len(found) >= len(several)
    assert any(not page["items"] and page["nextToken"] for page in found)


@pytest.mark.row(52)
def test_name_filters_find_parts(several: list[Image], fleet: Fleet, wire: Wire) -> None:
    found = pages(wire, IMAGES, f"nameFilter={fleet.tag}-list-p")
    assert {item["name"] for page in found for item in page["items"]} == {several[0].name, several[1].name}
    assert all(not page["items"] for page in pages(wire, IMAGES, "nameFilter=no-image-has-this-in-its-name"))


def test_pages_do_not_overlap(several: list[Image], wire: Wire) -> None:
    names = [item["name"] for page in pages(wire, IMAGES, "maxResults=2") for item in page["items"]]
    assert len(names) == len(set(names))
    assert {image.name for image in several} <= set(names)


def test_paginators_see_everything(several: list[Image], api, fleet: Fleet) -> None:
    found = api.get_paginator("list_microvm_images").paginate(
        nameFilter=f"{fleet.tag}-list-", PaginationConfig={"PageSize": 1}
    )
    assert sorted(item["name"] for page in found for item in page["items"]) == sorted(i.name for i in several)


@pytest.mark.usefixtures("several")
@pytest.mark.row(53)
@pytest.mark.parametrize("path", [IMAGES, MICROVMS, MANAGED])
def test_bounds_of_pages(wire: Wire, path: str) -> None:
    for good in (1, 50):
        assert wire.request("GET", path, query=f"maxResults={good}").status == 200
    for bad, constraint in ((0, "greater than or equal to 1"), (51, "less than or equal to 50")):
        answer = wire.request("GET", path, query=f"maxResults={bad}")
        text = (
            f"1 validation error detected: Value '{bad}' at 'maxResults' failed to satisfy constraint: "
            f"Member must have value {constraint}"
        )
        assert (answer.status, answer.error, answer.message) == (400, "ValidationException", text)


@pytest.mark.parametrize("value", ["many", "1.5", "", "99999999999"])
def test_page_sizes_that_are_no_numbers(wire: Wire, value: str) -> None:
    answer = wire.request("GET", IMAGES, query=f"maxResults={value}")
    assert answer.status == 400, answer


@pytest.mark.row(54)
@pytest.mark.parametrize("path", [IMAGES, MICROVMS, MANAGED, f"{MANAGED}/{{base}}/versions"])
def test_the_last_page_says_so_with_null(wire: Wire, fleet: Fleet, path: str) -> None:
    last = pages(wire, path.format(base=segment(fleet.base_arn)))[-1]
    assert last["nextToken"] is None


def _first_token(wire: Wire) -> str:
    answer = wire.request("GET", IMAGES, query="maxResults=1")
    return answer.json()["nextToken"]


@pytest.mark.usefixtures("several")
@pytest.mark.row(55)
def test_padding_that_is_not_encoded(wire: Wire) -> None:
    token = _first_token(wire)
    # Signed as it should be sent, sent as it is.
    prepared = wire.prepare("GET", IMAGES, query=f"nextToken={segment(token)}%3D%3D")
    prepared.target = f"{IMAGES}?nextToken={token}=="
    answer = wire.send(prepared)
    assert (answer.status, answer.message) == (400, None), answer


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize("spoiled", ["{start}AAA", "AAAA", "{whole}AAAA", "%00", "%F0%9F%98%80"])
def test_page_tokens_that_are_not_ours(wire: Wire, spoiled: str) -> None:
    token = _first_token(wire)
    answer = wire.request("GET", IMAGES, query=f"nextToken={spoiled.format(whole=token, start=token[:-3])}")
    assert (answer.status, answer.error) == (400, "ValidationException"), answer


@pytest.mark.usefixtures("several")
def test_a_page_token_of_another_list(wire: Wire) -> None:
    answer = wire.request("GET", MICROVMS, query=f"nextToken={segment(_first_token(wire))}")
    assert (answer.status, answer.error) == (400, "ValidationException"), answer


@pytest.mark.usefixtures("several")
def test_a_page_token_with_another_filter(wire: Wire) -> None:
    answer = wire.request("GET", IMAGES, query=f"nextToken={segment(_first_token(wire))}&nameFilter=x")
    assert (answer.status, answer.error) == (400, "ValidationException"), answer


def test_versions_are_listed_newest_first(images: Images, several: list[Image]) -> None:
    arn = several[2].arn
    for _ in range(2):
        images.api.update_microvm_image(imageIdentifier=arn, **images.configuration(images.absent()))
        images.settled(arn, "UPDATE_FAILED")
    pager = images.api.get_paginator("list_microvm_image_versions")
    found = pager.paginate(imageIdentifier=arn, PaginationConfig={"PageSize": 2})
    assert [item["imageVersion"] for page in found for item in page["items"]] == ["3.0", "2.0", "1.0"]


@pytest.mark.row(
    56,
    differs="managed images are the fleet's own bases, `debian-12` for one, whose other name is `al2023-1`; their ARNs have "
    "the same form",
)
def test_managed_images(wire: Wire, fleet: Fleet) -> None:
    items = [item for page in pages(wire, MANAGED) for item in page["items"]]
    assert {fleet.base_arn, fleet.managed_arn("microvm-image", "al2023-1")} <= {item["imageArn"] for item in items}
    for item in items:
        assert set(item) == {"imageArn", "createdAt", "updatedAt"}
        assert item["imageArn"].split(":")[:6] == ["arn", "aws", "lambda", fleet.region, "aws", "microvm-image"]


@pytest.mark.row(57)
def test_versions_of_a_managed_image(wire: Wire, fleet: Fleet) -> None:
    found = pages(wire, f"{MANAGED}/{segment(fleet.base_arn)}/versions")
    items = [item for page in found for item in page["items"]]
    versions = [item["imageVersion"] for item in items]
    # Of two, or their order would say nothing.
    assert len(versions) > 1 and all(re.fullmatch(r"[0-9]+", version) for version in versions)
    assert versions == sorted(versions, key=int, reverse=True)
    assert items[0]["status"] == "AVAILABLE"
    for item in items:
        assert set(item) - {"supportedCpuConfigurations"} == {
            "imageArn",
            "imageVersion",
            "status",
            "createdAt",
            "updatedAt",
        }
        assert item["imageArn"] == fleet.base_arn


def test_versions_of_an_unknown_managed_image(wire: Wire, fleet: Fleet) -> None:
    arn = fleet.managed_arn("microvm-image", f"no-{BASE}")
    answer: Answer = wire.request("GET", f"{MANAGED}/{segment(arn)}/versions")
    assert (answer.status, answer.error) == (404, "ResourceNotFoundException"), answer
