"""What clients and apps say to each other through an endpoint: an app that speaks bytes, a gRPC server and client that
others wrote, and a microVM between them that also sleeps.

Two microVMs serve the whole module.
"""

import contextlib
import io
import json
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from websockets.exceptions import ConnectionClosedOK

from rig.images import Image
from rig.microvms import AUTH_HEADER, PORT_HEADER, Microvms, Running
from rig.outside import ADDRESS, PORT, Outside, outside
from rig.waiting import until
from test_websockets import dial

POLICY = {"maxIdleDurationSeconds": 3600, "suspendedDurationSeconds": 3600, "autoResumeEnabled": True}
FORCE_H2_HEADER = "X-aws-proxy-force-h2"
GRPC_PORT = 50051
NOISE_PORT = 9004
TLS_PORT = 9443
TLS_GRPC_PORT = 50052
UPLOAD = 24 << 20
_SECONDS = 60


@pytest.fixture(scope="module")
def running(protocols: Image, module_microvms: Microvms) -> Running:
    """A microVM that lets shells in and wakes with what its clients send."""
    ingress = [module_microvms.fleet.connector_arn(name) for name in ("HTTP_INGRESS", "SHELL_INGRESS")]
    return module_microvms.run(protocols.arn, idlePolicy=POLICY, ingressNetworkConnectors=ingress)


@pytest.fixture(scope="module")
def token(running: Running) -> str:
    """A token for all its ports."""
    return running.microvms.token(running.id)


def ask(running: Running, token: str, path: str = "/", port: int = 8080, **headers: str):
    """GET at one port of the app."""
    return running.ask(path, token=token, headers={PORT_HEADER: str(port)} | headers)


@contextlib.contextmanager
def raw(running: Running, *protocols: str) -> Iterator[ssl.SSLSocket]:
    """A TLS connection to the endpoint."""
    variables = running.microvms.fleet.variables
    host, port = variables["TORPOR_EDGE"].rsplit(":", 1)
    context = ssl.create_default_context(cafile=variables["TORPOR_CA"])
    if protocols:
        context.set_alpn_protocols(list(protocols))
    with socket.create_connection((host, int(port)), timeout=_SECONDS) as plain:
        with context.wrap_socket(plain, server_hostname=running.endpoint) as stream:
            yield stream


def head(running: Running, token: str, line: str, *more: str) -> bytes:
    """A request's head in bytes."""
    lines = [f"{line} HTTP/1.1", f"host: {running.endpoint}", f"{AUTH_HEADER}: {token}", *more, "", ""]
    return "\r\n".join(lines).encode()


def read_head(stream: ssl.SSLSocket) -> str:
    """An answer's head."""
    read = b""
    while not read.endswith(b"\r\n\r\n"):
        byte = stream.recv(1)
        assert byte, f"closed after {read!r}"
        read += byte
    return read.decode()


def read_body(stream: ssl.SSLSocket, answer: str) -> str:
    """The body that goes with the head of an answer."""
    names = dict(line.lower().split(": ", 1) for line in answer.splitlines()[1:] if line)
    wanted, read = int(names["content-length"]), b""
    while len(read) < wanted:
        chunk = stream.recv(wanted - len(read))
        assert chunk, f"closed after {read!r}"
        read += chunk
    return read.decode("utf-8")


# Ports


@pytest.mark.parametrize("port", [9001, 9002, 9003], ids=["::1", ":: without IPv4", "127.0.0.2"])
def test_apps_on_any_address_of_guest_loopback_are_reached(running: Running, token: str, port: int) -> None:
    answer = ask(running, token, "/here", port)
    assert (answer.status, answer.body) == (200, b"GET /here HTTP/1.1")


def test_a_server_that_becomes_another(running: Running, token: str) -> None:
    def real():
        answer = ask(running, token, "/", 8090)
        if answer.status == 200:
            return answer.json()
        # Nothing listens, and the answer says so at once.
        assert (answer.status, answer.headers["x-aws-proxy-error"]) == (502, "APP_CONNECT_FAILED"), answer
        return None

    first = ask(running, token, "/", 8090).json()
    answer = ask(running, token, "/", 8090, **{"x-start": "1"})
    assert (answer.status, answer.body) == (503, b"starting")
    # It sleeps in the gap, and what wakes it finds nothing yet, or waits.
    running.suspend()
    assert until("the real server to answer", real) == {"pid": first["pid"], "real": True}


# Requests as they were sent


@pytest.mark.parametrize(
    "path",
    ["/a%2Fb", "/a//b", "/./a/../b", "/%2e%2e/x", "/a;v=1?x=%26&x=2&y", "/?q=a+b%20c", "/%ff", "/?", "//"],
)
def test_paths_arrive_byte_for_byte(running: Running, token: str, path: str) -> None:
    with raw(running) as stream:
        stream.sendall(head(running, token, f"GET {path}"))
        assert read_body(stream, read_head(stream)) == f"GET {path} HTTP/1.1"


@pytest.mark.row(117)
def test_the_host_of_someone_else(running: Running, token: str) -> None:
    answer = ask(running, token, Host="other.example")
    assert (answer.status, answer.body) == (403, b"Token authentication failed")


@pytest.mark.parametrize("expects", [True, False])
def test_an_app_turns_an_upload_away(running: Running, token: str, expects: bool) -> None:
    more = ["expect: 100-continue"] if expects else []
    with raw(running) as stream:
        stream.sendall(head(running, token, "PUT /refuse", f"content-length: {UPLOAD}", *more))
        if not expects:
            # Everything is sent before anything is read.
            stream.sendall(b"x" * UPLOAD)
        answer = read_head(stream)
        assert answer.startswith("HTTP/1.1 413 "), answer
        assert read_body(stream, answer) == "that is too much"
    if expects:
        until("the app's connection to end", lambda: ask(running, token, "/guest").json()["uploaded"] == 0)


# Answers as they were said


def test_an_answer_without_a_length_ends_with_its_connection(running: Running, token: str) -> None:
    answer = ask(running, token, "/old")
    assert (answer.status, answer.body) == (200, b"old and plain")


def next_event(stream: io.BufferedReader) -> int:
    """The number of the next event, each of which is one chunk."""
    assert int(stream.readline(), 16) > 0
    event = stream.readline()
    assert event.startswith(b"data: "), event
    assert stream.readline() == b"\n" and stream.readline() == b"\r\n"
    return int(event.removeprefix(b"data: "))


def test_events_across_a_sleep(running: Running, token: str) -> None:
    with raw(running) as stream:
        asked = time.monotonic()
        stream.sendall(head(running, token, "GET /events"))
        assert "text/event-stream" in read_head(stream)
        assert time.monotonic() - asked < 1.8, "the head waited for the first event"
        lines = stream.makefile("rb")
        assert [next_event(lines) for _ in range(3)] == [0, 1, 2]
        running.suspend()
        # Another request wakes it, and the stream goes on where it stood.
        assert ask(running, token).status == 200
        assert [next_event(lines) for _ in range(20)] == list(range(3, 23))
        lines.close()
    left = time.monotonic()
    until("the app's write to fail", lambda: ask(running, token, "/guest").json()["gone"] > 0, within=5)
    assert time.monotonic() - left < 3


# gRPC


@pytest.fixture
def channel(running: Running) -> Iterator[grpc.Channel]:
    """A channel of grpcio's to the endpoint."""
    variables = running.microvms.fleet.variables
    credentials = grpc.ssl_channel_credentials(Path(variables["TORPOR_CA"]).read_bytes())
    options = [("grpc.ssl_target_name_override", running.endpoint), ("grpc.default_authority", running.endpoint)]
    options.append(("grpc.enable_http_proxy", 0))
    with grpc.secure_channel(variables["TORPOR_EDGE"], credentials, options=options) as channel:
        yield channel


@pytest.fixture
def call(token: str) -> dict:
    """What every call has."""
    return {"metadata": ((AUTH_HEADER.lower(), token), (PORT_HEADER.lower(), str(GRPC_PORT))), "timeout": _SECONDS}


def test_grpc_calls_of_every_kind(channel: grpc.Channel, call: dict) -> None:
    answer, done = channel.unary_unary("/echo/Unary").with_call(b"hello", **call)
    assert (answer, done.code()) == (b"hello", grpc.StatusCode.OK)
    assert "x-pid" in dict(done.trailing_metadata())
    assert list(channel.unary_stream("/echo/Many")(b"ab", **call)) == [b"ab", b"abab", b"ababab"]
    assert channel.stream_unary("/echo/Gather")(iter([b"a", b"b", b"c" * 100_000]), **call) == b"ab" + b"c" * 100_000


def test_grpc_errors_and_deadlines(channel: grpc.Channel, call: dict) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        channel.unary_unary("/echo/Unary")(b"fail", **call)
    error = failed.value
    assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "as asked")
    assert dict(error.trailing_metadata())["x-why"] == "told to"
    with pytest.raises(grpc.RpcError) as late:
        channel.unary_unary("/echo/Unary")(b"sleep", **(call | {"timeout": 0.5}))
    assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    with pytest.raises(grpc.RpcError) as unknown:
        channel.unary_unary("/echo/Nothing")(b"", **call)
    assert unknown.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_grpc_conversation_across_a_sleep(running: Running, channel: grpc.Channel, call: dict) -> None:
    sleeps = 2

    def words():
        for number in range(1 + sleeps):
            if number:
                running.suspend()
            yield b"%d" % number

    assert list(channel.stream_stream("/echo/Talk")(words(), **call)) == [b"%d" % n for n in range(1 + sleeps)]
    answer, _ = channel.unary_unary("/echo/Unary").with_call(b"after it", **call)
    assert answer == b"after it"


def test_grpcio_needs_nothing_but_the_environment(running: Running, call: dict) -> None:
    target = running.url.removeprefix("https://").rstrip("/")
    with grpc.secure_channel(target, grpc.ssl_channel_credentials()) as channel:
        assert channel.unary_unary("/echo/Unary")(b"hello", **call) == b"hello"


@pytest.mark.row(130)
def test_http2_is_preferred(running: Running) -> None:
    with raw(running, "http/1.1", "h2") as stream:
        assert stream.selected_alpn_protocol() == "h2"


@pytest.mark.row(131)
def test_http2_to_a_plain_port_when_asked_for(running: Running, token: str) -> None:
    more = [f"{PORT_HEADER}: {GRPC_PORT}", "content-type: application/grpc", "te: trailers", "content-length: 0"]
    # The server speaks HTTP/2 only.
    for forced, status in (("false", 502), ("true", 200)):
        with raw(running) as stream:
            stream.sendall(head(running, token, "POST /echo/Nothing", *more, f"{FORCE_H2_HEADER}: {forced}"))
            answer = read_head(stream)
        assert answer.startswith(f"HTTP/1.1 {status} "), answer
    # UNIMPLEMENTED, in the server's own words.
    assert "grpc-status: 12\r\n" in answer


# What is asleep, and what is not


@pytest.fixture(scope="module")
def sleepy(protocols: Image, module_microvms: Microvms) -> Running:
    """A microVM that sleeps after four seconds without a request: fewer than the API gives anybody."""
    made = module_microvms.fleet.json("run", protocols.name, "--idle", "4s")
    module_microvms.note(made["microvmId"])
    return Running(module_microvms, made["microvmId"], made["endpoint"])


def sleeps(running: Running) -> int:
    """How often it has slept, as its log has it."""
    return running.microvms.fleet.torpor("logs", running.id).count("suspended: ")


@pytest.mark.row(104, 105)
def test_requests_and_streams_keep_it_awake(sleepy: Running) -> None:
    token = sleepy.microvms.token(sleepy.id)
    assert ask(sleepy, token).status == 200
    before = sleeps(sleepy)
    begun = time.monotonic()
    while time.monotonic() - begun < 6:
        assert ask(sleepy, token).status == 200
        time.sleep(0.5)
    with raw(sleepy) as stream:
        stream.sendall(head(sleepy, token, "GET /events"))
        read_head(stream)
        lines = stream.makefile("rb")
        assert [next_event(lines) for _ in range(50)] == list(range(50))
        lines.close()
        assert sleeps(sleepy) == before


@pytest.mark.row(103, 106)
def test_neither_work_nor_the_api_keeps_it_awake(sleepy: Running) -> None:
    assert ask(sleepy, sleepy.microvms.token(sleepy.id), "/work").status == 200
    begun = time.monotonic()
    # Each look is a call of the API's.
    sleepy.microvms.wait(sleepy.id, "SUSPENDED")
    assert time.monotonic() - begun < 10, "it slept when its work was done"


# The guest and the outside


@pytest.fixture(scope="module")
def far() -> Iterator[Outside]:
    """What plays the internet."""
    with outside() as far:
        yield far


@pytest.mark.row(145, 150, 151)
def test_the_outside(running: Running, token: str, far: Outside) -> None:
    place = f"{ADDRESS}:{PORT}"
    assert ask(running, token, f"/outside?{place}").body == b"connected"
    # The datagram was sent first, and is not seen first.
    assert far.next() == "connection"
    assert ask(running, token, f"/listen?{place}").body == b"listening"
    running.suspend()
    # Who waited hears of it without having said anything.
    assert ask(running, token, f"/listened?{place}").body == b"ConnectionAbortedError"
    assert ask(running, token, f"/again?{place}").body == b"BrokenPipeError"
    assert ask(running, token, f"/outside?{place}").body == b"connected"
    assert ask(running, token, f"/again?{place}").body == b"echoed"
    assert far.next() == "connection"
    assert far.seen.empty()


@pytest.mark.row(
    148, differs="an execution role is recorded and gives no credentials: there is no IAM, and no metadata service"
)
def test_there_is_no_metadata_service(running: Running, token: str) -> None:
    assert ask(running, token, "/outside?169.254.169.254:80").body != b"connected"


# Apps that speak TLS only


def test_an_upload_is_the_first_that_a_tls_app_hears(running: Running, token: str) -> None:
    # More than is kept to be said again, and than any buffer on the way.
    for number in range(2):
        with raw(running) as stream:
            more = [f"{PORT_HEADER}: {TLS_PORT}", f"content-length: {UPLOAD}"]
            stream.sendall(head(running, token, "POST /upload", *more))
            stream.sendall(b"x" * UPLOAD)
            answer = read_head(stream)
            assert answer.startswith("HTTP/1.1 200 "), (number, answer)
            assert read_body(stream, answer) == str(UPLOAD)


def test_a_tls_app_that_sleeps(running: Running, token: str) -> None:
    before = ask(running, token, "/guest", TLS_PORT).json()
    running.suspend()
    after = ask(running, token, "/guest", TLS_PORT).json()
    assert after["pid"] == before["pid"]


def test_a_websocket_of_a_tls_app_across_sleeps(running: Running, token: str) -> None:
    more = ["connection: Upgrade", "upgrade: websocket", "sec-websocket-version: 13"]
    more += ["sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==", f"{PORT_HEADER}: {TLS_PORT}"]
    with raw(running) as stream:
        stream.sendall(head(running, token, "GET /echo", *more))
        answer = read_head(stream)
        assert answer.startswith("HTTP/1.1 101 "), answer
        for number in range(3):
            if number:
                running.suspend()
            sent = b"%d" % number * 1000
            stream.sendall(sent)
            read = b""
            while len(read) < len(sent):
                chunk = stream.recv(65536)
                assert chunk, f"closed after {number} sleeps"
                read += chunk
            assert read == sent


def test_grpc_over_tls_across_a_sleep(running: Running, channel: grpc.Channel, call: dict, token: str) -> None:
    call = call | {"metadata": ((AUTH_HEADER.lower(), token), (PORT_HEADER.lower(), str(TLS_GRPC_PORT)))}

    def words():
        yield b"awake"
        running.suspend()
        yield b"woken"

    assert channel.unary_unary("/echo/Unary")(b"hello", **call) == b"hello"
    assert list(channel.stream_stream("/echo/Talk")(words(), **call)) == [b"awake", b"woken"]


def test_a_port_that_speaks_neither(running: Running, token: str) -> None:
    answer = ask(running, token, "/", NOISE_PORT)
    assert (answer.status, answer.headers["x-aws-proxy-error"]) == (502, "APP_CONNECT_FAILED")
    assert answer.body == b"The app on this port speaks neither HTTP nor TLS"


# Shells and the guest


@pytest.mark.row(139, 140, 141)
def test_a_shell(running: Running) -> None:
    api = running.microvms.api
    answer = api.create_microvm_shell_auth_token(microvmIdentifier=running.id, expirationInMinutes=5)
    secret = answer["authToken"][AUTH_HEADER]
    with dial(running, "lambda-microvms", f"lambda-microvms.authentication.{secret}", path="/shell") as shell:
        first = shell.recv(timeout=_SECONDS)
        assert isinstance(first, str) and json.loads(first)["type"] == "session_init"
        assert json.loads(first)["session_id"]
        shell.send(json.dumps({"type": "resize", "cols": 123, "rows": 45}))
        shell.send(b"stty size; exit\n")
        shown = b""
        with pytest.raises(ConnectionClosedOK) as closed:
            while True:
                data = shell.recv(timeout=_SECONDS)
                assert isinstance(data, bytes)
                shown += data
    assert b"45 123" in shown
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1000, "shell exited")


@pytest.mark.row(142, 143)
def test_memory_and_disk(running: Running, token: str) -> None:
    guest = ask(running, token, "/guest").json()
    memory = {line.split(":")[0]: int(line.split()[1]) for line in guest["meminfo"].splitlines()}
    # Less what the kernel keeps for itself.
    assert 0.9 * 4 * 512 * 1024 < memory["MemTotal"] <= 4 * 512 * 1024
    assert memory["SwapTotal"] == 0
    # Less what the file system keeps.
    assert 0.85 * (8 << 30) < guest["disk_bytes"] <= 8 << 30


@pytest.mark.row(146)
@pytest.mark.row(144, differs="the wall clock does; the others stand still while a microVM sleeps")
def test_what_a_sleep_leaves_as_it_was(running: Running, token: str) -> None:
    before = ask(running, token, "/guest").json()
    running.suspend()
    after = ask(running, token, "/guest").json()
    assert (after["pid"], after["note"]) == (before["pid"], "a file")
    assert abs(after["wall"] - time.time()) < 2
    assert after["monotonic"] - before["monotonic"] < after["wall"] - before["wall"]


@pytest.mark.row(101, differs="an app is spoken to as the request asks, and never asked for TLS to find out")
def test_no_port_is_asked_for_tls(running: Running, token: str) -> None:
    # Of all the connections of this module, sleeps and wakes included.
    assert ask(running, token, "/guest").json()["client_hellos"] == 0


@pytest.mark.row(147, differs="each microVM has a machine id of its own")
def test_two_of_one_image(running: Running, token: str, protocols: Image, microvms: Microvms) -> None:
    one, two = ask(running, token, "/guest").json(), microvms.run(protocols.arn).json("/guest")
    for name in ("machine_id", "uuid"):
        assert one[name] != two[name], name
    assert one["pid"] == two["pid"]
