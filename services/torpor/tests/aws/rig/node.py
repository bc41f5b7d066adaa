"""Clients that run in Node: programs in `node/`, with the packages that `deploy/test` installs from there."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from .fleet import REPOSITORY, Fleet

_PROGRAMS = Path(__file__).resolve().parent.parent / "node"
# The oldest that the AWS SDK runs in.
_MAJOR = 20


def modules() -> Path:
    """Where the packages are."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
    found = target / "tools" / "node-clients" / "node_modules"
    assert found.is_dir(), f"{found} is missing: run deploy/test, or npm ci there with package*.json of {_PROGRAMS}"
    return found


def command(program: str) -> list[str]:
    """Runs one of the programs; skips the test where Node is too old."""
    node = shutil.which("node")
    assert node, "node is missing: run deploy/packages --test"
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    if int(version.removeprefix("v").split(".")[0]) < _MAJOR:
        pytest.skip(f"NO NODE CLIENT WAS TESTED: they need Node {_MAJOR}, this is {version.strip()}")
    return [node, str(_PROGRAMS / program)]


def environment(fleet: Fleet, **more: str) -> dict[str, str]:
    """What `torpor env` says, where the packages are, and more."""
    return fleet.environment() | {"NODE_PATH": str(modules())} | more
