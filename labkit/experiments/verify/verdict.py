"""What a checker is given, and what it says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from labkit.experiments.verify.history import Heard
from labkit.messages import Commit
from labkit.ports.store import Checkpoint, Document

#: A verdict names so many violations; ``found`` counts all.
NAMED = 100


class Evidence(Struct):
    """What one service's log and store say, read once for all checkers.

    ``chain`` holds the commits that readers take: those whose version fits. ``misfits`` are the
    others, each with the version that it should have followed; ``aborted`` are those that a
    transaction wrote and took back.
    """

    service: str
    commits: list[Commit[Any]]
    chain: list[Commit[Any]]
    misfits: list[tuple[Commit[Any], int]]
    checkpoints: list[Checkpoint]
    states: dict[str, Document]
    views: dict[str, list[Document]]
    lag: dict[str, int]
    aborted: list[Heard]


class Verdict(Struct, frozen=True):
    """What a checker found: how many facts it looked at, and those that are wrong."""

    ok: bool
    checked: int
    violations: list[str]
    found: int = 0


def verdict(checked: int, violations: list[str]) -> Verdict:
    """Of so many facts these are wrong."""
    return Verdict(not violations, checked, violations[:NAMED], len(violations))


def together(verdicts: Iterable[Verdict]) -> Verdict:
    """The same checker over several services."""
    found = list(verdicts)
    return Verdict(
        all(v.ok for v in found),
        sum(v.checked for v in found),
        [line for v in found for line in v.violations][:NAMED],
        sum(v.found for v in found),
    )
