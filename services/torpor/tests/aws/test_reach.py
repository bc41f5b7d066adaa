"""Reached as the service's clients reach it: by the system's resolver, over IPv4 and IPv6, with the CAs of `torpor env`."""

import ipaddress
import shutil
import socket
import ssl
import subprocess
import sys
import uuid
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from rig.fleet import Fleet

BUNDLES = (
    "AWS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
)
SYSTEM_ROOTS = Path("/etc/ssl/certs/ca-certificates.crt")
# No token: the edge's own answer, which needs no microVM.
REFUSED = 403
_PYTHON = """
import sys, urllib.error, urllib.request
try:
    urllib.request.urlopen(sys.argv[1], timeout=30)
except urllib.error.HTTPError as error:
    print(error.code)
"""


@pytest.fixture
def endpoint(fleet: Fleet) -> str:
    """The host name of a microVM that is not there."""
    return f"{uuid.uuid4()}.{fleet.domain}"


@pytest.fixture
def url(fleet: Fleet, endpoint: str) -> str:
    """The URL of that microVM."""
    port = int(fleet.variables["TORPOR_EDGE"].rsplit(":", 1)[1])
    return f"https://{endpoint}/" if port == 443 else f"https://{endpoint}:{port}/"


def test_names_resolve_for_every_program(url: str) -> None:
    parts = urlsplit(url)
    found = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
    assert found and all(ipaddress.ip_address(address[0]).is_loopback for *_, address in found)


def has_ipv6() -> bool:
    """Whether this machine has the address ::1."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", pytest.param("::1", marks=pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6"))],
)
def test_both_loopback_addresses_are_served(fleet: Fleet, url: str, address: str) -> None:
    context = ssl.create_default_context(cafile=fleet.variables["SSL_CERT_FILE"])
    api = urlsplit(fleet.variables["AWS_ENDPOINT_URL_LAMBDA_MICROVMS"])
    for parts in (urlsplit(url), api):
        with (
            socket.create_connection((address, parts.port or 443), timeout=30) as plain,
            context.wrap_socket(plain, server_hostname=parts.hostname) as stream,
        ):
            assert stream.version() in ("TLSv1.2", "TLSv1.3")


def test_clients_need_nothing_but_the_environment(fleet: Fleet, url: str) -> None:
    environment = fleet.environment()
    commands = [
        [sys.executable, "-c", _PYTHON, url],
        ["curl", "--silent", "--show-error", "--output", "/dev/null", "--write-out", "%{http_code}", url],
    ]
    if node := shutil.which("node"):
        commands.append([node, "-e", "fetch(process.argv[1]).then((answer) => console.log(answer.status))", url])
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
        assert (done.returncode, done.stdout.strip()) == (0, str(REFUSED)), f"{command[0]}: {done.stderr}"


def test_the_systems_cas_stay_trusted(fleet: Fleet) -> None:
    own = Path(fleet.variables["TORPOR_CA"]).read_bytes()
    assert fleet.variables["NODE_EXTRA_CA_CERTS"] == fleet.variables["TORPOR_CA"]
    (bundle,) = {fleet.variables[name] for name in BUNDLES}
    content = Path(bundle).read_bytes()
    assert content.endswith(own)
    if SYSTEM_ROOTS.is_file():
        assert content.startswith(SYSTEM_ROOTS.read_bytes())
