"""What real clients saw in this session: which operations answered, and with which errors.

The clients write it themselves, from their own events, so that coverage is what happened and not what a test says.
"""

from dataclasses import dataclass, field


@dataclass
class Journal:
    """Written by clients, read by the tests of coverage at the end."""

    # (client, service, operation)
    successes: set[tuple[str, str, str]] = field(default_factory=set)
    # (service, operation, error class) -> HTTP statuses
    refusals: dict[tuple[str, str, str], set[int]] = field(default_factory=dict)
    # Answers of 5xx since the test began, as text.
    server_errors: list[str] = field(default_factory=list)

    def succeeded(self, client: str, service: str, operation: str) -> None:
        """Notes a success."""
        self.successes.add((client, service, operation))

    def refused(self, service: str, operation: str, error: str, status: int | None) -> None:
        """Notes an error; `status` is None when the client does not tell it."""
        statuses = self.refusals.setdefault((service, operation, error), set())
        if status is not None:
            statuses.add(status)
            self.answered(status, f"{operation}: {error}")

    def answered(self, status: int, what: str) -> None:
        """Notes an answer that is the server's fault."""
        if status >= 500:
            self.server_errors.append(f"{status} {what}")
