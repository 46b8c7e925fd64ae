"""A run that went wrong, told: one sentence, the reason step by step, a drawing, and its tape.

A story is made of the shrunk run, so whatever still happens in it matters.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, structs

from labkit.errors import UsageError
from labkit.experiments.verify.checkers import MEANINGS
from labkit.experiments.verify.verdict import to_report
from labkit.lab import Lab
from labkit.simulation.drawing import drawn
from labkit.simulation.monitors import FirstBad
from labkit.simulation.scenario import Scenario
from labkit.simulation.tape import VERSION, Tape
from labkit.simulation.trial import Outcome, Trial
from labkit.simulation.world import Event

#: A drawing shows so many events at most; the others are counted where they are left out.
DRAWN = 60
#: The reason names so many steps.
REASONED = 8

#: What each kind of checker promises, as a sentence that a violation contradicts.
PROMISES = {
    "C1": "what was acknowledged is decided, and what was accepted is shown",
    "C2": "a command id has one effect and one answer",
    "C3": "nobody is told what a transaction took back",
    "C6": "the versions of a stream are 1, 2, 3, ... and each is made once",
    "C9": "a view shows what the commands made, no more and no less",
    "C11": "a process that began comes to its end, and compensates once",
    "invariants": "every state is a valid one",
    "liveness": "once nothing goes wrong any more, all come to rest",
}


class SavedTape(Struct, frozen=True, omit_defaults=True):
    """A recorded run, as a file keeps it.

    ``scenario`` is what differs from ``Scenario()``, if others can import its services.
    """

    version: int
    seed: int | str
    values: dict[str, list[int]]
    scenario: dict[str, Any] = {}

    def of(self) -> Scenario:
        """The scenario that it was made in."""
        return Scenario(**self.scenario)


def read_tape(file: Path) -> SavedTape:
    """A tape that a story has saved; raises ``UsageError`` where it is none, or of another time."""
    try:
        tape = msgspec.json.decode(file.read_bytes(), type=SavedTape)
    except OSError as error:
        raise UsageError(f"tape {str(file)!r} cannot be read: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(f"{str(file)!r} is no tape of a story: {error}") from None
    if tape.version != VERSION:
        raise UsageError(
            f"tape {str(file)!r} is of version {tape.version}; this labkit plays {VERSION}"
        )
    return tape


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

    @classmethod
    def of(
        cls, scenario: Scenario, outcome: Outcome, checker: str, plant: str = "", runs: int = 0
    ) -> Story:
        """The story of an outcome that was recorded, and why this checker is red."""
        verdict = outcome.verdicts.get(checker)
        return cls(
            scenario,
            outcome.seed,
            outcome.tape.values,
            checker,
            list(verdict.violations) if verdict else [outcome.why],
            _told(outcome.trace),
            to_report(outcome.verdicts),
            plant,
            runs,
            first_bad=outcome.first_bad,
        )

    # --- in words

    @property
    def sentence(self) -> str:
        """What was promised, and what was found."""
        promise = PROMISES.get(self.checker) or MEANINGS.get(self.checker, "an audit finds nothing")
        return f"{self.checker} broken: {promise}. Found: {self.found[0]}."

    @property
    def steps(self) -> int:
        """How many events the story has."""
        return len(self.events)

    @property
    def reason(self) -> list[str]:
        """The events that are about what was violated, each with its step."""
        ids = set(re.findall(r"'([^']+)'", self.found[0]))
        about = [e for e in self.events if ids & {*e.about} or e.kind in ("fault", "anew")]
        chosen = about or self.events
        if len(chosen) > REASONED:
            chosen = [*chosen[: REASONED // 2], *chosen[-REASONED // 2 :]]
        return [_line(event) for event in chosen]

    @property
    def first_wrong(self) -> str:
        """Where it begins, as far as the monitors have seen it."""
        if self.first_bad is None:
            return "No single step is wrong in itself."
        return f"The first wrong step is {self.first_bad.step}: {self.first_bad.what}."

    @property
    def calm_except(self) -> str:
        """What is not calm in this run."""
        faults = [e for e in self.events if e.kind == "fault"]
        if faults:
            told = "; ".join(f"step {e.step}, where {e.life} {e.text}" for e in faults)
            return f"Calm, except {told}."
        if any(self.values.get("schedule", ())):
            return "No fault: only the order in which the parts take turns is unusual."
        return "Calm: nothing fails in this run, and everybody takes turns."

    @property
    def replay(self) -> str:
        """The command that plays it again."""
        plant = f" --plant {self.plant}" if self.plant else ""
        return f"labkit simulate{self.how} --replay tape.json{plant}"

    def text(self) -> str:
        """All of it, for a terminal or a file."""
        said = [self.sentence, self.first_wrong, "", *self.reason, ""]
        lines = [*said, self.calm_except, f"Again: {self.replay}"]
        return "\n".join(lines)

    # --- to look at

    def svg(self) -> str:
        """Who did what, one row an event."""
        shown: Sequence[Event] = self.events
        left_out = 0
        if len(shown) > DRAWN:
            left_out, shown = len(shown) - DRAWN, shown[-DRAWN:]
        return drawn(shown, left_out, self.first_bad.step if self.first_bad else None)

    def _repr_html_(self) -> str:
        reason = "".join(f"<li>{html.escape(line)}</li>" for line in self.reason)
        return (
            f"<p><b>{html.escape(self.sentence)}</b></p><p>{html.escape(self.first_wrong)}</p><ul>{reason}</ul>"
            f"<p>{html.escape(self.calm_except)}</p>{self.svg()}"
            f"<p><code>{html.escape(self.replay)}</code></p>"
        )

    def at(self, step: int) -> Lab:
        """The run as it stood before a step: a lab to look into (``topic``, ``collection``).

        Raises ``UsageError`` for the story of an exhaustive search.
        """
        if self.how:
            raise UsageError("a run of an exhaustive search cannot be stopped; see its events")
        trial = Trial(self.scenario, Tape(self.seed, recorded=self.values))
        return trial.until(step)

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
        usual = structs.asdict(Scenario())
        differs = {
            name: value
            for name, value in structs.asdict(self.scenario).items()
            if value != usual[name]
        }
        names = [*self.scenario.services, *self.scenario.processes]
        known = all(isinstance(name, str) for name in names)
        return SavedTape(VERSION, self.seed, self.values, differs if known else {})


def _told(trace: Sequence[Event]) -> list[Event]:
    """The events of lives and what happened to them: not what was there before the beginning."""
    return [event for event in trace if event.life or event.kind == "happening"]


def _line(event: Event) -> str:
    who = f"{event.life} " if event.life else ""
    return f"Step {event.step}: {who}{event.text}."
