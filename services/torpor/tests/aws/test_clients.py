"""Clients of other languages and libraries, which `torpor env` alone tells where the fleet is and whom to trust."""

import json
import subprocess

import httpx
import pytest

from rig import node
from rig.fleet import Fleet
from rig.images import Image
from rig.microvms import AUTH_HEADER, Microvms, Running

POLICY = {"maxIdleDurationSeconds": 3600, "suspendedDurationSeconds": 3600, "autoResumeEnabled": True}
GRPC_PORT = 50051
_SECONDS = 60


def test_the_aws_sdk_for_javascript_and_fetch(fleet: Fleet, plain: Image) -> None:
    command = [*node.command("microvm.js"), plain.arn, fleet.variables["TORPOR_EDGE"].rsplit(":", 1)[1]]
    environment = node.environment(fleet)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert [(answer["status"], answer["count"]) for answer in answers] == [(200, 1), (200, 2)], answers


def test_the_aws_sdk_for_rust_and_tonic(fleet: Fleet, protocols: Image) -> None:
    # Made with the tests; it says what it does.
    program = fleet.program.parent / "examples" / "rust_clients"
    command = [str(program), protocols.arn, fleet.variables["TORPOR_EDGE"].rsplit(":", 1)[1], str(GRPC_PORT)]
    environment = fleet.environment()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["one call", "before it sleeps", "after it slept"]


@pytest.fixture(scope="module")
def running(plain: Image, module_microvms: Microvms) -> Running:
    """A microVM that wakes with what its clients send."""
    return module_microvms.run(plain.arn, idlePolicy=POLICY)


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
def test_httpx(running: Running, version: str) -> None:
    headers = {AUTH_HEADER: running.microvms.token(running.id)}
    with httpx.Client(http2=version == "HTTP/2", headers=headers, timeout=_SECONDS) as client:
        first = client.get(running.url)
        running.suspend()
        # The connection was kept.
        second = client.get(running.url)
    assert (first.status_code, first.http_version) == (200, version)
    assert (second.status_code, second.json()["count"]) == (200, first.json()["count"] + 1)
