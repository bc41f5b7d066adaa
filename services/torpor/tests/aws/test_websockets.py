"""WebSockets of a client that others wrote, to an app in a microVM, also while that sleeps."""

import json
import os
import socket
import ssl

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from rig.images import Image
from rig.microvms import AUTH_HEADER, Microvms, Running

MARKER = "lambda-microvms"
POLICY = {"maxIdleDurationSeconds": 3600, "suspendedDurationSeconds": 3600, "autoResumeEnabled": True}
SLEEPS = 5
_SECONDS = 60


def dial(running: Running, *protocols: str, path: str = "/socket", **arguments) -> ClientConnection:
    """A WebSocket to the app."""
    fleet = running.microvms.fleet
    host, port = fleet.variables["TORPOR_EDGE"].rsplit(":", 1)
    return connect(
        f"wss://{running.endpoint}:{port}{path}",
        sock=socket.create_connection((host, int(port)), timeout=_SECONDS),
        ssl=ssl.create_default_context(cafile=fleet.variables["AWS_CA_BUNDLE"]),
        server_hostname=running.endpoint,
        subprotocols=list(protocols) or None,
        open_timeout=_SECONDS,
        ping_interval=None,
        compression=None,
        **arguments,
    )


@pytest.fixture(scope="module")
def running(plain: Image, module_microvms: Microvms) -> Running:
    """A microVM that wakes with what its clients send."""
    return module_microvms.run(plain.arn, idlePolicy=POLICY)


@pytest.fixture(scope="module")
def token(running: Running) -> str:
    """A token for all its ports."""
    return running.microvms.token(running.id)


@pytest.mark.row(132, 133, 134, 136)
@pytest.mark.parametrize(
    ("more", "seen", "selected"),
    [([], "", MARKER), (["chat", f"{MARKER}.port.8081", "mqtt"], "chat, mqtt", "chat")],
)
def test_token_and_port_as_subprotocols(running: Running, token: str, more: list, seen: str, selected: str) -> None:
    with dial(running, MARKER, f"{MARKER}.authentication.{token}", *more) as client:
        assert client.subprotocol == selected
        assert json.loads(client.recv(timeout=_SECONDS))["offered"] == seen
        for message in ["text", b"\x00\xff binary", "x" * 60_000]:
            client.send(message)
            assert client.recv(timeout=_SECONDS) == message


@pytest.mark.row(135)
def test_without_the_marker_there_is_none(running: Running, token: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        dial(running, f"{MARKER}.authentication.{token}")
    assert refused.value.response.status_code == 403


def test_one_stays_open_while_its_microvm_sleeps(running: Running, token: str) -> None:
    with dial(running, additional_headers={AUTH_HEADER: token}) as client:
        pid = json.loads(client.recv(timeout=_SECONDS))["pid"]
        for sleep in range(SLEEPS):
            running.suspend()
            message = os.urandom(20_000 + sleep)
            client.send(message)
            assert client.recv(timeout=_SECONDS) == message
            assert running.microvms.get(running.id)["state"] == "RUNNING"
        client.ping().wait(_SECONDS)
    assert running.ask().json()["pid"] == pid
