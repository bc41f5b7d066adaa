"""Rates: every operation has one, and what comes faster is told to wait.

`deploy/test` gives the operations for which AWS publishes no rate one of a hundred a second.
"""

import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError

from rig import models
from rig.clients import Boto, refusal
from rig.fleet import Fleet
from rig.images import Images
from rig.waiting import until
from rig.wire import Prepared, Wire

MICROVMS = "/2025-09-09/microvms"
SUSPENDS_PER_SECOND = 2
NOBODY = "0190a5e2-7c3b-4f00-8000-000000000001"
ATTEMPTS_MAX = 200
# Requests that are under way at a time in a flood.
PIPELINED = 50
STATUS_LINE = b"HTTP/1.1 "


@pytest.mark.row(159, 160)
def test_suspends_have_a_rate(wire: Wire) -> None:
    path = f"{MICROVMS}/microvm-{uuid.uuid4()}/suspend"
    answers = []
    began = time.monotonic()

    def passed() -> int:
        return sum(answer.status != 429 for answer in answers)

    def several_passed() -> bool:
        answers.append(wire.request("POST", path, patient=False))
        return passed() > SUSPENDS_PER_SECOND and len(answers) >= 12

    # Whatever is left of the burst at the beginning, the rate lets suspends pass, and not more of them than a whole
    # burst and the time that went by allow.
    until("suspends to pass", several_passed, within=30, every=0)
    took = time.monotonic() - began
    throttled = [answer for answer in answers if answer.status == 429]
    assert throttled
    assert passed() <= math.floor(SUSPENDS_PER_SECOND * (1 + took)), (passed(), took)
    for answer in throttled:
        assert answer.error == "ThrottlingException"
        assert int(answer.headers["Retry-After"]) >= 1
        assert set(answer.json()) == {"message", "quotaCode", "serviceCode"}
        assert answer.json()["message"]
    # What Retry-After promises holds.
    time.sleep(int(throttled[-1].headers["Retry-After"]))
    assert wire.request("POST", path, patient=False).status == 404


@contextmanager
def flood(wire: Wire, prepared: Prepared) -> Iterator[None]:
    """Sends one signed request again and again, many at a time, as fast as a connection goes."""
    stop = threading.Event()
    requests = wire.raw(prepared) * PIPELINED

    def send() -> None:
        with wire.stream() as stream:
            while not stop.is_set():
                stream.sendall(requests)
                answers, last = 0, b""
                while answers < PIPELINED:
                    block = stream.recv(1 << 16)
                    assert block, "the connection ended in the middle of a flood"
                    answers += (last + block).count(STATUS_LINE)
                    last = block[-len(STATUS_LINE) + 1 :]

    with ThreadPoolExecutor(max_workers=1) as pool:
        sending = pool.submit(send)
        try:
            yield
        finally:
            stop.set()
            sending.result()


def throttled(wire: Wire, boto: Boto, service: str, call: Callable[[], object]) -> ClientError:
    """The error that a call gets when its like come too fast."""
    client = boto.client(service, patient=False)
    sent: list[Prepared] = []

    def keep(request, **_) -> None:
        parts = urlsplit(request.url)
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        text = {name: value.decode() if isinstance(value, bytes) else value for name, value in request.headers.items()}
        sent.append(Prepared(request.method, target, text, request.body or b""))

    client.meta.events.register_first("before-send", keep)
    try:
        refused_once(call)
    finally:
        client.meta.events.unregister("before-send", keep)
    with flood(wire, sent[0]):
        for _ in range(ATTEMPTS_MAX):
            error = refused_once(call)
            if error is not None and refusal(error)[0] == 429:
                return error
    raise AssertionError(f"{ATTEMPTS_MAX} calls during a flood and none was throttled")


def refused_once(call: Callable[[], object]) -> ClientError | None:
    """How a call was refused, if it was."""
    try:
        call()
    except ClientError as error:
        return error
    return None


@pytest.mark.row(159)
@pytest.mark.parametrize("operation", models.operations(models.MICROVMS))
def test_every_operation_has_a_rate(wire: Wire, boto: Boto, fleet: Fleet, images: Images, operation: str) -> None:
    """The calls change nothing: what they name does not exist, or is no artifact."""
    arn = fleet.image_arn(fleet.name("never-was"))
    image = {"imageIdentifier": arn}
    version = image | {"imageVersion": "1.0"}
    microvm = {"microvmIdentifier": f"microvm-{NOBODY}"}
    arguments = {
        "CreateMicrovmAuthToken": microvm | {"expirationInMinutes": 1, "allowedPorts": [{"allPorts": {}}]},
        "CreateMicrovmImage": images.configuration("s3://x", name=fleet.name("rate")),
        "CreateMicrovmShellAuthToken": microvm | {"expirationInMinutes": 1},
        "DeleteMicrovmImage": image,
        "DeleteMicrovmImageVersion": version,
        "GetMicrovm": microvm,
        "GetMicrovmImage": image,
        "GetMicrovmImageBuild": version | {"buildId": NOBODY},
        "GetMicrovmImageVersion": version,
        "ListManagedMicrovmImageVersions": {"imageIdentifier": fleet.base_arn},
        "ListManagedMicrovmImages": {},
        "ListMicrovmImageBuilds": version,
        "ListMicrovmImageVersions": image,
        "ListMicrovmImages": {},
        "ListMicrovms": {},
        "ListTags": {"Resource": arn},
        "ResumeMicrovm": microvm,
        "RunMicrovm": image,
        "SuspendMicrovm": microvm,
        "TagResource": {"Resource": arn, "Tags": {"a": "b"}},
        "TerminateMicrovm": microvm,
        "UntagResource": {"Resource": arn, "TagKeys": ["a"]},
        "UpdateMicrovmImage": image | images.configuration("s3://x"),
        "UpdateMicrovmImageVersion": version | {"status": "ACTIVE"},
    }[operation]
    error = throttled(wire, boto, models.MICROVMS, lambda: boto.call(models.MICROVMS, operation, False, **arguments))
    assert refusal(error)[:2] == (429, "ThrottlingException")
    assert int(error.response["ResponseMetadata"]["HTTPHeaders"]["retry-after"]) >= 1


@pytest.mark.parametrize("operation", models.operations(models.CORE))
def test_every_operation_on_connectors_has_a_rate(wire: Wire, boto: Boto, fleet: Fleet, operation: str) -> None:
    named = {"Identifier": fleet.name("never-was")}
    arguments = {
        # Without subnets nothing is made.
        "CreateNetworkConnector": {"Name": "x", "Configuration": {"VpcEgressConfiguration": {}}},
        "DeleteNetworkConnector": named,
        "GetNetworkConnector": named,
        "ListNetworkConnectorVersions": named,
        "ListNetworkConnectors": {},
        "UpdateNetworkConnector": named | {"ClientToken": "rate"},
    }[operation]
    error = throttled(wire, boto, models.CORE, lambda: boto.call(models.CORE, operation, False, **arguments))
    assert refusal(error)[:2] == (429, "TooManyRequestsException")
    assert int(error.response["ResponseMetadata"]["HTTPHeaders"]["retry-after"]) >= 1
