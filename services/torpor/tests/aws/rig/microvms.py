"""MicroVMs that a test works with, and their endpoints."""

import http.client
import socket
import ssl
from dataclasses import dataclass

from .clients import Boto
from .fleet import Fleet
from .waiting import until
from .wire import Answer

STATE_SECONDS = 90.0
AUTH_HEADER = "X-aws-proxy-auth"
PORT_HEADER = "X-aws-proxy-port"
_REQUEST_SECONDS = 60


class Microvms:
    """Launches microVMs and ends them with the test."""

    def __init__(self, fleet: Fleet, boto: Boto) -> None:
        self.fleet = fleet
        self.api = boto.microvms
        self._alive: list[str] = []

    def launch(self, image_arn: str, **arguments) -> dict:
        """RunMicrovm; the answer, PENDING."""
        answer = self.api.run_microvm(imageIdentifier=image_arn, **arguments)
        self.note(answer["microvmId"])
        return answer

    def note(self, microvm_id: str) -> None:
        """A microVM to be ended with the test."""
        self._alive.append(microvm_id)

    def run(self, image_arn: str, **arguments) -> "Running":
        """A new microVM, RUNNING."""
        answer = self.launch(image_arn, **arguments)
        self.wait(answer["microvmId"], "RUNNING")
        return Running(self, answer["microvmId"], answer["endpoint"])

    def get(self, microvm_id: str) -> dict:
        """GetMicrovm."""
        return self.api.get_microvm(microvmIdentifier=microvm_id)

    def wait(self, microvm_id: str, state: str, within: float = STATE_SECONDS) -> dict:
        """Waits for a state; an end that was not asked for fails at once."""

        def ask():
            microvm = self.get(microvm_id)
            if state != "TERMINATED":
                assert microvm["state"] != "TERMINATED", f"{microvm_id} ended: {microvm.get('stateReason')}"
            return microvm if microvm["state"] == state else None

        return until(f"{microvm_id} to be {state}", ask, within=within)

    def terminate(self, microvm_id: str) -> dict:
        """Ends a microVM and waits for it."""
        self.api.terminate_microvm(microvmIdentifier=microvm_id)
        return self.wait(microvm_id, "TERMINATED")

    def token(self, microvm_id: str, *scopes: dict, minutes: int = 30) -> str:
        """A token for some ports, all when none is named."""
        answer = self.api.create_microvm_auth_token(
            microvmIdentifier=microvm_id,
            expirationInMinutes=minutes,
            allowedPorts=list(scopes) or [{"allPorts": {}}],
        )
        return answer["authToken"][AUTH_HEADER]

    def end_all(self) -> None:
        """Ends what is left of a test."""
        for microvm_id in self._alive:
            self.api.terminate_microvm(microvmIdentifier=microvm_id)
        for microvm_id in self._alive:
            self.wait(microvm_id, "TERMINATED")
        self._alive.clear()


@dataclass
class Running:
    """A microVM that was RUNNING."""

    microvms: Microvms
    id: str
    endpoint: str

    def ask(self, path: str = "/", *, token: str | None = None, headers: dict[str, str] | None = None) -> Answer:
        """GET at the endpoint, with a token for every port unless another is given ("" for none)."""
        token = self.microvms.token(self.id) if token is None else token
        head = dict(headers or {})
        if token:
            head[AUTH_HEADER] = token
        return get(self.microvms.fleet, self.endpoint, path, head)

    def json(self, path: str = "/") -> dict:
        """The app's answer."""
        answer = self.ask(path)
        assert answer.status == 200, answer
        return answer.json()

    @property
    def url(self) -> str:
        """The endpoint's URL, for clients that find it by themselves."""
        port = self.microvms.fleet.variables["TORPOR_EDGE"].rsplit(":", 1)[1]
        return f"https://{self.endpoint}/" if port == "443" else f"https://{self.endpoint}:{port}/"

    def suspend(self) -> dict:
        """SuspendMicrovm, and the wait for it."""
        self.microvms.api.suspend_microvm(microvmIdentifier=self.id)
        return self.microvms.wait(self.id, "SUSPENDED")

    def resume(self) -> dict:
        """ResumeMicrovm, and the wait for it."""
        self.microvms.api.resume_microvm(microvmIdentifier=self.id)
        return self.microvms.wait(self.id, "RUNNING")

    def terminate(self) -> dict:
        """TerminateMicrovm, and the wait for it."""
        return self.microvms.terminate(self.id)


def get(fleet: Fleet, endpoint: str, path: str, headers: dict[str, str]) -> Answer:
    """One GET at an endpoint, over TLS with the endpoint's name."""
    return request(fleet, endpoint, "GET", path, headers)


def request(fleet: Fleet, endpoint: str, method: str, path: str, headers: dict[str, str]) -> Answer:
    """One request without a body at an endpoint, over TLS with the endpoint's name."""
    connection = _EndpointConnection(fleet, endpoint)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


class _EndpointConnection(http.client.HTTPSConnection):
    """HTTPS to the edge under an endpoint's name: nothing has to resolve it."""

    def __init__(self, fleet: Fleet, endpoint: str) -> None:
        address, port = fleet.variables["TORPOR_EDGE"].rsplit(":", 1)
        self._address = (address, int(port))
        self._tls = ssl.create_default_context(cafile=fleet.variables["TORPOR_CA"])
        super().__init__(endpoint, int(port), timeout=_REQUEST_SECONDS, context=self._tls)

    def connect(self) -> None:
        plain = socket.create_connection(self._address, timeout=self.timeout)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)
