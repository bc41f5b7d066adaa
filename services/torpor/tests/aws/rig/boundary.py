"""The boundary dump of `libs/aws-cases`: a request on each side of every bound, and what the wrong ones must be told."""

import functools
import json
import subprocess
from dataclasses import dataclass

from .fleet import fleet_program

BUILD = "cargo build --release -p aws-cases --example boundary"


@dataclass(frozen=True)
class Case:
    """One request."""

    operation: str
    # Which member and which bound.
    what: str
    method: str
    path: str
    # False where a segment is empty and not the last: on the wire no path at all.
    plain_path: bool
    query: str
    body: str | None
    # Whether it passes the constraints; what stands behind may still refuse it by its own rules.
    valid: bool
    # `class` of the dump: X-Amzn-Errortype when it does not pass.
    error: str | None
    status: int | None
    # A part of the message when it does not pass.
    violation: str | None


@functools.cache
def cases() -> tuple[Case, ...]:
    """Every case."""
    program = fleet_program().parent / "examples" / "boundary"
    assert program.is_file(), f"{program} is missing: {BUILD}"
    lines = subprocess.run([program], capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    return tuple(_case(json.loads(line)) for line in lines)


def of(operation: str) -> list[Case]:
    """Those of one operation."""
    return [case for case in cases() if case.operation == operation]


def _case(line: dict) -> Case:
    return Case(error=line.pop("class"), **line)
