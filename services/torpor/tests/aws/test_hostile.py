"""Requests that mean harm: each is answered in the service's manner with a 4xx, and nothing else happens."""

import json
import random

import pytest

from rig import models
from rig.fleet import Fleet
from rig.wire import Prepared, Signing, Wire

IMAGES = "/2025-09-09/microvm-images"
MICROVMS = "/2025-09-09/microvms"
DEPTH = 20_000
TEN_MIB = 10 << 20
# Fixed, so that a failure comes again.
SEED = 3


def refused(wire: Wire, body: bytes, path: str = MICROVMS) -> None:
    """A signed body is refused with a 4xx that names its class."""
    answer = wire.request("POST", path, body)
    assert 400 <= answer.status < 500 and answer.error, (body[:100], answer)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"imageIdentifier":',
        b'{"imageIdentifier": "x"',
        b'{"imageIdentifier": "x"} {}',
        b'{"imageIdentifier": "x"},',
        b"[]",
        b"null",
        b"1",
        b'"text"',
        b"\xef\xbb\xbf{}",
        b"{'imageIdentifier': 'x'}",
        b'{"imageIdentifier": NaN}',
        b'{"imageIdentifier": "\x00"}',
        b'{"imageIdentifier": "\\ud800"}',
        b"<xml/>",
        b"\x00",
    ],
)
def test_bodies_that_are_no_json(wire: Wire, body: bytes) -> None:
    refused(wire, body)


@pytest.mark.parametrize(
    "body", [b'{"imageIdentifier": "\xff\xfe"}', b'{"\xc0\x80": 1}', b'{"imageIdentifier": "\xed\xa0\x80"}']
)
def test_text_that_is_no_utf8(wire: Wire, body: bytes) -> None:
    refused(wire, body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"imageIdentifier": "a", "imageIdentifier": "b"}',
        b'{"imageIdentifier": "a", "imageIdentifier": "a"}',
        b'{"imageIdentifier": "a", "image\\u0049dentifier": "b"}',
    ],
)
def test_names_that_come_twice(wire: Wire, body: bytes) -> None:
    refused(wire, body)


@pytest.mark.parametrize(("before", "after"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_deep_nesting(wire: Wire, before: bytes, after: bytes) -> None:
    nested = before * DEPTH + b"1" + after * DEPTH
    refused(wire, b'{"imageIdentifier": "x", "unknown": ' + nested + b"}")
    refused(wire, before * DEPTH)


def test_a_long_body(wire: Wire) -> None:
    refused(wire, b'{"imageIdentifier": "' + b"x" * TEN_MIB + b'"}')
    refused(wire, b" " * TEN_MIB)


def test_a_long_body_without_a_signature(wire: Wire) -> None:
    answer = wire.send(Prepared("POST", MICROVMS, {"Content-Type": "application/json"}, b"x" * TEN_MIB))
    assert 400 <= answer.status < 500, answer


def wrong_values(kind: str) -> list[object]:
    """Values of other JSON types than a member's own."""
    all_values = {
        "string": "text",
        "integer": 7,
        "boolean": True,
        "list": [],
        "structure": {},
        "decimal": 1.5,
        "huge": 10**40,
    }
    same = {"long": "integer", "map": "structure"}.get(kind, kind)
    return [value for name, value in all_values.items() if name != same]


def body_members(service: str, operation: str) -> dict:
    """Members of an operation that travel in its body, with their shapes."""
    members = models.operation(service, operation).input_shape.members
    return {name: shape for name, shape in members.items() if not shape.serialization.get("location")}


WITH_BODY = [(s, o) for s, o in models.every_operation() if body_members(s, o)]


@pytest.mark.parametrize(("service", "operation"), [pytest.param(s, o, id=o) for s, o in WITH_BODY])
def test_wrong_types_in_every_member(wire: Wire, service: str, operation: str) -> None:
    """Straight from botocore's model, with nothing else right."""
    model = models.operation(service, operation)
    path = model.http["requestUri"].split("?")[0]
    for name in model.input_shape.members:
        path = path.replace(f"{{{name}}}", "x")
    for name, shape in body_members(service, operation).items():
        for value in wrong_values(shape.type_name):
            answer = wire.request(model.http["method"], path, {name: value})
            assert 400 <= answer.status < 500 and answer.error, (name, value, answer)


def test_noise(wire: Wire) -> None:
    """Bodies that were good, with bytes changed."""
    noise = random.Random(SEED)
    good = json.dumps(
        {
            "imageIdentifier": "arn:aws:lambda:us-east-1:000000000000:microvm-image:never-was",
            "idlePolicy": {"maxIdleDurationSeconds": 60, "suspendedDurationSeconds": 0, "autoResumeEnabled": True},
            "logging": {"disabled": {}},
        }
    ).encode()
    for _ in range(200):
        body = bytearray(good)
        for _ in range(noise.randint(1, 4)):
            body[noise.randrange(len(body))] = noise.randrange(256)
        refused(wire, bytes(body))


@pytest.mark.parametrize("name", ["x" * 70_000, "x: y\r\nX-More: z"])
def test_heads_that_are_too_long_or_split(wire: Wire, name: str) -> None:
    head = f"GET {IMAGES} HTTP/1.1\r\nHost: {wire.host}:{wire.port}\r\nX-Note: {name}\r\nConnection: close\r\n\r\n"
    answer = wire.send_bytes(head.encode())
    # Without a signature it is refused whatever it carries, or the connection ends.
    assert not answer or answer.split(b" ", 2)[1].startswith(b"4"), answer[:200]


@pytest.mark.parametrize(
    "framing",
    [
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 5, 5x\r\n",
        "Content-Length: 99999999999999999999\r\n",
    ],
)
def test_smuggling(wire: Wire, framing: str) -> None:
    """A second request behind an ambiguous first one gets no answer of its own."""
    hidden = f"GET /smuggled HTTP/1.1\r\nHost: {wire.host}\r\n\r\n"
    head = f"POST {MICROVMS} HTTP/1.1\r\nHost: {wire.host}:{wire.port}\r\n{framing}\r\n"
    answer = wire.send_bytes(f"{head}0\r\n\r\n{hidden}".encode(), within=2)
    assert answer.count(b"HTTP/1.1 ") <= 1, answer[:500]
    assert not answer or answer.split(b" ", 2)[1].startswith(b"4"), answer[:200]


def test_queries_without_end(wire: Wire) -> None:
    for query in ("&".join(f"a{number}=1" for number in range(5000)), "maxResults=1&maxResults=2", "a=%zz&b=%"):
        answer = wire.request("GET", IMAGES, query=query)
        assert 400 <= answer.status < 500, (query[:50], answer)


@pytest.mark.parametrize("traversal", ["..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "%00", "a%0d%0ab"])
def test_paths_that_climb(wire: Wire, traversal: str) -> None:
    answer = wire.request("GET", f"{MICROVMS}/{traversal}")
    assert 400 <= answer.status < 500, answer


def test_the_fleet_is_well_afterwards(wire: Wire, fleet: Fleet) -> None:
    """Nothing of the above ended a process."""
    components = fleet.json("status")["components"]
    assert all(component["health"] == "healthy" for component in components), components
    assert wire.request("GET", IMAGES, signing=Signing()).status == 200
