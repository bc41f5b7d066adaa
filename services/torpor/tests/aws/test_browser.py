"""Browser sessions: the link of `torpor open`, followed by a browser and by hand."""

import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from rig import browser
from rig.images import Image
from rig.microvms import AUTH_HEADER, Microvms, Running, request
from rig.waiting import until
from rig.wire import Answer

COOKIE = "__Host-torpor"
ERROR_HEADER = "x-aws-proxy-error"
SPENT = b"This link was used before or has expired. Make a new one: torpor open ID"
CHROMIUM_SECONDS = 120


@pytest.fixture(scope="module")
def running(plain: Image, module_microvms: Microvms) -> Running:
    """A microVM that browsers come to."""
    return module_microvms.run(plain.arn)


def link(running: Running, *more: str) -> str:
    """A fresh link."""
    return running.microvms.fleet.torpor("open", running.id, "--print", *more).strip()


def ask(running: Running, path: str, headers: dict[str, str] | None = None, method: str = "GET") -> Answer:
    """A request that shows no token but what the headers hold."""
    return request(running.microvms.fleet, running.endpoint, method, path, headers or {})


def follow(running: Running, url: str) -> Answer:
    """What the edge answers to a browser that follows a link."""
    parts = urlsplit(url)
    assert parts.hostname == running.endpoint
    return ask(running, f"{parts.path}?{parts.query}")


def session(running: Running, *more: str) -> dict[str, str]:
    """The header that a browser shows after it followed a fresh link."""
    answer = follow(running, link(running, *more))
    assert answer.status == 303, answer
    return {"Cookie": answer.headers["set-cookie"].split(";")[0]}


def test_a_link_works_once(running: Running) -> None:
    url = link(running, "--path", "/headers?a=1", "--for", "5m")
    answer = follow(running, url)
    assert (answer.status, answer.body) == (303, b"")
    assert answer.headers["location"] == "/headers?a=1"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"
    value, *flags = answer.headers["set-cookie"].split("; ")
    assert value.startswith(f"{COOKIE}=")
    assert flags == ["Path=/", "Max-Age=300", "Secure", "HttpOnly", "SameSite=Lax"]
    for _ in range(2):
        again = follow(running, url)
        assert (again.status, again.body, again.headers[ERROR_HEADER]) == (403, SPENT, "INVITATION_SPENT")
    other = ask(running, f"/.torpor/open?code={'A' * 43}")
    assert (other.status, other.body) == (403, SPENT)


def test_the_app_does_not_see_the_cookie(running: Running) -> None:
    cookie = session(running)["Cookie"]
    answer = ask(running, "/headers", {"Cookie": f"a=1; {cookie}; b=2"})
    assert answer.status == 200, answer
    seen = answer.json()["headers"]
    assert seen["cookie"] == "a=1; b=2"
    assert AUTH_HEADER.lower() not in seen
    page = ask(running, "/page", {"Cookie": cookie})
    assert page.headers.get_all("set-cookie") == ["own=1"]


def test_a_session_is_for_one_port(running: Running) -> None:
    cookie = session(running, "--port", "8081")
    assert ask(running, "/", cookie).status == 200
    answer = ask(running, "/", cookie | {"X-aws-proxy-port": "8080"})
    assert (answer.status, answer.body) == (403, b"Access to port denied")
    token = cookie["Cookie"].removeprefix(f"{COOKIE}=")
    answer = ask(running, "/", {AUTH_HEADER: token})
    assert (answer.status, answer.body) == (403, b"Token authentication failed")


@pytest.mark.parametrize(("origin", "good"), [("own", True), ("https://other.example", False), (None, False)])
def test_other_sites_change_nothing(running: Running, origin: str | None, good: bool) -> None:
    headers = session(running)
    if origin:
        headers["Origin"] = f"https://{urlsplit(link(running)).netloc}" if origin == "own" else origin
    answer = ask(running, "/change", headers, method="POST")
    assert answer.status == (200 if good else 403), answer
    if not good:
        assert (answer.body, answer.headers[ERROR_HEADER]) == (b"Cross-site request denied", "CROSS_SITE")


def test_a_revocation_ends_tokens_sessions_and_links(plain: Image, microvms: Microvms) -> None:
    running = microvms.run(plain.arn)
    token, cookie, unused = microvms.token(running.id), session(running), link(running)
    assert running.ask(token=token).status == 200
    assert ask(running, "/", cookie).status == 200
    microvms.fleet.torpor("token", "revoke", running.id)
    refused = (403, b"Token authentication failed")
    for headers in ({AUTH_HEADER: token}, cookie):

        def is_refused(headers: dict[str, str] = headers) -> bool:
            answer = ask(running, "/", headers)
            return (answer.status, answer.body) == refused

        until("the edge to hear of it", is_refused, within=5)
    assert follow(running, unused).body == SPENT
    assert running.ask().status == 200, "a new token"
    assert ask(running, "/", session(running)).status == 200


def test_a_token_for_some_paths_and_methods(running: Running) -> None:
    fleet = running.microvms.fleet
    token = fleet.torpor("token", running.id, "--path", "/hooks", "--method", "get").strip()
    assert running.ask("/hooks", token=token).status == 200
    for path in ("/", "/hooksx", "/hooks/../headers", "/hooks/%2e%2e/headers"):
        answer = running.ask(path, token=token)
        assert (answer.status, answer.body) == (403, b"Access to path denied"), path
        assert answer.headers[ERROR_HEADER] == "SCOPE_DENIED"
    answer = ask(running, "/hooks", {AUTH_HEADER: token}, method="POST")
    assert (answer.status, answer.body) == (403, b"Access to method denied")


def test_chromium_follows_a_link(running: Running, tmp_path: Path) -> None:
    command = browser.command(running.microvms.fleet, tmp_path / "profile")
    command += ["--dump-dom", link(running, "--path", "/page")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=CHROMIUM_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert "cookies: own=1<" in done.stdout, f"{done.stdout}\n{done.stderr}"
    assert "socket: echoed from the page<" in done.stdout, f"{done.stdout}\n{done.stderr}"
