"""Unmodified AWS clients: boto3 and the AWS CLI, pointed at the fleet by environment variables alone."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from . import models
from .fleet import Fleet
from .journal import Journal

# Longest a patient client waits for a throttle to let go, in attempts of at least a second each.
_THROTTLED_ATTEMPTS_MAX = 30
_CLI_TIMEOUT_SECONDS = 120
# As the CLI prints an error of a service.
_CLI_ERROR = re.compile(r"An error occurred \((?P<code>\w+)\) when calling the (?P<operation>\w+) operation")


class Boto:
    """boto3 clients of one set of credentials; every answer goes to the journal.

    Retries are off, so that no 5xx hides behind one. Only throttling is waited out, as long as the answer's
    `Retry-After` says: the fleet has AWS's own rates, and tests come faster. `impatient` clients do not wait.
    """

    def __init__(self, fleet: Fleet, journal: Journal, key: tuple[str, str] | None = None) -> None:
        self._fleet = fleet
        self._journal = journal
        self._key = key
        self._made: dict[tuple[str, bool], object] = {}

    @property
    def microvms(self):
        """Client of `lambda-microvms`."""
        return self.client(models.MICROVMS)

    @property
    def core(self):
        """Client of `lambda-core`."""
        return self.client(models.CORE)

    @property
    def s3(self):
        """Client of S3."""
        return self.client("s3")

    def client(self, service: str, patient: bool = True):
        """A client of a service, made once."""
        found = self._made.get((service, patient))
        if found is None:
            found = self._made[service, patient] = self._make(service, patient)
        return found

    def call(self, service: str, operation: str, patient: bool = True, **arguments):
        """Calls an operation by its name in the model."""
        return getattr(self.client(service, patient), models.method(operation))(**arguments)

    def _make(self, service: str, patient: bool):
        credentials = {}
        if self._key:
            credentials = {"aws_access_key_id": self._key[0], "aws_secret_access_key": self._key[1]}
        # Endpoint, region and CA come from the environment, which the session fixture set.
        config = Config(retries={"total_max_attempts": 1}, max_pool_connections=64, read_timeout=120)
        client = boto3.session.Session().client(service, config=config, **credentials)
        events = client.meta.events
        if patient:
            events.register_first("needs-retry.*", _wait_for_throttle)
        if service in models.SERVICES:
            events.register(f"after-call.{service}", self._note)
        return client

    def _note(self, http_response, parsed, model, **_) -> None:
        service = model.service_model.service_name
        if http_response.status_code < 300:
            self._journal.succeeded("boto3", service, model.name)
        else:
            self._journal.refused(service, model.name, parsed["Error"]["Code"], http_response.status_code)


def _wait_for_throttle(response, attempts, **_):
    """Seconds until a throttled call is sent again; None leaves the decision to the client."""
    if response is None:
        return None
    http, parsed = response
    if http.status_code != 429 or attempts > _THROTTLED_ATTEMPTS_MAX:
        return None
    headers = parsed.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return max(1.0, float(headers.get("retry-after", 1)))


def refusal(error: ClientError) -> tuple[int, str, str]:
    """HTTP status, class and message of a boto3 error."""
    return (
        error.response["ResponseMetadata"]["HTTPStatusCode"],
        error.response["Error"]["Code"],
        error.response["Error"].get("Message", ""),
    )


@dataclass
class CliError(Exception):
    """The CLI ended with an error."""

    status: int
    code: str
    output: str

    def __str__(self) -> str:
        return f"exit status {self.status}, {self.code or 'no error of a service'}: {self.output}"


class Cli:
    """The AWS CLI of this virtual environment."""

    def __init__(self, fleet: Fleet, journal: Journal) -> None:
        self._fleet = fleet
        self._journal = journal
        self.program = Path(sys.executable).with_name("aws")

    def environment(self) -> dict[str, str]:
        """What the CLI sees: what `torpor env` exports, and the programs of this virtual environment."""
        environment = self._fleet.environment()
        environment["PATH"] = f"{self.program.parent}:{environment['PATH']}"
        # No retry of the client's may hide an answer.
        environment["AWS_MAX_ATTEMPTS"] = "1"
        return environment

    def __call__(self, service: str, command: str, *arguments: str) -> dict:
        """Runs `aws SERVICE COMMAND ...` and returns its JSON, empty when it prints nothing.

        Raises CliError with the service's error class.
        """
        done = subprocess.run(
            [str(self.program), service, command, *arguments],
            capture_output=True,
            text=True,
            env=self.environment() | {"AWS_DEFAULT_OUTPUT": "json"},
            timeout=_CLI_TIMEOUT_SECONDS,
            check=False,
        )
        operations = {models.command(o): o for o in models.operations(service)} if service in models.SERVICES else {}
        if done.returncode == 0:
            if command in operations:
                self._journal.succeeded("cli", service, operations[command])
            return json.loads(done.stdout) if done.stdout.strip().startswith("{") else {}
        found = _CLI_ERROR.search(done.stderr)
        if found and command in operations:
            self._journal.refused(service, found["operation"], found["code"], None)
        raise CliError(done.returncode, found["code"] if found else "", done.stderr.strip())
