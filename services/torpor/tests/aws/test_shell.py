"""`torpor shell` on a terminal, as a person has it: raw while the shell is open, as before when it has ended."""

import os
import signal
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pexpect
import pytest

from rig.fleet import required_program
from rig.images import Image
from rig.microvms import Microvms, Running
from rig.waiting import until

POLICY = {"maxIdleDurationSeconds": 3600, "suspendedDurationSeconds": 3600, "autoResumeEnabled": True}
_SECONDS = 60
# The terminal's mode before and after, as a script that has no terminal to itself sees it.
_SCRIPT = 'before=$(stty -g); "$@"; code=$?; [[ $(stty -g) == "$before" ]] && echo "as before, $code"'


@pytest.fixture(scope="module")
def running(plain: Image, module_microvms: Microvms) -> Running:
    """A microVM that lets shells in and wakes with what is typed."""
    ingress = [module_microvms.fleet.connector_arn("SHELL_INGRESS")]
    return module_microvms.run(plain.arn, idlePolicy=POLICY, ingressNetworkConnectors=ingress)


@contextmanager
def terminal(running: Running, code: int = 0) -> Iterator[pexpect.spawn]:
    """A terminal of 24 lines of 80 with a shell in the microVM, at its first prompt; `code` is how the command ends."""
    fleet = running.microvms.fleet
    command = [str(fleet.program), "--data-dir", str(fleet.data_dir), "shell", running.id]
    arguments = ["-c", _SCRIPT, "bash", *command]
    child = pexpect.spawn(required_program("bash"), arguments, dimensions=(24, 80), timeout=_SECONDS, encoding="utf-8")
    try:
        child.expect("# ")
        yield child
        child.expect_exact(f"as before, {code}")
        child.expect(pexpect.EOF)
    finally:
        child.close(force=True)


def local_flags(child: pexpect.spawn) -> int:
    """Of the person's terminal: what it makes of keys itself."""
    return termios.tcgetattr(child.child_fd)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)


def test_a_terminal(running: Running) -> None:
    with terminal(running) as child:
        assert local_flags(child) == 0
        child.sendline("stty size")
        child.expect_exact("24 80\r\n")
        # Ctrl-C is for the program in the microVM.
        child.sendline("kept=yes; sh -c 'echo begun=$((1+1)); exec sleep 1000'")
        child.expect_exact("begun=2\r\n")
        child.sendintr()
        child.expect("# ")
        child.sendline("echo ended with $?")
        child.expect_exact("ended with 130\r\n")
        child.setwinsize(45, 123)

        def resized() -> bool:
            child.sendline("stty size")
            return child.expect_exact(["45 123\r\n", "24 80\r\n"]) == 0

        until("the shell to hear of the new size", resized)
        running.suspend()
        child.sendline("echo kept=$kept; stty size")
        child.expect_exact("kept=yes\r\n45 123\r\n")
        child.sendline("exit")


def test_leaving_a_shell_that_goes_on(running: Running) -> None:
    with terminal(running) as child:
        child.sendline("sleep 1000")
        child.expect_exact("sleep 1000\r\n")
        child.send("\r~.")
        child.expect_exact("torpor: left the shell")


def test_a_signal_puts_the_terminal_right(running: Running) -> None:
    with terminal(running, code=1) as child:
        (command,) = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        os.kill(int(command), signal.SIGTERM)
