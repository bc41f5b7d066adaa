"""Connections of every kind, all open at once, while their microVM sleeps again and again, every second time to wake on
another host. TORPOR_TEST_SLEEPS says how often.
"""

import itertools
import json
import os
import queue
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import grpc
import pytest

from rig.images import Image
from rig.microvms import AUTH_HEADER, PORT_HEADER, Microvms, Running
from rig.waiting import until
from test_protocols import GRPC_PORT, POLICY, head, next_event, raw, read_head
from test_websockets import dial

SLEEPS = int(os.environ.get("TORPOR_TEST_SLEEPS", "4"))
SOCKET_PORT = 8082
_SECONDS = 60
# A stream of gRPC's has one deadline for all of it.
_STREAM_SECONDS = 60 + 30 * SLEEPS

# A connection: says a number, and hears what comes of it.
Talk = tuple[Callable[[int], None], Callable[[int], None]]


@pytest.fixture
def running(protocols: Image, microvms: Microvms) -> Running:
    """A microVM that lets shells in and wakes with what its clients send."""
    ingress = [microvms.fleet.connector_arn(name) for name in ("HTTP_INGRESS", "SHELL_INGRESS")]
    return microvms.run(protocols.arn, idlePolicy=POLICY, ingressNetworkConnectors=ingress)


def websocket(running: Running, token: str, stack: ExitStack) -> Talk:
    """An echo."""
    headers = {AUTH_HEADER: token, PORT_HEADER: str(SOCKET_PORT)}
    socket = stack.enter_context(dial(running, additional_headers=headers))
    assert int(socket.recv(timeout=_SECONDS)) > 0
    payload = os.urandom(20_000)

    def hear(number: int) -> None:
        assert socket.recv(timeout=_SECONDS) == b"%d " % number + payload

    return lambda number: socket.send(b"%d " % number + payload), hear


def events(running: Running, token: str, stack: ExitStack) -> Talk:
    """Server-sent events, which say nothing upwards: a request beside them wakes their microVM."""
    stream = stack.enter_context(raw(running))
    stream.sendall(head(running, token, "GET /events"))
    assert "text/event-stream" in read_head(stream)
    lines = stack.enter_context(stream.makefile("rb"))
    expected = itertools.count()

    def say(_: int) -> None:
        assert running.ask(token=token).status == 200

    def hear(_: int) -> None:
        for number in itertools.islice(expected, 3):
            assert next_event(lines) == number

    return say, hear


def conversation(running: Running, token: str, stack: ExitStack) -> Talk:
    """A call of gRPC's in which both sides stream."""
    target = running.url.removeprefix("https://").rstrip("/")
    channel = stack.enter_context(grpc.secure_channel(target, grpc.ssl_channel_credentials()))
    said: queue.SimpleQueue = queue.SimpleQueue()
    answers = channel.stream_stream("/echo/Talk")(
        iter(said.get, None),
        metadata=((AUTH_HEADER.lower(), token), (PORT_HEADER.lower(), str(GRPC_PORT))),
        timeout=_STREAM_SECONDS,
    )
    stack.callback(said.put, None)

    def hear(number: int) -> None:
        assert next(answers) == b"%d" % number

    return lambda number: said.put(b"%d" % number), hear


def shell(running: Running, _: str, stack: ExitStack) -> Talk:
    """A shell, which remembers the number it was told before."""
    answer = running.microvms.api.create_microvm_shell_auth_token(microvmIdentifier=running.id, expirationInMinutes=5)
    protocols = ("lambda-microvms", f"lambda-microvms.authentication.{answer['authToken'][AUTH_HEADER]}")
    socket = stack.enter_context(dial(running, *protocols, path="/shell"))
    assert json.loads(socket.recv(timeout=_SECONDS))["type"] == "session_init"

    def shown() -> Iterator[bytes]:
        """All that the terminal shows, up to a line's end at a time."""
        text = b""
        while True:
            text += socket.recv(timeout=_SECONDS)
            *lines, text = text.split(b"\r\n")
            yield from lines

    screen = shown()

    def hear(number: int) -> None:
        last = number - 1 if number else "none"
        wanted = f"now {number}, before {last}".encode()
        assert any(line.endswith(wanted) for line in screen)

    def say(number: int) -> None:
        socket.send(f"echo now $(({number})), before ${{last:-none}}; last={number}\n".encode())

    return say, hear


def sleep(running: Running, wake: Callable[[], None]) -> None:
    """A sleep that ends where it began."""
    running.suspend()
    wake()


def move(running: Running, wake: Callable[[], None]) -> None:
    """A sleep that ends on the other host."""
    fleet = running.microvms.fleet
    home = fleet.json("get", running.id)["hostId"]
    fleet.torpor("hosts", "drain", home)
    try:

        def elsewhere() -> bool:
            # A host hears of its drain with its next report; until then it wakes what it holds.
            running.suspend()
            wake()
            return fleet.json("get", running.id)["hostId"] != home

        until("the microVM to wake on another host", elsewhere)
    finally:
        fleet.torpor("hosts", "undrain", home)


def test_connections_of_every_kind_while_their_microvm_sleeps_and_moves(running: Running) -> None:
    token, pid = running.microvms.token(running.id), running.json("/guest")["pid"]
    numbers = itertools.count()
    with ExitStack() as stack:
        talks = [kind(running, token, stack) for kind in (websocket, events, conversation, shell)]

        def round_of(first: int) -> None:
            """Everybody says a number and hears of it; one speaks first, and wakes the microVM."""
            number = next(numbers)
            order = talks[first:] + talks[:first]
            say, hear = order[0]
            say(number)
            hear(number)
            for say, _ in order[1:]:
                say(number)
            for _, hear in order[1:]:
                hear(number)

        round_of(0)
        for number in range(SLEEPS):
            (move if number % 2 else sleep)(running, lambda first=number % len(talks): round_of(first))
    assert running.json("/guest")["pid"] == pid
