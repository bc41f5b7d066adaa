"""The compatibility table: each row of AWS's testable behaviour, and what the tests of this directory say about it.

A test names the rows it proves with `@pytest.mark.row(12, 13)`, or, where Torpor departs from AWS,
`@pytest.mark.row(18, differs="why")`. Rows without a test give their reason in `rows.json`. A row whose test fails is
written as failing, which no committed table says: the table cannot claim what does not hold.

    pytest --write-table     writes docs/AWS-COMPATIBILITY.md, when every test of a row passed
    pytest -m table          checks the committed one against the marks, without a fleet
"""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from .fleet import REPOSITORY

HERE = Path(__file__).resolve().parent.parent
DOCUMENT = REPOSITORY / "docs" / "AWS-COMPATIBILITY.md"
MATCHED_SHARE_MIN = 0.95

_HEAD = """\
# Compatibility with AWS Lambda MicroVMs

What unmodified AWS clients meet at Torpor's REST API, behaviour by behaviour. This file is written by the tests in
[services/torpor/tests/aws](../services/torpor/tests/aws), which drive a running fleet with boto3, the AWS CLI
and raw signed HTTP; a row says *matched* when a test proves it. Do not edit it: `deploy/test` fails when it and the tests
disagree, and `pytest --write-table` writes it anew.

"""


@dataclass(frozen=True)
class Row:
    """One behaviour."""

    number: int
    # Heading it stands under.
    area: str
    # What AWS does, in our own words.
    feature: str
    # Why no test of this directory concerns it; empty for the rows of the control plane.
    elsewhere: str


def load() -> list[Row]:
    """Every row, by number."""
    content = json.loads((HERE / "rows.json").read_text())
    rows = [
        Row(row["row"], area["area"], row["feature"], area.get("elsewhere", ""))
        for area in content
        for row in area["rows"]
    ]
    rows.sort(key=lambda row: row.number)
    assert [row.number for row in rows] == list(range(1, len(rows) + 1)), "rows.json: every row once"
    return rows


def control_plane(row: Row) -> bool:
    """Whether a row must have a test here."""
    return not row.elsewhere


@dataclass
class Claims:
    """What the tests claim about rows, and how those that ran ended."""

    # Row to the tests that name it, with the reason for a difference ("" for a match).
    tests: dict[int, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    # Test to whether it passed; absent when it did not run.
    passed: dict[str, bool] = field(default_factory=dict)

    def verdict(self, row: Row) -> str:
        """The table's word for a row."""
        tests = self.tests.get(row.number, [])
        if not tests:
            return f"not applicable: {row.elsewhere}" if row.elsewhere else "**no test**"
        if not all(self.passed.get(test, True) for test, _ in tests):
            return "**fails**"
        reasons = sorted({reason for _, reason in tests if reason})
        assert len(reasons) <= 1, f"row {row.number} differs for several reasons: {reasons}"
        return f"differs on purpose: {reasons[0]}" if reasons else "matched"


def render(rows: list[Row], claims: Claims) -> str:
    """The document."""
    verdicts = {row.number: claims.verdict(row) for row in rows}
    ours = [verdicts[row.number] for row in rows if control_plane(row)]
    lines = [
        _HEAD,
        f"Of the {len(ours)} rows that concern the API {sum(v == 'matched' for v in ours)} are matched and ",
        f"{sum(v.startswith('differs') for v in ours)} differ on purpose.\n",
    ]
    area = None
    for row in rows:
        if row.area != area:
            area = row.area
            lines += [f"\n## {area}\n\n", "| # | behaviour of AWS | Torpor |\n", "| --- | --- | --- |\n"]
        lines.append(f"| {row.number} | {row.feature} | {verdicts[row.number]} |\n")
    return "".join(lines)


class TablePlugin:
    """Collects claims and outcomes, and puts the tests about the whole session at its end."""

    def __init__(self) -> None:
        self.rows = load()
        self.claims = Claims()
        self.complete = False
        self._collected = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Before anything is deselected: what is claimed."""
        for item in items:
            for mark in item.iter_markers("row"):
                for number in mark.args:
                    self.claims.tests[number].append((item.nodeid, mark.kwargs.get("differs", "")))
        items.sort(key=lambda item: item.get_closest_marker("table") is not None)
        self._collected = len(items)
        files = {item.path for item in items}
        self.complete = files >= set(HERE.glob("test_*.py"))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """How a test ended: it passed if each phase of its last try did."""
        before = report.when == "setup" or self.claims.passed.get(report.nodeid, True)
        self.claims.passed[report.nodeid] = before and report.passed

    def render(self) -> str:
        """The document as this session has it."""
        return render(self.rows, self.claims)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Writes the document where that was asked for; nothing is claimed that did not run."""
        if session.config.getoption("--write-table"):
            tests = {test for claims in self.claims.tests.values() for test, _ in claims}
            unproven = sorted(test for test in tests if not self.claims.passed.get(test))
            if unproven:
                raise pytest.UsageError(f"not written: {len(unproven)} tests did not pass, {unproven[0]} for one")
            DOCUMENT.write_text(self.render())


class SelectionPlugin:
    """Leaves out what a part of the tests cannot answer."""

    def __init__(self, table: TablePlugin) -> None:
        self._table = table

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """After everything is deselected: tests about the whole session stay only when it is whole."""
        whole = self._table.complete and len(items) == self._table._collected
        unanswerable = {"session"} if not whole else set()
        if not self._table.complete:
            unanswerable.add("table")
        dropped = [item for item in items if any(item.get_closest_marker(name) for name in unanswerable)]
        if dropped:
            config.hook.pytest_deselected(items=dropped)
            items[:] = [item for item in items if item not in dropped]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--write-table`."""
    parser.addoption("--write-table", action="store_true", help=f"write {DOCUMENT.name} from the tests")


def pytest_configure(config: pytest.Config) -> None:
    """Markers and plugins."""
    for line in (
        "row(number, ..., differs=None): rows of the compatibility table that this test proves",
        "table: about the table; runs last and needs no fleet",
        "session: about what a whole session saw; runs last and only in a whole session",
        "server_errors: this test provokes 5xx answers",
    ):
        config.addinivalue_line("markers", line)
    table = TablePlugin()
    config.pluginmanager.register(table, "torpor-table")
    config.pluginmanager.register(SelectionPlugin(table), "torpor-selection")


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> TablePlugin:
    """The table of this session."""
    return request.config.pluginmanager.get_plugin("torpor-table")
