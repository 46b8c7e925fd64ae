"""What a checker says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

#: A verdict names so many violations; ``found`` counts all.
NAMED = 100


class Verdict(Struct, frozen=True):
    """How many facts a checker looked at, and which of them are wrong.

    ``ok`` is ``None`` if the checker could not judge; ``why`` says what it lacks.
    """

    ok: bool | None
    checked: int
    violations: list[str]
    found: int = 0
    why: str = ""


def verdict(checked: int, violations: list[str]) -> Verdict:
    return Verdict(not violations, checked, violations[:NAMED], len(violations))


def unknown(why: str) -> Verdict:
    return Verdict(None, 0, [], why=why)


def together(verdicts: Iterable[Verdict]) -> Verdict:
    """The same checker over several services. One that cannot judge leaves the whole unknown, if
    the others find nothing wrong."""
    found = list(verdicts)
    wrong = sum(v.found for v in found)
    judged = all(v.ok is not None for v in found)
    return Verdict(
        False if wrong else True if judged else None,
        sum(v.checked for v in found),
        [line for v in found for line in v.violations][:NAMED],
        wrong,
        "; ".join(v.why for v in found if v.why),
    )


def red(verdicts: Mapping[str, Verdict]) -> list[str]:
    """The checkers that found something wrong."""
    return [name for name, verdict in verdicts.items() if verdict.ok is False]


def to_report(verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    """For the JSON: by name, C1 before C10, those with other names last."""

    def place(name: str) -> tuple[int, str]:
        number = name.removeprefix("C")
        return (int(number) if number.isdecimal() else 10**9, name)

    return {name: msgspec.to_builtins(verdicts[name]) for name in sorted(verdicts, key=place)}
