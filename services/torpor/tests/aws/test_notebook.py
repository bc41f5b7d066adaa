"""A Jupyter server in a microVM, as its users' clients meet it: JupyterLab's client of kernels, and xterm.js in a browser.

One image and one microVM serve the whole module.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rig import apps, browser, node
from rig.images import READY_HOOK, Image, Images
from rig.microvms import AUTH_HEADER, PORT_HEADER, Microvms, Running, request
from rig.waiting import until

NOTEBOOK = apps.APP / "notebook"
PORT = 8888
# As settings.py has it.
NOTEBOOK_TOKEN = "of-the-notebook"
POLICY = {"maxIdleDurationSeconds": 3600, "suspendedDurationSeconds": 3600, "autoResumeEnabled": True}
_SECONDS = 60


@pytest.fixture(scope="module")
def image(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Jupyter, and a page with xterm.js."""
    tree = tmp_path_factory.mktemp("notebook")
    for name in ("Dockerfile", "start.py", "settings.py"):
        shutil.copy(NOTEBOOK / name, tree)
    page = tree / "page"
    page.mkdir()
    shutil.copy(NOTEBOOK / "terminal.html", page)
    for name in ("xterm/lib/xterm.js", "xterm/css/xterm.css", "addon-attach/lib/addon-attach.js"):
        shutil.copy(node.modules() / "@xterm" / name, page)
    apps.install(["--requirement", str(NOTEBOOK / "requirements.txt")], tree / "packages")
    return images.build("notebook", images.upload("notebook", apps.zip_tree(tree)), hooks=READY_HOOK)


@pytest.fixture(scope="module")
def running(image: Image, module_microvms: Microvms) -> Running:
    """A microVM that lets shells in and wakes with what its clients send."""
    ingress = [module_microvms.fleet.connector_arn(name) for name in ("HTTP_INGRESS", "SHELL_INGRESS")]
    return module_microvms.run(image.arn, idlePolicy=POLICY, ingressNetworkConnectors=ingress)


def asked(running: Running, method: str, path: str):
    """Jupyter's answer."""
    token = running.microvms.token(running.id)
    headers = {AUTH_HEADER: token, PORT_HEADER: str(PORT), "Authorization": f"token {NOTEBOOK_TOKEN}"}
    return request(running.microvms.fleet, running.endpoint, method, path, headers)


class Kernel:
    """A kernel, through `node/kernel.js`."""

    def __init__(self, running: Running) -> None:
        environment = node.environment(
            running.microvms.fleet,
            URL=running.url,
            TOKEN=running.microvms.token(running.id),
            NOTEBOOK_TOKEN=NOTEBOOK_TOKEN,
        )
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(node.command("kernel.js"), env=environment, **pipes)

    def read(self) -> dict:
        """The next answer."""
        for line in self.process.stdout:
            # The client's own remarks stand between them.
            if line.startswith("{"):
                return json.loads(line)
        raise AssertionError(f"kernel.js ended with {self.process.wait(_SECONDS)}")

    def begin(self, cell: str) -> None:
        """Executes a cell of one line."""
        self.process.stdin.write(f"{cell}\n")
        self.process.stdin.flush()

    def execute(self, cell: str) -> dict:
        """Executes a cell and waits for its end."""
        self.begin(cell)
        return self.read()


@pytest.fixture
def kernel(running: Running) -> Iterator[Kernel]:
    """A kernel that has started."""
    kernel = Kernel(running)
    with kernel.process:
        try:
            assert kernel.read() == {"language": "python", "sockets": 1}
            yield kernel
            kernel.process.stdin.close()
            assert kernel.process.wait(_SECONDS) == 0
        finally:
            kernel.process.kill()


def test_a_kernel_across_sleeps(running: Running, kernel: Kernel) -> None:
    good = {"status": "ok", "sockets": 1}
    assert kernel.execute("x = 41") == good | {"text": "", "count": 1}
    running.suspend()
    # The cell wakes it, on the same WebSocket and with the same memory.
    assert kernel.execute("print(x + 1)") == good | {"text": "42\n", "count": 2}
    # One that is asleep while it runs, and goes on.
    numbers = "import time; [print(n) or time.sleep(0.1) for n in range(30)]; print('end')"
    kernel.begin(numbers)
    running.suspend()
    running.resume()
    text = "".join(f"{number}\n" for number in range(30))
    assert kernel.read() == good | {"text": f"{text}end\n", "count": 3}


@pytest.fixture(scope="module")
def page(running: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    """The page with the terminals, come to by the link of `torpor open`."""
    fleet = running.microvms.fleet
    link = fleet.torpor("open", running.id, "--print", "--port", str(PORT), "--path", "/static/terminal.html")
    with browser.page(fleet, tmp_path_factory.mktemp("browser") / "profile") as page:
        page.go(link.strip())
        yield page


def types(page: browser.Page, line: str, shown: str) -> None:
    """Types a line and waits until the terminal shows a text."""
    page.type(f"{line}\n")
    until(f"the terminal to show {shown!r}", lambda: shown in page.ask("shown()"))


def sleeps_between_two_lines(running: Running, page: browser.Page) -> None:
    """A terminal before and after a sleep."""
    until("a prompt", lambda: "# " in page.ask("shown()"))
    types(page, "kept=yes; echo begun=$((1+1))", "begun=2")
    running.suspend()
    types(page, "echo kept=$kept", "kept=yes\n")
    assert page.ask("closed") == []


def test_xterm_js_over_a_terminal_of_jupyter(running: Running, page: browser.Page) -> None:
    name = asked(running, "POST", "/api/terminals").json()["name"]
    page.ask(f"openNotebook({json.dumps(name)}, {json.dumps(NOTEBOOK_TOKEN)})")
    sleeps_between_two_lines(running, page)


def test_xterm_js_over_the_microvms_shell(running: Running, page: browser.Page) -> None:
    answer = running.microvms.api.create_microvm_shell_auth_token(microvmIdentifier=running.id, expirationInMinutes=5)
    page.ask(f"openShell({json.dumps(answer['authToken'][AUTH_HEADER])})")
    sleeps_between_two_lines(running, page)
    types(page, "stty size", "30 100")
    page.type("exit\n")
    until("the shell to end", lambda: page.ask("closed") == ["1000 shell exited"])
