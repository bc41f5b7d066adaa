"""The recordings of the live service: scripts, answers, and the form in which both sides are compared.

Values that differ from run to run are normalised on both sides. Where Torpor differs on purpose, `differences.json` says
so, with the reason; an entry is applied only where it says, and one that is never needed fails a test.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from .fleet import BASE

HERE = Path(__file__).resolve().parent.parent
RECORDINGS = HERE / "recordings"

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ARN_REGION = re.compile(r"(arn:[a-z-]+:[a-z0-9-]+:)[a-z]{2}(?:-[a-z]+)+-\d(?=:)")
_ACCOUNT = re.compile(r"(?<![0-9a-f])\d{12}(?![0-9a-f])")
_HOUR = re.compile(r"(?<=#)\d{8}$")
_JWE = re.compile(r"[\w-]+\.\.[\w-]+\.[\w-]+\.[\w-]+")
_MANAGED = re.compile(r"(:aws:microvm-image:)[\w-]+")


@dataclass(frozen=True)
class Step:
    """One request of a script and what the live service answered."""

    case: str
    name: str
    script: dict
    # The recorded body; None where only the status is known, "" for an empty body.
    body: object
    status: int
    error: str | None

    @property
    def id(self) -> str:
        """The name that differences use."""
        return f"{self.case}/{self.name}"


@dataclass(frozen=True)
class Script:
    """One case."""

    id: str
    params: dict[str, str]
    steps: tuple[Step, ...]


def scripts() -> list[Script]:
    """Every case, in the order of its file."""
    return [_script(json.loads(path.read_text())) for path in sorted((RECORDINGS / "cases").glob("*.json"))]


def _script(content: dict) -> Script:
    steps = tuple(_step(content["id"], step) for step in content["steps"])
    return Script(content["id"], content.get("params", {}), steps)


def _step(case: str, script: dict) -> Step:
    answer = RECORDINGS / "answers" / case / f"{script['name']}.json"
    meta = answer.with_suffix(".meta.json")
    facts = json.loads(meta.read_text()) if meta.exists() else {}
    body: object = None
    if answer.exists():
        text = answer.read_text().strip()
        body = json.loads(text) if text else ""
    expected = script["expect"]
    return Step(
        case,
        script["name"],
        script,
        body,
        facts.get("status", expected["status"]),
        facts.get("errorType", expected.get("errorType")),
    )


@dataclass
class Differences:
    """What may differ, and what of it had to."""

    entries: list[dict] = field(default_factory=lambda: json.loads((HERE / "differences.json").read_text()))
    needed: set[str] = field(default_factory=set)
    # The one that does not apply just now.
    _without: str | None = None

    def normalised(self, step: Step, body: object) -> object:
        """A body in the form that is compared; the same for both sides."""
        body = self._of_step(step, body)
        return self._value(body, "")

    def compare(self, step: Step, actual: object, recorded: object) -> None:
        """Both must be the same but for the differences; notes each without which they would not be."""
        assert self.normalised(step, actual) == self.normalised(step, recorded), step.id
        for entry in self.entries:
            self._without = entry["what"]
            if self.normalised(step, actual) != self.normalised(step, recorded):
                self.needed.add(entry["what"])
        self._without = None

    def _entry(self, what: str) -> dict:
        (entry,) = [entry for entry in self.entries if entry["what"] == what]
        return entry if what != self._without else {"steps": [], "members": []}

    def _of_step(self, step: Step, body: object) -> object:
        """Differences that concern a whole answer."""
        if not isinstance(body, dict) or "items" not in body:
            return body
        items = body["items"]
        if step.id in self._entry("one-build")["steps"]:
            items = items[:1]
        if step.id in self._entry("managed-images")["steps"]:
            items = [_any_managed(item) for item in items[:1]]
        if step.id in self._entry("other-images")["steps"]:
            items = [item for item in items if item["name"].startswith("m80-conf-")]
        return body | {"items": items}

    def _value(self, value: object, name: str) -> object:
        if isinstance(value, dict):
            return {key: self._value(member, key) for key, member in value.items()}
        if isinstance(value, list):
            return [self._value(element, name) for element in value]
        for what in ("chip", "sizes", "base-version"):
            if name in self._entry(what)["members"] and value is not None:
                return what.upper()
        if name.endswith("At") and value is not None:
            assert value == "TIMESTAMP" or isinstance(value, (int, float)), f"{name}: {value}"
            return "TIMESTAMP"
        return self._text(value, name) if isinstance(value, str) else value

    def _text(self, text: str, name: str) -> str:
        if name in self._entry("endpoint-domain")["members"]:
            text = text.split(".", 1)[0] + ".DOMAIN"
        text = _UUID.sub("UUID", text)
        text = _ARN_REGION.sub(r"\1REGION", text)
        text = _ACCOUNT.sub("ACCOUNT", text)
        text = _HOUR.sub("HOUR", text)
        return _JWE.sub("TOKEN", text)


def _any_managed(item: dict) -> dict:
    """A managed image or version without its name and number, which must have their form."""
    arn, version = item["imageArn"], item.get("imageVersion")
    assert _MANAGED.search(arn), arn
    assert version in (None, "NUMBER") or version.isdigit(), version
    changed = {"imageArn": _MANAGED.sub(rf"\g<1>{BASE}", arn)}
    if version is not None:
        changed["imageVersion"] = "NUMBER"
    return item | changed
