"""The compatibility table: complete, good enough, and what is committed."""

import pytest

from rig.table import DOCUMENT, MATCHED_SHARE_MIN, TablePlugin, control_plane

pytestmark = pytest.mark.table


def test_every_row_of_the_control_plane_has_a_test(table: TablePlugin) -> None:
    missing = [row.number for row in table.rows if control_plane(row) and not table.claims.tests.get(row.number)]
    assert not missing, f"rows without a test: {missing}"
    unknown = set(table.claims.tests) - {row.number for row in table.rows}
    assert not unknown, f"tests of rows that there are not: {sorted(unknown)}"


def test_enough_rows_are_matched(table: TablePlugin) -> None:
    verdicts = [table.claims.verdict(row) for row in table.rows if control_plane(row)]
    matched = sum(verdict == "matched" for verdict in verdicts)
    assert matched / len(verdicts) >= MATCHED_SHARE_MIN, f"{matched} of {len(verdicts)}"


def test_the_committed_table_is_this_one(table: TablePlugin) -> None:
    assert DOCUMENT.read_text() == table.render(), "pytest --write-table writes it anew"
