"""Tokens for endpoints and shells: what they look like, what they open, and who gets none."""

import base64
import json

import pytest
from botocore.exceptions import ClientError

from rig.clients import refusal
from rig.fleet import Fleet
from rig.images import Image
from rig.microvms import AUTH_HEADER, Microvms, Running
from rig.wire import Answer, Wire

MICROVMS = "/2025-09-09/microvms"
NO_SHELL = "Shell access requires SHELL_INGRESS network connector to be configured on the MicroVM."
MIXED_SHELL = "ALL_INGRESS cannot be combined with other ingress network connectors; use HTTP_INGRESS and/or SHELL_INGRESS instead"


@pytest.fixture(scope="module")
def running(plain: Image, module_microvms: Microvms) -> Running:
    """A microVM that the tests of this module ask for tokens of."""
    return module_microvms.run(plain.arn)


@pytest.fixture(scope="module")
def mint(running: Running, wire: Wire):
    """CreateMicrovmAuthToken by raw HTTP."""

    def mint(minutes: object = 60, ports: object = None) -> Answer:
        body = {"expirationInMinutes": minutes, "allowedPorts": [{"allPorts": {}}] if ports is None else ports}
        return wire.request("POST", f"{MICROVMS}/{running.id}/auth-token", body)

    return mint


def parts(token: str) -> list[str]:
    """Checks that a token is a compact JWE as the live service makes them, and splits it."""
    segments = token.split(".")
    assert len(segments) == 5 and segments[1] == "", token
    head = json.loads(base64.urlsafe_b64decode(segments[0] + "=="))
    assert (head["alg"], head["enc"]) == ("dir", "A256GCM")
    assert head["kid"]
    return segments


@pytest.mark.row(124, 125)
def test_the_form_of_a_token(mint) -> None:
    answer = mint()
    assert (answer.status, set(answer.json())) == (200, {"authToken"})
    assert set(answer.json()["authToken"]) == {AUTH_HEADER}
    token = answer.json()["authToken"][AUTH_HEADER]
    assert len(token) <= 8000
    parts(token)


@pytest.mark.row(126)
def test_the_life_of_a_token(mint) -> None:
    for minutes in (1, 60):
        assert mint(minutes).status == 200
    for minutes, constraint in ((0, "greater than or equal to 1"), (61, "less than or equal to 60")):
        answer = mint(minutes)
        expected = (
            f"1 validation error detected: Value '{minutes}' at 'expirationInMinutes' failed to satisfy constraint: "
            f"Member must have value {constraint}"
        )
        assert (answer.status, answer.error, answer.message) == (400, "ValidationException", expected)


@pytest.mark.row(127)
def test_a_token_for_no_port(mint) -> None:
    answer = mint(ports=[])
    expected = (
        "1 validation error detected: Value '[]' at 'allowedPorts' failed to satisfy constraint: "
        "Member must have length greater than or equal to 1"
    )
    assert (answer.status, answer.error, answer.message) == (400, "ValidationException", expected)


@pytest.mark.row(128)
def test_every_port_is_an_empty_structure(mint) -> None:
    assert mint(ports=[{"allPorts": {}}]).status == 200
    answer = mint(ports=[{"allPorts": True}])
    assert (answer.status, answer.json()) == (400, {"Message": "Expected null"})


@pytest.mark.parametrize(
    "ports",
    [
        [{}],
        [{"port": 80, "allPorts": {}}],
        [{"port": 0}],
        [{"port": 65536}],
        [{"port": "80"}],
        [{"range": {"startPort": 2}}],
        [{"range": {"startPort": 90, "endPort": 80}}],
        [None],
    ],
)
def test_ports_that_are_none(mint, ports: object) -> None:
    answer = mint(ports=ports)
    assert answer.status == 400, answer


@pytest.mark.row(129)
def test_a_sleeping_microvm_gets_a_token(plain: Image, microvms: Microvms) -> None:
    asleep = microvms.run(plain.arn)
    asleep.suspend()
    parts(microvms.token(asleep.id))
    assert microvms.get(asleep.id)["state"] == "SUSPENDED"


def test_an_ended_microvm_gets_none(plain: Image, microvms: Microvms) -> None:
    ended = microvms.run(plain.arn)
    ended.terminate()
    for call in (
        lambda: microvms.token(ended.id),
        lambda: microvms.api.create_microvm_shell_auth_token(microvmIdentifier=ended.id, expirationInMinutes=5),
    ):
        with pytest.raises(ClientError) as error:
            call()
        assert refusal(error.value)[0] in (400, 404, 409), error.value


@pytest.mark.row(137)
def test_a_shell_needs_its_ingress(running: Running, wire: Wire) -> None:
    answer = wire.request("POST", f"{MICROVMS}/{running.id}/shell-auth-token", {"expirationInMinutes": 60})
    assert (answer.status, answer.error, answer.message) == (400, "ValidationException", NO_SHELL)


@pytest.mark.row(138)
def test_a_shell_beside_all_ingress(plain: Image, microvms: Microvms, fleet: Fleet, wire: Wire) -> None:
    # The launch takes the pair; only the token is refused.
    ingress = [fleet.connector_arn("ALL_INGRESS"), fleet.connector_arn("SHELL_INGRESS")]
    launched = microvms.launch(plain.arn, ingressNetworkConnectors=ingress)
    assert launched["ingressNetworkConnectors"] == ingress
    path = f"{MICROVMS}/{launched['microvmId']}/shell-auth-token"
    answer = wire.request("POST", path, {"expirationInMinutes": 60})
    assert (answer.status, answer.error, answer.message) == (400, "ValidationException", MIXED_SHELL)


def test_a_shell_token(plain: Image, microvms: Microvms, fleet: Fleet) -> None:
    ingress = [fleet.connector_arn("HTTP_INGRESS"), fleet.connector_arn("SHELL_INGRESS")]
    launched = microvms.launch(plain.arn, ingressNetworkConnectors=ingress)
    answer = microvms.api.create_microvm_shell_auth_token(
        microvmIdentifier=launched["microvmId"], expirationInMinutes=5
    )
    assert set(answer["authToken"]) == {AUTH_HEADER}
    parts(answer["authToken"][AUTH_HEADER])
