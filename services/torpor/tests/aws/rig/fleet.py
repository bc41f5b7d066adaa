"""The running fleet, as `torpor env` describes it to its clients.

`deploy/test` starts one and names its data directory; nothing here starts or stops a fleet.
"""

import json
import os
import shutil
import subprocess
import uuid
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[5]
BASE = "debian-12"

# What `torpor env` must set for AWS clients.
AWS_VARIABLES = (
    "AWS_ENDPOINT_URL_LAMBDA_MICROVMS",
    "AWS_ENDPOINT_URL_LAMBDA_CORE",
    "AWS_ENDPOINT_URL_STS",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_CA_BUNDLE",
)
# The machine's own AWS settings and proxies stay out: what the tests see comes from `torpor env` alone.
_ISOLATION = {
    "AWS_CONFIG_FILE": "/nonexistent/config",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent/credentials",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_PAGER": "",
    "NO_PROXY": "localhost,.localhost,127.0.0.1",
    "no_proxy": "localhost,.localhost,127.0.0.1",
}


@dataclass
class Fleet:
    """One fleet and its names."""

    data_dir: Path
    program: Path
    # What `torpor env` prints.
    variables: dict[str, str] = field(default_factory=dict)
    # In every name this session makes, so that a fleet can be used again: client tokens are kept for ever.
    tag: str = field(default_factory=lambda: uuid.uuid4().hex[:6])

    @classmethod
    def open(cls) -> "Fleet":
        """The fleet in TORPOR_E2E_DATA_DIR."""
        data_dir = os.environ.get("TORPOR_E2E_DATA_DIR")
        assert data_dir, "these tests need a running fleet: run deploy/test, or set TORPOR_E2E_DATA_DIR"
        fleet = cls(Path(data_dir), fleet_program())
        fleet.variables = fleet.json("env")
        missing = [name for name in AWS_VARIABLES if not fleet.variables.get(name)]
        assert not missing, f"torpor env lacks {', '.join(missing)}"
        return fleet

    @property
    def region(self) -> str:
        """Region of ARNs and signatures."""
        return self.variables["AWS_REGION"]

    @property
    def account(self) -> str:
        """Account of ARNs."""
        return self.variables.get("AWS_ACCOUNT_ID", "000000000000")

    @property
    def bucket(self) -> str:
        """Bucket of artifacts."""
        return self.variables["TORPOR_ARTIFACT_BUCKET"]

    @property
    def domain(self) -> str:
        """Domain of endpoints."""
        return self.variables["TORPOR_ENDPOINT_DOMAIN"]

    @property
    def base_arn(self) -> str:
        """The local base image as a managed image."""
        return self.managed_arn("microvm-image", BASE)

    @property
    def role_arn(self) -> str:
        """A role; nobody has to make it."""
        return f"arn:aws:iam::{self.account}:role/torpor-test"

    def managed_arn(self, kind: str, name: str) -> str:
        """ARN of something that belongs to the service."""
        return f"arn:aws:lambda:{self.region}:aws:{kind}:{name}"

    def connector_arn(self, name: str) -> str:
        """ARN of a managed connector, "HTTP_INGRESS" for example."""
        return self.managed_arn("network-connector", f"aws-network-connector:{name}")

    def image_arn(self, name: str, account: str | None = None) -> str:
        """ARN an image of this name has."""
        return f"arn:aws:lambda:{self.region}:{account or self.account}:microvm-image:{name}"

    def name(self, label: str) -> str:
        """A name of this session's own."""
        return f"aws-{self.tag}-{label}"

    def environment(self) -> dict[str, str]:
        """Environment of an unmodified client: the machine's, then `torpor env`."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        return kept | _ISOLATION | self.variables

    def torpor(self, *arguments: str, input: str | None = None, must: bool = True) -> str:
        """Runs the CLI, which must succeed unless told otherwise, and returns what it prints."""
        command = [str(self.program), "--data-dir", str(self.data_dir), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, input=input, check=False)
        assert not must or done.returncode == 0, f"torpor {' '.join(arguments)}: {done.returncode}\n{done.stderr}"
        return done.stdout

    def json(self, *arguments: str) -> dict:
        """Runs the CLI and returns its JSON."""
        return json.loads(self.torpor(*arguments, "-o", "json"))

    def component(self, name: str) -> dict:
        """A component as the fleet's supervisor sees it: its health, its pid and more."""
        # Not a success while something is not healthy, but it says what.
        components = json.loads(self.torpor("status", "-o", "json", must=False))["components"]
        (found,) = [component for component in components if component["name"] == name]
        return found


def fleet_program() -> Path:
    """The `torpor` under test; beside it are the examples that were compiled with it."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
    return Path(os.environ.get("TORPOR_PROGRAM", target / "release" / "torpor"))


def required_program(name: str) -> str:
    """A program of the machine that a test needs."""
    found = shutil.which(name)
    assert found, f"{name} is missing: run deploy/packages --test"
    return found
