"""A headless Chromium, driven over its DevTools protocol as a person drives it: pages, keys, and what a page says."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from .fleet import Fleet
from .waiting import until

_SECONDS = 60


def command(fleet: Fleet, profile: Path) -> list[str]:
    """A Chromium that finds the fleet's endpoints; skips the test where there is none."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("NO BROWSER WAS TESTED: chromium is missing, run deploy/packages --test")
    edge = fleet.variables["TORPOR_EDGE"].rsplit(":", 1)[0].strip("[]")
    # Names and certificates are not what the tests are about, and the machine's own settings stay out of them.
    return [
        program,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--no-proxy-server",
        "--ignore-certificate-errors",
        # Chromium ends HTTP/2 connections when an address of its machine comes or goes, and tests beside ours have some.
        "--disable-http2",
        f"--user-data-dir={profile}",
        f"--host-resolver-rules=MAP *.{fleet.domain} {edge}",
    ]


class Page:
    """One page."""

    def __init__(self, devtools: ClientConnection) -> None:
        self._devtools = devtools
        self._ids = count(1)
        self._session: str | None = None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def _call(self, method: str, **params) -> dict:
        """A command and its result; events in between are not waited for by anyone."""
        wanted = next(self._ids)
        message = {"id": wanted, "method": method, "params": params}
        self._devtools.send(json.dumps(message | ({"sessionId": self._session} if self._session else {})))
        while True:
            answer = json.loads(self._devtools.recv(timeout=_SECONDS))
            if answer.get("id") == wanted:
                assert "result" in answer, f"{method}: {answer}"
                return answer["result"]

    def go(self, url: str) -> None:
        """Follows a link until its page has loaded."""
        result = self._call("Page.navigate", url=url)
        assert not result.get("errorText"), result
        until(f"{url} to load", lambda: self.ask("document.readyState") == "complete")

    def ask(self, script: str):
        """What an expression in the page comes to."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def type(self, text: str) -> None:
        """Presses a key for each character."""
        for character in text:
            key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
            if character != "\n":
                key = {"key": character, "text": character}
            self._call("Input.dispatchKeyEvent", type="keyDown", **key)
            self._call("Input.dispatchKeyEvent", type="keyUp", key=key["key"])


@contextmanager
def page(fleet: Fleet, profile: Path) -> Iterator[Page]:
    """A page of a browser of its own."""
    arguments = [*command(fleet, profile), "--remote-debugging-port=0", "about:blank"]
    log = profile.with_suffix(".log")
    with log.open("wb") as said, subprocess.Popen(arguments, stdout=said, stderr=said) as browser:
        try:
            address = profile / "DevToolsActivePort"

            def lines() -> list[str] | None:
                assert browser.poll() is None, log.read_text()
                found = address.read_text().splitlines() if address.is_file() else []
                return found if len(found) == 2 else None

            port, path = until("chromium to listen", lines)
            with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, compression=None, proxy=None) as devtools:
                yield Page(devtools)
                try:
                    devtools.send(json.dumps({"id": 0, "method": "Browser.close"}))
                    browser.wait(_SECONDS)
                except ConnectionClosed:
                    pass
        finally:
            if browser.poll() is None:
                browser.kill()
