"""Signed HTTP as it is on the wire, for what no client of AWS would send or show.

Signatures are botocore's; the request goes out by `http.client`, byte for byte as the test gives it.
"""

import contextlib
import datetime
import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from unittest import mock
from urllib.parse import quote, urlsplit

import botocore.auth
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from .fleet import Fleet
from .journal import Journal

_TIMEOUT_SECONDS = 120
_THROTTLED_ATTEMPTS_MAX = 60
SIGNING_NAME = "lambda"


@dataclass
class Answer:
    """One response."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self):
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> str | None:
        """Error class, from the header that carries it."""
        return self.headers.get("X-Amzn-Errortype")

    @property
    def message(self) -> str | None:
        """The message of an error, however it is spelled."""
        body = self.json()
        return body.get("message", body.get("Message"))

    def __repr__(self) -> str:
        return f"Answer({self.status}, {self.error}, {self.body[:2000]!r})"


@dataclass
class Signing:
    """How a request is signed; the defaults are what is right."""

    key: tuple[str, str] | None = None
    session_token: str | None = None
    region: str | None = None
    service: str = SIGNING_NAME
    # Added to the clock, in seconds.
    skew: float = 0.0
    # In the query instead of a header, good for this many seconds.
    presigned_for: int | None = None
    unsigned_payload: bool = False


@dataclass
class Prepared:
    """A signed request, ready to be sent, or to be changed first."""

    method: str
    # Path and query, as they go on the request line.
    target: str
    headers: dict[str, str]
    body: bytes = b""
    # Headers that http.client would refuse or merge: sent after the others, as they are.
    raw_headers: list[tuple[str, str]] = field(default_factory=list)


class Wire:
    """A connection to the fleet's API."""

    def __init__(self, fleet: Fleet, journal: Journal) -> None:
        self.fleet = fleet
        self._journal = journal
        url = urlsplit(fleet.variables["AWS_ENDPOINT_URL_LAMBDA_MICROVMS"])
        assert url.scheme == "https", url
        self.host, self.port = url.hostname, url.port
        self._tls = ssl.create_default_context(cafile=fleet.variables["AWS_CA_BUNDLE"])
        self._connection: http.client.HTTPSConnection | None = None

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: str = "",
        headers: dict[str, str] | None = None,
        signing: Signing | None = None,
        patient: bool = True,
    ) -> Answer:
        """Signs and sends. `body` is bytes, or anything JSON can say.

        A patient request is repeated while it is throttled: AWS's rates are lower than a test's.
        """
        for _ in range(_THROTTLED_ATTEMPTS_MAX):
            answer = self.send(self.prepare(method, path, body, query=query, headers=headers, signing=signing))
            if answer.status != 429 or not patient:
                return answer
            time.sleep(max(0.5, float(answer.headers.get("Retry-After", 1))))
        raise AssertionError(f"{method} {path} was throttled {_THROTTLED_ATTEMPTS_MAX} times")

    def prepare(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: str = "",
        headers: dict[str, str] | None = None,
        signing: Signing | None = None,
    ) -> Prepared:
        """Signs without sending."""
        signing = signing or Signing()
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        head = dict(headers or {})
        if data and not any(name.lower() == "content-type" for name in head):
            head["Content-Type"] = "application/json"
        target = f"{path}?{query}" if query else path
        url = f"https://{self.host}:{self.port}{target}"
        request = AWSRequest(method=method, url=url, data=data, headers=head)
        request.context["payload_signing_enabled"] = not signing.unsigned_payload
        self._sign(request, signing)
        if signing.presigned_for is not None:
            parts = urlsplit(request.url)
            target = f"{parts.path}?{parts.query}"
        return Prepared(method, target, dict(request.headers.items()), data)

    def _sign(self, request: AWSRequest, signing: Signing) -> None:
        variables = self.fleet.variables
        key, secret = signing.key or (variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"])
        credentials = Credentials(key, secret, signing.session_token)
        region = signing.region or self.fleet.region
        if signing.presigned_for is None:
            signer = SigV4Auth(credentials, signing.service, region)
        else:
            signer = SigV4QueryAuth(credentials, signing.service, region, expires=signing.presigned_for)
        now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None) + datetime.timedelta(seconds=signing.skew)
        with mock.patch.object(botocore.auth, "get_current_datetime", lambda *_: now):
            signer.add_auth(request)

    def send(self, prepared: Prepared) -> Answer:
        """Sends a request over the kept connection, once more when the server had closed it meanwhile."""
        reused = self._connection is not None
        try:
            return self._send(prepared)
        except (http.client.RemoteDisconnected, ConnectionError, ssl.SSLError):
            self.close()
            if not reused:
                raise
            return self._send(prepared)

    def _send(self, prepared: Prepared) -> Answer:
        if self._connection is None:
            self._connection = http.client.HTTPSConnection(
                self.host, self.port, timeout=_TIMEOUT_SECONDS, context=self._tls
            )
        connection = self._connection
        connection.putrequest(prepared.method, prepared.target, skip_host=True, skip_accept_encoding=True)
        names = {name.lower() for name in prepared.headers}
        if "host" not in names:
            connection.putheader("Host", f"{self.host}:{self.port}")
        for name, value in [*prepared.headers.items(), *prepared.raw_headers]:
            connection.putheader(name, value)
        if "content-length" not in names and (prepared.body or prepared.method in ("POST", "PUT", "PATCH")):
            connection.putheader("Content-Length", str(len(prepared.body)))
        connection.endheaders()
        # The server may answer, and hang up, before it has read everything.
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            connection.send(prepared.body)
        response = connection.getresponse()
        answer = Answer(response.status, response.headers, response.read())
        self._journal.answered(answer.status, f"{prepared.method} {prepared.target[:200]}: {answer!r}")
        if response.will_close:
            self.close()
        return answer

    def raw(self, prepared: Prepared) -> bytes:
        """A request as it is on the wire."""
        headers = {"Host": f"{self.host}:{self.port}", "Content-Length": str(len(prepared.body))} | prepared.headers
        lines = [f"{prepared.method} {prepared.target} HTTP/1.1", *(f"{name}: {headers[name]}" for name in headers)]
        return "\r\n".join([*lines, "", ""]).encode() + prepared.body

    @contextlib.contextmanager
    def stream(self, timeout: float = _TIMEOUT_SECONDS) -> Iterator[ssl.SSLSocket]:
        """A connection of its own, to be used byte by byte."""
        plain = socket.create_connection((self.host, self.port), timeout=timeout)
        with self._tls.wrap_socket(plain, server_hostname=self.host) as stream:
            yield stream

    def send_bytes(self, request: bytes, within: float = 30.0) -> bytes:
        """Sends bytes as they are and returns all that comes back until the connection is closed."""
        received = bytearray()
        # Whatever came before the server hung up is the answer.
        with self.stream(within) as stream, contextlib.suppress(TimeoutError, ConnectionError, ssl.SSLError):
            stream.sendall(request)
            while block := stream.recv(65536):
                received += block
        return bytes(received)

    def close(self) -> None:
        """Drops the kept connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def segment(value: str) -> str:
    """A value as one segment of a path, percent-encoded as the SDKs do."""
    return quote(value, safe="-_.~")
