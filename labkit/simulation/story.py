"""A run that went wrong, told: one sentence, the reason step by step, a drawing, and its tape.

A story is made of the shrunk run, so whatever still happens in it matters.
"""

from __future__ import annotations

import base64
import html
import re
from bisect import bisect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, structs

from labkit.errors import UsageError
from labkit.experiments.verify.checkers import MEANINGS
from labkit.experiments.verify.verdict import to_report
from labkit.lab import Lab
from labkit.simulation.drawing import drawn
from labkit.simulation.faults import without_one
from labkit.simulation.lives import Event
from labkit.simulation.monitors import FirstBad
from labkit.simulation.reason import Sides, first_difference, reason, sides
from labkit.simulation.saved_tape import SavedTape, command_line
from labkit.simulation.scenario import Scenario
from labkit.simulation.tape import FAULTS, SCHEDULE, Tape
from labkit.simulation.trial import Outcome, Trial

#: A drawing shows so many events at most; the others are counted where they are left out.
DRAWN = 60
#: Names of topics and groups of a run begin so, which says nothing.
OF_RUN = re.compile(r"lab\.\w+\.(?=\w+\.)")
#: Places of a world, in words.
PLACES = {
    " at append ": " when writing to ",
    " at poll ": " when reading ",
    " at commit": " when committing",
    " at advance": " when writing to the store",
}

#: Checkers that look at views, or at who is behind. Nobody decides by a view, so the stories of the
#: others do without projectors.
OF_VIEWS = ("C1", "C3", "C9", "C10", "liveness")


class Story(Struct):
    """A violation that was found, and the smallest run that shows it.

    ``checker`` is the one that is red; ``found`` its violations; ``steps`` how many events the
    story has; ``calm_except`` what in it is not calm.
    """

    scenario: Scenario
    seed: int | str
    values: dict[str, list[int]]
    checker: str
    found: list[str]
    events: list[Event]
    verdicts: dict[str, Any]
    plant: str = ""
    runs: int = 0
    #: Of an exhaustive search: its arguments.
    how: str = ""
    first_bad: FirstBad | None = None
    #: What is not calm in it, and where each of that makes a difference.
    unusual: list[str] = []

    @classmethod
    def of(
        cls,
        scenario: Scenario,
        outcome: Outcome,
        checker: str,
        plant: str = "",
        runs: int = 0,
        how: str = "",
    ) -> Story:
        """The story of an outcome that was recorded, and why this checker is red."""
        verdict = outcome.verdicts.get(checker)
        story = cls(
            scenario,
            outcome.seed,
            outcome.tape.values,
            checker,
            list(verdict.violations) if verdict else [outcome.why],
            told_of(outcome, checker),
            to_report(outcome.verdicts),
            plant,
            runs,
            how,
            outcome.first_bad,
        )
        story.unusual = list(story._differences())
        return story

    # --- in words

    @property
    def sentence(self) -> str:
        """What was promised, and what was found."""
        promise = MEANINGS.get(self.checker, "an audit finds nothing")
        return f"{self.checker} broken: {promise}. Found: {self.found[0]}."

    @property
    def steps(self) -> int:
        """How many steps the story has; what is read and heard in one is one."""
        return steps_of(self.events)

    @property
    def reason(self) -> list[str]:
        """The argument: a few steps, and the one that breaks the promise."""
        return reason(self.events, self.found[0], self.first_bad)

    @property
    def sides(self) -> list[Sides]:
        """What was expected beside what was found, as far as checkers tell both."""
        return sides(line for one in self.verdicts.values() for line in one["violations"])

    @property
    def calm_except(self) -> str:
        """What is not calm in this run."""
        if self.unusual:
            return f"Calm, except {'; '.join(self.unusual)}."
        if any(self.values.get("schedule", ())):
            return "No fault: only the order in which the parts take turns is unusual."
        return "Calm: nothing fails in this run, and everybody takes turns."

    def _differences(self) -> Iterator[str]:
        """Each fault, with what would have been without it; else where the order is unusual."""
        faults = [number for number, e in enumerate(self.events) if e.kind == "fault"]
        if self.how:  # its tape is of turns
            yield from (_step(self.events[number]) for number in faults)
            return
        calmer = [{**self.values, FAULTS: left} for left in without_one(self.values[FAULTS])]
        if not faults and any(self.values[SCHEDULE]):
            calmer = [{**self.values, SCHEDULE: []}]
        for values in calmer:
            trial = Trial(self.scenario, Tape(self.seed, recorded=values), recording=True)
            number, instead = first_difference(self.events, told_of(trial.run(), self.checker))
            if number < len(self.events):
                said = f"{instead[0].lower()}{instead[1:]}"
                yield f"{_step(self.events[number])} (without that, {said})"

    @property
    def replay(self) -> str:
        """The command that plays it again."""
        plant = f" --plant {self.plant}" if self.plant else ""
        return f"labkit simulate{self.how or command_line(self.scenario)} --replay tape.json{plant}"

    def text(self) -> str:
        """All of it, for a terminal or a file."""
        beside = [
            f"{one.what}{of and f', {of}'}: {one.names[0]} {left} | {one.names[1]} {right}"
            for one in self.sides
            for of, left, right in one.lines
        ]
        said = [[self.sentence], self.reason, beside, [self.calm_except, f"Again: {self.replay}"]]
        return "\n\n".join("\n".join(lines) for lines in said if lines)

    # --- to look at

    def svg(self) -> str:
        """Who did what, one row an event."""
        shown: Sequence[Event] = self.events
        left_out = 0
        if len(shown) > DRAWN:
            left_out, shown = len(shown) - DRAWN, shown[-DRAWN:]
        return drawn(shown, left_out, self.first_bad.step if self.first_bad else None)

    def _repr_html_(self) -> str:
        said = "".join(f"<li>{html.escape(line)}</li>" for line in self.reason)
        # JupyterLab takes an SVG out of a notebook that it does not trust, and leaves an image.
        drawing = base64.b64encode(self.svg().encode()).decode()
        return (
            f"<p><b>{html.escape(self.sentence)}</b></p><ul>{said}</ul>{_table(self.sides)}"
            f"<p>{html.escape(self.calm_except)}</p>"
            f'<img src="data:image/svg+xml;base64,{drawing}" alt="who did what, step by step">'
            f"<p><code>{html.escape(self.replay)}</code></p>"
        )

    def at(self, step: int) -> Lab:
        """The run as it stood before a step: a lab to look into (``topic``, ``collection``).

        Raises ``UsageError`` for the story of an exhaustive search.
        """
        return self._again().until(step)

    def branch(self, step: int) -> Lab:
        """The run as it stood before a step, to be gone on with by hand (``handler.step()``,
        ``bus.send()``): its workers are gone, and what they have left open is undone.

        The code is that of now: a bug that is mended is not there any more. Raises as ``at``.
        """
        return self._again().branch(step)

    def _again(self) -> Trial:
        if self.how:
            raise UsageError("a run of an exhaustive search cannot be stopped; see its events")
        return Trial(self.scenario, Tape(self.seed, recorded=self.values))

    # --- to keep

    def save(self, folder: Path) -> None:
        """The verdict, the events, the drawing, the words and the tape, each in a file."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "verdict.json").write_bytes(
            msgspec.json.format(msgspec.json.encode([self.checker, self.found, self.verdicts]))
        )
        (folder / "trace.jsonl").write_bytes(
            b"".join(msgspec.json.encode(event) + b"\n" for event in self.events)
        )
        (folder / "story.svg").write_text(self.svg(), encoding="utf-8")
        (folder / "story.md").write_text(self.text() + "\n", encoding="utf-8")
        (folder / "tape.json").write_bytes(msgspec.json.format(msgspec.json.encode(self.tape())))

    def tape(self) -> SavedTape:
        """What ``--replay`` needs."""
        return SavedTape.made(self.scenario, self.seed, self.values)


def told_of(outcome: Outcome, checker: str) -> list[Event]:
    """What happened, and what lives did, but for those that did nothing but take over; and the
    first wrong step, even if nothing else is seen of it."""
    busy = {event.life for event in outcome.trace if event.life and event.kind != "claim"}
    if checker not in OF_VIEWS:
        busy = {life for life in busy if not life.startswith("projector")}
    found = [
        structs.replace(event, text=_plain(event.text))
        for event in outcome.trace
        if event.life in busy or event.kind == "happening"
    ]
    bad = outcome.first_bad
    if bad is not None and all(event.step != bad.step for event in found):
        at = bisect(found, bad.step, key=lambda event: event.step)
        time = found[at - 1].at if at else 0
        found.insert(at, Event(bad.step, time, "", "wrong", bad.what, ()))
    return found


def steps_of(events: Sequence[Event]) -> int:
    """How many steps they have; what is read and heard in one is one."""
    return len({event.step for event in events})


def _plain(text: str) -> str:
    text = OF_RUN.sub("", text)
    for place, words in PLACES.items():
        text = text.replace(place, words)
    return text


def _step(event: Event) -> str:
    return f"step {event.step}, where {event.life} {event.text}"


def _table(every: Sequence[Sides]) -> str:
    """Two accounts beside each other."""
    rows: list[tuple[str, ...]] = []
    for one in every:
        if not rows or one.names != every[0].names:
            rows.append(("", "", *one.names))
        rows += [(one.what, *line) for line in one.lines]
    cell = '<td style="text-align:left;padding:2px 12px">'
    cells = ("".join(f"{cell}{html.escape(text)}</td>" for text in row) for row in rows)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
