"""A service behind the API is gone for a moment: every operation says so in its manner, and is well again by itself."""

import concurrent.futures
import contextlib
import os
import signal
import time

import pytest
from botocore.exceptions import ClientError

from rig import models, requests
from rig.clients import Boto, refusal
from rig.fleet import Fleet
from rig.waiting import until

# Longest wait for a call to meet the outage.
MEETING_SECONDS = 20.0
HEALING_SECONDS = 60.0
SCHEDULER = "scheduler"
IMAGE_BUILDER = "image-builder"


def component(service: str, operation: str) -> str:
    """Which service answers an operation."""
    scheduled = service == models.CORE or operation.endswith(("Microvm", "Microvms", "AuthToken"))
    return SCHEDULER if scheduled else IMAGE_BUILDER


def healthy(fleet: Fleet, name: str) -> bool:
    """Whether the supervisor calls a component healthy."""
    return fleet.component(name)["health"] == "healthy"


@pytest.mark.server_errors
@pytest.mark.parametrize("name", [SCHEDULER, IMAGE_BUILDER])
def test_an_outage(boto: Boto, fleet: Fleet, name: str) -> None:
    operations = [(s, o) for s, o in models.every_operation() if component(s, o) == name]
    over = time.monotonic() + MEETING_SECONDS

    def meet(operation: tuple[str, str]) -> set[str]:
        """Every class that an operation answered with until it met the outage."""
        service, called = operation
        seen = set()
        while time.monotonic() < over:
            try:
                boto.call(service, called, False, **arguments(fleet, called))
            except ClientError as error:
                status, code, _ = refusal(error)
                seen.add(code)
                if status == 500:
                    headers = error.response["ResponseMetadata"]["HTTPHeaders"]
                    assert int(headers["retry-after"]) >= 1, error
                    break
            time.sleep(0.01)
        return seen

    with concurrent.futures.ThreadPoolExecutor(max_workers=len(operations)) as pool:
        meetings = [pool.submit(meet, operation) for operation in operations]
        time.sleep(0.5)
        # As often as it comes back, because it is back within less than a call's time.
        while not all(meeting.done() for meeting in meetings):
            if (pid := fleet.component(name)["pid"]) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        met = [meeting.result() for meeting in meetings]
    for (service, called), seen in zip(operations, met, strict=True):
        expected = "InternalServerException" if service == models.MICROVMS else "ServiceException"
        server = {code for code in seen if code.startswith(("Internal", "Service", "Insufficient"))}
        assert server == {expected}, f"{called}: {seen}"
    until(f"{name} to be healthy", lambda: healthy(fleet, name), within=HEALING_SECONDS)
    for service, called in operations:
        until(f"{called} to be well", lambda s=service, c=called: well(boto, fleet, s, c), within=HEALING_SECONDS)


def arguments(fleet: Fleet, operation: str) -> dict:
    """Arguments that reach the service and change nothing."""
    found = requests.of_nobody(fleet, operation)
    if operation == "CreateNetworkConnector":
        # Complete, with a rule broken that only the service knows.
        found |= {"OperatorRole": fleet.role_arn, "ClientToken": "outage", "Tags": {"torpor:unknown": "x"}}
    return found


def well(boto: Boto, fleet: Fleet, service: str, operation: str) -> bool:
    """Whether an operation answers, be it with a refusal."""
    try:
        boto.call(service, operation, **arguments(fleet, operation))
    except ClientError as error:
        return refusal(error)[0] < 500
    return True
