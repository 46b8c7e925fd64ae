"""Why a run is bad: the argument step by step, and what was expected beside what was found."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct

from labkit.simulation.lives import Event
from labkit.simulation.monitors import FirstBad

#: The argument has so many lines.
LINES = 6
#: What matters most to an argument comes first: what broke, what was decided, sent, told and shown.
MATTERS = (
    *("fault", "aborted", "happening", "decided", "sent", "answer"),
    *("fetch", "save", "claim", "anew"),
)
#: So many things are shown with both their accounts.
TOLD = 5
#: How checkers say that two things should agree, and the names of the two.
TWO_SIDES = (
    (r"(?P<what>.+?): the model says (?P<left>.+), the view (?P<right>.+)", "expected", "found"),
    (r"(?P<what>'.+?') was decided twice: (?P<left>.+?), then (?P<right>.+)", "first", "second"),
    (r"(?P<what>.+?) was told (?P<right>.+?), before that (?P<left>.+)", "first", "second"),
    (r"(?P<what>.+?) was told (?P<left>.+?), its commit says (?P<right>.+)", "told", "decided"),
)


class Sides(Struct, frozen=True):
    """Two accounts of one thing, each under its name; only the fields in which they differ."""

    what: str
    names: tuple[str, str]
    lines: list[tuple[str, str, str]]


def sides(violations: Iterable[str]) -> list[Sides]:
    """What was expected beside what was found, of each thing that has two accounts."""
    found: list[Sides] = []
    for line in violations:
        for pattern, *names in TWO_SIDES:
            if match := re.fullmatch(pattern, line):
                lines = _differing(_value(match["left"]), _value(match["right"]))
                if all(lines != other.lines for other in found):  # two checkers may tell the same
                    found.append(Sides(match["what"], (names[0], names[1]), lines))
                break
    return found[:TOLD]


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _differing(left: Any, right: Any) -> list[tuple[str, str, str]]:
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        names = [name for name in {**left, **right} if left.get(name) != right.get(name)]
        return [(str(n), str(left.get(n, "")), str(right.get(n, ""))) for n in names]
    return [("", _listed(left), _listed(right))]


def _listed(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    return "nothing" if value is None else str(value)


def reason(events: Sequence[Event], violation: str, first_bad: FirstBad | None) -> list[str]:
    """The steps that lead to a violation, and the one that contradicts the promise."""
    lines: list[tuple[int, int, str]] = []
    said: set[tuple[str, ...]] = set()
    for number, event in enumerate(_relevant(events, violation)):
        kind = _kind(event)
        key = (kind, *event.about)
        text = told(event)
        if key in said:
            text = text.replace(" sends ", " once more sends ")
            text = text.replace(" decides: ", " once more decides: ")
        said.add(key)
        lines.append((MATTERS.index(kind), number, f"{text}."))
    chosen = sorted(sorted(lines)[: LINES - 1], key=lambda line: line[1])
    what = first_bad.what if first_bad else violation
    where = f"Step {first_bad.step} breaks the promise" if first_bad else "In the end"
    return [*(text for *_, text in chosen), f"{where}: {what}."]


def _relevant(events: Sequence[Event], violation: str) -> Iterator[Event]:
    """What is about the subject of a violation, and what broke."""
    known = {name for event in events for name in event.about}
    named = [name for name in re.findall(r"'([^']+)'", violation) if name in known]
    # Who stands first is what the sentence is about. A document is named by its stream.
    subject = {*named[:1]} or known
    documents = {n for e in events if e.kind == "append" and subject & {*e.about} for n in e.about}
    broken = False
    for event in events:
        broken = broken or event.kind == "fault"
        about = documents if event.kind == "save" else subject
        # Who takes something over is of interest only after something broke.
        always = event.kind == "fault" or (broken and event.kind in ("anew", "claim"))
        if _kind(event) in MATTERS and (always or about & {*event.about}):
            yield event


def _kind(event: Event) -> str:
    """As ``MATTERS`` has it. Repeats, and what others than projectors read, are no part of it."""
    if event.kind == "append":
        if " repeated " in event.text:
            return ""
        return "decided" if event.other.endswith(".events") else "sent"
    if event.kind == "fetch" and not event.life.startswith("projector"):
        return ""
    return event.kind


def told(event: Event) -> str:
    """A step in words."""
    return f"Step {event.step}: {event.life} {event.text}".replace("  ", " ")


def first_difference(events: Sequence[Event], other: Sequence[Event]) -> tuple[int, str]:
    """Where a run leaves another one: the number of the event, and what the other does instead."""
    pairs = zip(events, other, strict=False)
    unlike = (n for n, (e, o) in enumerate(pairs) if (e.life, e.text) != (o.life, o.text))
    at = next(unlike, min(len(events), len(other)))
    return at, told(other[at]) if at < len(other) else "nothing more happens"
