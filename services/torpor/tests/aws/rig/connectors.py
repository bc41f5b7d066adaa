"""Network connectors that tests make and remove again."""

from collections.abc import Iterable

from botocore.exceptions import ClientError

from .clients import refusal
from .waiting import until


def settled(core, arn: str) -> dict:
    """Waits until nothing about a connector is under way."""

    def ask() -> dict | None:
        connector = core.get_network_connector(Identifier=arn)
        busy = connector.get("LastUpdateStatus") == "InProgress"
        return connector if connector["State"] == "ACTIVE" and not busy else None

    return until(f"{arn} to be ACTIVE", ask)


def gone(core, arn: str) -> bool:
    """Whether reading it answers 404."""
    try:
        core.get_network_connector(Identifier=arn)
    except ClientError as error:
        assert refusal(error)[:2] == (404, "ResourceNotFoundException"), error
        return True
    return False


def remove(core, arns: Iterable[str]) -> None:
    """Deletes connectors, all at once, and waits until they are gone."""
    arns = list(arns)

    def deleting(arn: str) -> bool:
        try:
            core.delete_network_connector(Identifier=arn)
        except ClientError as error:
            status, code, _ = refusal(error)
            # Not yet, or not any more.
            assert (status, code) in ((409, "ResourceConflictException"), (404, "ResourceNotFoundException")), error
            return status == 404
        return True

    for arn in arns:
        until(f"{arn} to be deletable", lambda arn=arn: deleting(arn))
    for arn in arns:
        until(f"{arn} to be gone", lambda arn=arn: gone(core, arn))
