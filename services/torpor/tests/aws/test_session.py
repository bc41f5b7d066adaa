"""About the session as a whole: that clients of both kinds saw every operation succeed, and every error of the models.

What they saw is in the journal, which the clients write themselves. Errors that never come are in `never.json`, each with
the reason; one that comes all the same fails, so that the file stays true.
"""

import json
from pathlib import Path

import pytest

from rig import models
from rig.journal import Journal

HERE = Path(__file__).resolve().parent
pytestmark = [pytest.mark.session, pytest.mark.table]


def never() -> dict[tuple[str, str], str]:
    """(operation, error) that no caller meets, and why."""
    entries = json.loads((HERE / "never.json").read_text())
    return {(operation, entry["error"]): entry["reason"] for entry in entries for operation in entry["operations"]}


@pytest.mark.parametrize(("client", "operations"), [("boto3", models.operations), ("cli", models.cli_operations)])
def test_every_operation_succeeded(journal: Journal, client: str, operations) -> None:
    missing = [o for s in models.SERVICES for o in operations(s) if (client, s, o) not in journal.successes]
    assert not missing, f"{client} saw no success of {', '.join(missing)}"


def test_every_modelled_error_was_seen(journal: Journal) -> None:
    modelled = {
        (service, operation, error)
        for service, operation in models.every_operation()
        for error in models.modelled_errors(service, operation)
    }
    seen = set(journal.refusals)
    excused = never()
    missing = {(o, e) for s, o, e in modelled - seen} - set(excused)
    assert not missing, f"never seen, and not in never.json: {sorted(missing)}"
    wrong = {(o, e) for s, o, e in seen if (o, e) in excused}
    assert not wrong, f"in never.json and seen: {sorted(wrong)}"
    unknown = set(excused) - {(o, e) for s, o, e in modelled}
    assert not unknown, f"in never.json and not modelled: {sorted(unknown)}"
    assert all(excused.values())


def test_errors_have_the_status_of_the_model(journal: Journal) -> None:
    wrong = [
        f"{operation} {error}: {statuses}, modelled {modelled[error]}"
        for (service, operation, error), statuses in journal.refusals.items()
        if error in (modelled := models.modelled_errors(service, operation)) and statuses - {modelled[error]}
    ]
    assert not wrong, "; ".join(wrong)
