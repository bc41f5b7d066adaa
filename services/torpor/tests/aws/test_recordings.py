"""Recordings of the live service, replayed step by step against the fleet and compared."""

import re
from collections.abc import Iterator

import pytest
from botocore.exceptions import ClientError

from rig import apps
from rig.clients import Boto, refusal
from rig.fleet import Fleet
from rig.images import Images
from rig.recordings import RECORDINGS, Differences, Script, Step, scripts
from rig.waiting import until
from rig.wire import Answer, Wire

SCRIPTS = {script.id: script for script in scripts()}
POLL_SECONDS = 0.2
# Rows that a recording proves, by case.
ROWS = {
    "images-lifecycle": (1, 2, 3, 4, 5, 37, 38, 41, 44, 47, 48, 50, 51, 54),
    "managed-images": (57,),
    "tokens": (62, 63, 79, 82, 124, 137),
    "tags-api": (58, 59),
}
PARAMETERS = [pytest.param(script, id=name, marks=pytest.mark.row(*ROWS[name])) for name, script in SCRIPTS.items()]
_VARIABLE = re.compile(r"\$\{(\w+)}")


@pytest.fixture(scope="module")
def differences() -> Differences:
    """What may differ, and what was needed of it."""
    return Differences()


@pytest.fixture(scope="module")
def artifact(boto: Boto) -> None:
    """The scripts' own bucket and key, with the app in it."""
    uri = SCRIPTS["images-lifecycle"].params["codeArtifactUri"]
    bucket, key = uri.removeprefix("s3://").split("/", 1)
    try:
        boto.s3.create_bucket(Bucket=bucket)
    except ClientError as error:
        assert refusal(error)[1] in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"), error
    boto.s3.put_object(Bucket=bucket, Key=key, Body=apps.app_zip())


@pytest.fixture
def without_images_of_scripts(images: Images) -> Iterator[None]:
    """The scripts' images have fixed names: none may be there before, none is left after."""

    def remove() -> None:
        pages = images.api.get_paginator("list_microvm_images").paginate(nameFilter="m80-conf-")
        for arn in [item["imageArn"] for page in pages for item in page["items"]]:
            images.delete(arn)

    remove()
    yield
    remove()


class Run:
    """One script being replayed."""

    def __init__(self, script: Script, fleet: Fleet, wire: Wire) -> None:
        self.wire = wire
        self.values = {"region": fleet.region} | script.params
        self.values = {name: self.fill(value) for name, value in self.values.items()}

    def fill(self, value: object) -> object:
        """A value with its variables replaced."""
        if isinstance(value, str):
            return _VARIABLE.sub(lambda found: str(self.values[found[1]]), value)
        if isinstance(value, dict):
            return {name: self.fill(member) for name, member in value.items()}
        if isinstance(value, list):
            return [self.fill(element) for element in value]
        return value

    def perform(self, step: Step) -> Answer:
        """Sends a step, again and again where it waits for something, and keeps what it captures."""
        path, _, query = self.fill(step.script["path"]).partition("?")
        body = self.fill(step.script.get("body"))

        def send() -> Answer:
            return self.wire.request(step.script["method"], path, body, query=query)

        waiting = step.script.get("until")
        if waiting:

            def ask() -> Answer | None:
                answer = send()
                assert answer.status == step.status, answer
                return answer if _at(answer.json(), waiting["path"]) == waiting["equals"] else None

            answer = until(f"{step.id}: {waiting}", ask, within=waiting["timeoutSec"], every=POLL_SECONDS)
        else:
            answer = send()
        for variable, place in step.script.get("capture", {}).items():
            self.values[variable] = _at(answer.json(), place)
        return answer


def _at(body: object, path: str) -> object:
    for part in path.split("."):
        body = body[int(part)] if isinstance(body, list) else body[part]
    return body


@pytest.mark.usefixtures("artifact", "without_images_of_scripts")
@pytest.mark.parametrize("script", PARAMETERS)
def test_a_recording(script: Script, fleet: Fleet, wire: Wire, differences: Differences) -> None:
    run = Run(script, fleet, wire)
    for step in script.steps:
        answer = run.perform(step)
        assert (answer.status, answer.error) == (step.status, step.error), (step.id, answer)
        if step.body is None:
            continue
        actual = answer.json() if answer.body else ""
        differences.compare(step, actual, step.body)


def test_every_answer_belongs_to_a_step() -> None:
    """No recording lies about that is never compared."""
    compared = {f"{step.id}.json" for script in SCRIPTS.values() for step in script.steps if step.body is not None}
    there = {
        f"{path.parent.name}/{path.name}"
        for path in (RECORDINGS / "answers").glob("*/*.json")
        if not path.name.endswith(".meta.json")
    }
    assert there == compared


def test_the_form_that_is_compared_is_stable() -> None:
    differences = Differences()
    for script in SCRIPTS.values():
        for step in script.steps:
            once = differences.normalised(step, step.body)
            assert differences.normalised(step, once) == once, step.id


@pytest.mark.session
def test_every_difference_is_needed(differences: Differences) -> None:
    assert differences.needed == {entry["what"] for entry in differences.entries}
    assert all(entry["reason"] for entry in differences.entries)
