"""Waiting for conditions with a deadline; never for time to pass."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.1


def until(what: str, ask: Callable[[], T | None], within: float = 60.0, every: float = POLL_SECONDS) -> T:
    """Asks again and again until there is an answer that is neither None nor False.

    `what` names the condition in the failure; `within` and `every` are seconds.
    """
    deadline = time.monotonic() + within
    while True:
        answer = ask()
        if answer is not None and answer is not False:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {within:.0f} s for {what}")
        time.sleep(every)
