"""The published models of both services, as the installed botocore carries them.

Read at run time and never copied: they are what an unmodified client goes by.
"""

import functools
import importlib.util
import json
from pathlib import Path

import botocore.session
from botocore.model import OperationModel, ServiceModel

MICROVMS = "lambda-microvms"
CORE = "lambda-core"
SERVICES = (MICROVMS, CORE)


@functools.cache
def service(name: str) -> ServiceModel:
    """The model of one service."""
    return botocore.session.get_session().get_service_model(name)


@functools.cache
def operations(name: str) -> tuple[str, ...]:
    """Operations of a service that concern microVMs: all of `lambda-microvms`, the connectors of `lambda-core`."""
    names = service(name).operation_names
    return tuple(sorted(n for n in names if name == MICROVMS or "NetworkConnector" in n))


@functools.cache
def cli_operations(name: str) -> tuple[str, ...]:
    """Those of them that the AWS CLI has commands for, by the models that it carries."""
    # Read, not imported: the CLI's own botocore would take the place of this process's.
    (package,) = importlib.util.find_spec("awscli").submodule_search_locations
    (path,) = Path(package, "botocore", "data", name).glob("*/service-2.json")
    known = json.loads(path.read_text())["operations"]
    return tuple(operation for operation in operations(name) if operation in known)


def operation(service_name: str, name: str) -> OperationModel:
    """One operation."""
    return service(service_name).operation_model(name)


def every_operation() -> list[tuple[str, str]]:
    """(service, operation) of all there are, in a stable order."""
    return [(s, o) for s in SERVICES for o in operations(s)]


def modelled_errors(service_name: str, name: str) -> dict[str, int]:
    """Error classes an operation's model lists, with their HTTP status."""
    return {
        shape.name: shape.metadata["error"]["httpStatusCode"] for shape in operation(service_name, name).error_shapes
    }


def command(name: str) -> str:
    """The AWS CLI's name of an operation."""
    from botocore import xform_name

    return xform_name(name, "-")


def method(name: str) -> str:
    """boto3's name of an operation."""
    from botocore import xform_name

    return xform_name(name)
