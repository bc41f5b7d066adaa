"""What a token from the API opens at an endpoint, and what its microVM does when it is asked asleep."""

import uuid

import pytest

from rig.images import Image
from rig.microvms import AUTH_HEADER, PORT_HEADER, Microvms, Running, get, request
from rig.waiting import until
from test_protocols import head, raw, read_head

ERROR_HEADER = "x-aws-proxy-error"
POLICY = {"maxIdleDurationSeconds": 3600, "suspendedDurationSeconds": 3600}


@pytest.fixture(scope="module")
def running(plain: Image, module_microvms: Microvms) -> Running:
    """A microVM that the tests of this module call."""
    return module_microvms.run(plain.arn)


@pytest.mark.row(113, 114)
@pytest.mark.parametrize("token", ["", "garbage", "a.b.c.d.e"])
def test_no_token(running: Running, token: str) -> None:
    answer = running.ask(token=token)
    assert (answer.status, answer.body) == (403, b"Request missing authentication")


@pytest.mark.row(115)
def test_the_token_of_another(running: Running, plain: Image, microvms: Microvms) -> None:
    other = microvms.launch(plain.arn)
    answer = running.ask(token=microvms.token(other["microvmId"]))
    assert (answer.status, answer.body) == (403, b"Token authentication failed")


@pytest.mark.row(116)
def test_an_unknown_endpoint(running: Running, microvms: Microvms) -> None:
    endpoint = f"{uuid.uuid4()}.{microvms.fleet.domain}"
    answer = get(microvms.fleet, endpoint, "/", {AUTH_HEADER: microvms.token(running.id)})
    assert (answer.status, answer.body) == (403, b"Token authentication failed")


@pytest.mark.row(118, 120)
def test_a_port_the_token_does_not_open(running: Running, microvms: Microvms) -> None:
    token = microvms.token(running.id, {"port": 8081})
    answer = running.ask(token=token)
    assert (answer.status, answer.body) == (403, b"Access to port denied")
    assert running.ask(token=token, headers={PORT_HEADER: "8081"}).status == 200


@pytest.mark.row(119, 121)
@pytest.mark.parametrize("scope", [{"port": 8081}, {"range": {"startPort": 8000, "endPort": 8081}}, {"allPorts": {}}])
def test_scopes(running: Running, microvms: Microvms, scope: dict) -> None:
    token = microvms.token(running.id, scope)
    assert running.ask(token=token, headers={PORT_HEADER: "8081"}).status == 200


@pytest.mark.row(119)
def test_several_scopes(running: Running, microvms: Microvms) -> None:
    token = microvms.token(running.id, {"port": 8080}, {"range": {"startPort": 8081, "endPort": 8082}})
    assert running.ask(token=token).status == 200
    assert running.ask(token=token, headers={PORT_HEADER: "8081"}).status == 200
    assert running.ask(token=token, headers={PORT_HEADER: "8083"}).status == 403


@pytest.mark.row(122)
@pytest.mark.parametrize("port", ["0", "65536", "http", "-1"])
def test_a_port_that_is_none(running: Running, port: str) -> None:
    assert running.ask(headers={PORT_HEADER: port}).status == 400


@pytest.mark.row(112)
def test_nothing_listens(running: Running) -> None:
    answer = running.ask(headers={PORT_HEADER: "9"})
    assert (answer.status, answer.body, answer.headers[ERROR_HEADER]) == (502, b"", "APP_CONNECT_FAILED")


@pytest.mark.row(123)
def test_headers_of_the_proxy_stay_there(running: Running) -> None:
    seen = running.ask("/headers", headers={PORT_HEADER: "8080", "X-Mine": "kept"}).json()["headers"]
    assert seen["x-mine"] == "kept"
    assert not [name for name in seen if name.startswith("x-aws-proxy-")]


@pytest.mark.row(109)
def test_a_request_wakes(plain: Image, microvms: Microvms) -> None:
    running = microvms.run(plain.arn, idlePolicy=POLICY | {"autoResumeEnabled": True})
    first = running.json()
    running.suspend()
    second = running.json()
    assert (second["count"], second["pid"]) == (first["count"] + 1, first["pid"])
    assert microvms.wait(running.id, "RUNNING")["endpoint"] == running.endpoint


@pytest.mark.row(110)
def test_a_request_does_not_wake(plain: Image, microvms: Microvms) -> None:
    running = microvms.run(plain.arn, idlePolicy=POLICY | {"autoResumeEnabled": False})
    running.suspend()
    answer = running.ask()
    assert (answer.status, answer.body) == (502, b"")
    assert microvms.get(running.id)["state"] == "SUSPENDED"


@pytest.mark.row(111)
def test_an_ended_one_does_not_answer(plain: Image, microvms: Microvms) -> None:
    running = microvms.run(plain.arn)
    token = microvms.token(running.id)
    running.terminate()
    answer = running.ask(token=token)
    assert (answer.status, answer.body, answer.headers[ERROR_HEADER]) == (502, b"", "MICROVM_CONNECT_FAILED")


@pytest.mark.row(149)
def test_the_environment_of_an_app(hooked: Image, microvms: Microvms) -> None:
    environment = microvms.run(hooked.arn).json("/environment")["environment"]
    assert environment["AWS_LAMBDA_MICROVM_IMAGE_ARN"] == hooked.arn
    assert environment["AWS_LAMBDA_MICROVM_IMAGE_NAME"] == hooked.name
    assert environment["AWS_LAMBDA_MICROVM_IMAGE_VERSION"] == "1.0"
    assert environment["READY_UNAVAILABLE"] == "2"


@pytest.mark.row(97, 98)
def test_run_hooks_that_fail(microvms: Microvms, images) -> None:
    hooks = {
        "port": 8080,
        "microvmHooks": {"run": "ENABLED", "runTimeoutInSeconds": 3},
        "microvmImageHooks": {"ready": "ENABLED", "readyTimeoutInSeconds": 120},
    }
    image = images.build("run-fails", images.app(), hooks=hooks, environmentVariables={"RUN_STATUS": "500"})
    for payload, reason in (
        ("", "Run lifecycle hook returned HTTP status 500."),
        # It would answer after six seconds.
        ("slow", "Run lifecycle hook did not answer within 3 seconds."),
    ):
        launched = microvms.launch(image.arn, **({"runHookPayload": payload} if payload else {}))
        states = set()

        def ended(microvm_id: str = launched["microvmId"], states: set = states) -> dict | None:
            microvm = microvms.get(microvm_id)
            states.add(microvm["state"])
            return microvm if microvm["state"] == "TERMINATED" else None

        assert until(f"{launched['microvmId']} to be ended", ended)["stateReason"].startswith(reason)
        assert "RUNNING" not in states


@pytest.mark.row(102)
def test_hooks_without_ingress(hooked: Image, microvms: Microvms) -> None:
    ingress = [microvms.fleet.connector_arn("NO_INGRESS")]
    running = microvms.run(hooked.arn, ingressNetworkConnectors=ingress)
    running.suspend()
    running.resume()

    def called() -> bool:
        lines = [line.split() for line in microvms.fleet.torpor("logs", running.id).splitlines()]
        return [line[-1] for line in lines if line[-2:-1] == ["hook"]] == ["run", "suspend", "resume"]

    until("the app's log to have them all", called)


@pytest.mark.row(107, 108)
def test_lives_that_end_asleep(plain: Image, microvms: Microvms) -> None:
    window = POLICY | {"suspendedDurationSeconds": 0, "autoResumeEnabled": False}
    windowless = microvms.run(plain.arn, idlePolicy=window)
    microvms.api.suspend_microvm(microvmIdentifier=windowless.id)
    # Its life begins with the call, which a busy machine answers late.
    short = microvms.run(plain.arn, maximumDurationInSeconds=40)
    microvms.api.suspend_microvm(microvmIdentifier=short.id)
    for running in (windowless, short):
        assert microvms.wait(running.id, "TERMINATED")["stateReason"] == "MicroVM exceeded maximum lifetime."


def test_a_silent_answer_keeps_its_microvm_awake_where_that_was_asked_for(plain: Image, microvms: Microvms) -> None:
    fleet = microvms.fleet
    launched = fleet.json("run", plain.name, "--idle", "1s", "--awake-while", "stream")
    microvms.note(launched["microvmId"])
    running = Running(microvms, launched["microvmId"], launched["endpoint"])
    token = microvms.token(running.id)

    def kept_awake() -> bool:
        # Looked at when the idle time has passed, and not before. It may have slept before the request came, and woken for it.
        idleness = fleet.json("get", running.id)["idleness"]
        return idleness is not None and idleness["awakeReason"] == "STREAM"

    with raw(running) as stream:
        stream.sendall(head(running, token, "GET /said"))
        until("the open connection to keep it awake", kept_awake)
        assert request(fleet, running.endpoint, "POST", "/said", {AUTH_HEADER: token}).status == 200
        assert read_head(stream).startswith("HTTP/1.1 404 ")
