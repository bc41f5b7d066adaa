"""Every constraint of both models, on both sides of its bound, over the wire.

The requests come from our own description of the models; that it describes what botocore's models say, constraint for
constraint, is tested here too, without a fleet.
"""

import re
from collections.abc import Iterator

import pytest
from botocore.model import ListShape, MapShape, Shape, StringShape, StructureShape

from rig import boundary, models
from rig.boundary import Case
from rig.connectors import remove
from rig.wire import Answer, Wire

NOT_NULL = "Member must not be null"
EVERY_OPERATION = [pytest.param(s, o, id=o) for s, o in models.every_operation()]
SHOWN_MAX = 20


# How the services tell what breaks a rule of theirs, and the rules that a case may break though it keeps the model's
# constraints: those of form that the model does not have.
RULE = re.compile(r"[\w.\[\]]+: (must|needs) ")
BEYOND_THE_MODEL = (
    "microvmIdentifier: must be 'microvm-'",
    "allowedPorts[0]: must be a port of 1 to 65535, a range of them in order",
    "codeArtifact.uri: must have the form 's3://",
    "imageVersion: must have the form 'major.minor'",
    "idlePolicy.maxIdleDurationSeconds: must be whole seconds, 1 to 28800",
    "name: must be 1 to 64 characters",
    "identifier: must be 1 to 64 characters",
)


def send(wire: Wire, case: Case) -> Answer:
    """Sends a case as it is."""
    body = None if case.body is None else case.body.encode()
    return wire.request(case.method, case.path, body, query=case.query)


def judge(case: Case, answer: Answer) -> str | None:
    """What is wrong with an answer, if anything."""
    if not case.plain_path:
        return None if answer.status == 404 else "is not that of a path that leads nowhere"
    if case.valid:
        passed = answer.error != "SerializationException" and b"validation error" not in answer.body
        message = answer.message or ""
        ruled = RULE.match(message) and not message.startswith(BEYOND_THE_MODEL)
        return None if passed and not ruled and answer.status < 500 else "was refused by a constraint"
    if (answer.status, answer.error) != (case.status, case.error):
        return f"is not {case.status} {case.error}"
    return None if case.violation in (answer.message or "") else f"lacks '{case.violation}'"


@pytest.fixture
def connectors_as_before(core) -> Iterator[None]:
    """Requests that pass make connectors; they go again."""

    def all_connectors() -> set[str]:
        pages = core.get_paginator("list_network_connectors").paginate()
        return {item["Arn"] for page in pages for item in page["NetworkConnectors"]}

    before = all_connectors()
    yield
    remove(core, all_connectors() - before)


@pytest.mark.usefixtures("connectors_as_before")
@pytest.mark.parametrize("operation", [o for _, o in models.every_operation()])
def test_both_sides_of_every_bound(wire: Wire, operation: str) -> None:
    cases = boundary.of(operation)
    assert any(case.valid for case in cases), f"no case of {operation}"
    wrong = []
    for case in cases:
        answer = send(wire, case)
        problem = judge(case, answer)
        if problem:
            wrong.append(f"{case.what}: {answer!r} {problem}")
    listed = "\n".join(wrong[:SHOWN_MAX])
    assert not wrong, f"{len(wrong)} of {len(cases)} cases of {operation}:\n{listed}"


def constraints(shape: Shape, path: str) -> Iterator[tuple[str, str]]:
    """(path, sentence) of every constraint of a shape and all below it, in the service's words."""
    yield from ((path, sentence) for sentence in own(shape))
    if isinstance(shape, StructureShape):
        if getattr(shape, "is_tagged_union", False):
            names = ", ".join(shape.members)
            yield path, f"Member must have exactly one of the following members set: [{names}]"
        for name, member in shape.members.items():
            below = f"{path}.{name[:1].lower()}{name[1:]}"
            if name in shape.required_members:
                yield below, NOT_NULL
            yield from constraints(member, below)
    elif isinstance(shape, ListShape):
        if isinstance(shape.member, StructureShape):
            yield from constraints(shape.member, f"{path}.1.member")
        else:
            # Scalars of a list are told of with the list.
            yield from ((path, sentence) for sentence in own(shape.member))
    elif isinstance(shape, MapShape):
        yield from ((path, sentence) for part in (shape.key, shape.value) for sentence in own(part))


def own(shape: Shape) -> Iterator[str]:
    """Sentences about a value by itself that some value violates."""
    kind = "value" if shape.type_name in ("integer", "long") else "length"
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    if low is not None and (kind == "value" or low > 0):
        yield f"Member must have {kind} greater than or equal to {low}"
    if high is not None:
        yield f"Member must have {kind} less than or equal to {high}"
    if shape.metadata.get("pattern"):
        yield f"Member must satisfy regular expression pattern: {shape.metadata['pattern']}"
    if isinstance(shape, StringShape) and shape.enum:
        yield f"Member must satisfy enum value set: [{', '.join(shape.enum)}]"


@pytest.mark.parametrize(("service", "operation"), EVERY_OPERATION)
def test_every_constraint_of_the_model_has_a_case(service: str, operation: str) -> None:
    shape = models.operation(service, operation).input_shape
    violations = [case.violation or "" for case in boundary.of(operation)]
    missing = []
    for name, member in shape.members.items():
        path = f"{name[:1].lower()}{name[1:]}"
        wanted = list(constraints(member, path))
        if name in shape.required_members and member.serialization.get("location") != "uri":
            wanted.append((path, NOT_NULL))
        missing += [
            f"{path}: {sentence}"
            for path, sentence in wanted
            if not any(f"at '{path}'" in violation and sentence in violation for violation in violations)
        ]
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize(("service", "operation"), EVERY_OPERATION)
def test_cases_go_where_the_model_says(service: str, operation: str) -> None:
    cases = {(case.method, case.path.split("/")[1]) for case in boundary.of(operation)}
    http = models.operation(service, operation).http
    assert cases == {(http["method"], http["requestUri"].split("/")[1])}
