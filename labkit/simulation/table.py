"""What the settings promise, beside what many seeds have shown: in the manner of Hermitage.

A row is a log with a delivery level and a write concern, a column an anomaly. Where a cell shows a
seed, this seed shows the anomaly; where it has a tick, so many seeds (and states) were tried in
vain.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, structs

from labkit.experiments.verify.checkers import MEANINGS
from labkit.ports.broker import DELIVERIES
from labkit.run.settings import DEFAULTS, LOGS, WRITE_CONCERNS
from labkit.simulation.exhaustive import search, small
from labkit.simulation.explore import Explored, explore, told
from labkit.simulation.on_real import signalled, simulated
from labkit.simulation.processors import quiet
from labkit.simulation.proof import Proof, counted
from labkit.simulation.saved_tape import SavedTape, command_line
from labkit.simulation.scenario import Scenario
from labkit.simulation.story import Story

LIVENESS = "liveness"
#: The columns, with what each is about.
ANOMALIES = {
    name: MEANINGS[name] for name in ("C1", "C2", "C3", "C6", "C9", "C10", "C11", LIVENESS)
}
#: Of so many seeds that show an anomaly, the shortest tape is kept: if possible, of those that real
#: servers can play, too.
SHRUNK = 5
#: The small case has so many commands.
SMALL = 2
#: What each delivery level promises, on either log. A write concern takes nothing away: an undone
#: batch is seen, and made again. Below ``exactly_once`` nothing fences the commit of a zombie, and
#: it may stand in the log beside that of its successor; ``at_most_once`` loses commands, on which
#: processes wait. A reader waits for places in the log, whatever is written there.
PROMISED = {
    "exactly_once": frozenset(ANOMALIES),
    "at_least_once": frozenset(["C3", "C10", "C11", LIVENESS]),
    "at_most_once": frozenset(["C3", "C10"]),
}


class Cell(Struct, frozen=True, omit_defaults=True):
    """``seed``: the first that shows it; ``tried``: how many could have shown it, and how many
    ``states`` of a small case. ``tape`` is the shortest one that shows it."""

    promised: bool
    tried: int
    seed: int | None = None
    states: int = 0
    tape: SavedTape | None = None

    @property
    def shown(self) -> bool:
        """Whether anything shows it."""
        return self.seed is not None or self.tape is not None

    @property
    def text(self) -> str:
        """``promised / found``."""
        return self.said(lambda seed: seed)

    def said(self, linked: Callable[[str], str]) -> str:
        """The same, with the seed as a link."""
        found = f"✓ {self.tried:,}" + (f" + {self.states:,}" if self.states else "")
        if self.shown:
            found = f"– {linked('a search' if self.seed is None else f'seed {self.seed}')}"
        return f"{'yes' if self.promised else 'no'} / {found if self.tried else 'not tried'}"


class Row(Struct, frozen=True):
    """Settings, and a cell for each anomaly."""

    log: str
    delivery: str
    write_concern: str
    default: bool
    cells: dict[str, Cell]

    def file(self, name: str) -> str:
        """Where the tape of a cell is kept, beside the page."""
        log = "" if self.log == DEFAULTS.log else f"{self.log}-"
        return f"tapes/{log}{self.delivery}-{self.write_concern}-{name}.json"


class Table(Struct):
    """``seeds`` were tried for each row; ``searched`` is the small case of the states."""

    scenario: str
    seeds: int
    rows: list[Row] = []
    searched: str = ""
    interrupted: bool = False

    @property
    def broken(self) -> list[str]:
        """What is promised, and was found otherwise."""
        return [
            f"{row.delivery} on {row.log} with write concern {row.write_concern}: {name}, "
            f"seed {cell.seed}"
            for row in self.rows
            for name, cell in row.cells.items()
            if cell.promised and cell.shown
        ]

    @property
    def report(self) -> dict[str, Any]:
        """For the JSON."""
        return {**msgspec.to_builtins(self), "anomalies": ANOMALIES, "ok": not self.broken}

    @property
    def markdown(self) -> str:
        """The table, and how to read it."""
        return self._markdown(links=False)

    def _markdown(self, links: bool) -> str:
        heads = ["log", "delivery", "write concern", *ANOMALIES]
        lines = [line(heads), line(["---"] * len(heads))]
        for row in self.rows:
            star = " \\*" if row.default else ""
            cells = []
            for name in ANOMALIES:
                file = row.file(name)
                cells.append(
                    row.cells[name].said(lambda seed, f=file: f"[{seed}]({f})" if links else seed)  # type: ignore[misc]
                )
            lines.append(line([row.log, f"{row.delivery}{star}", row.write_concern, *cells]))
        states = f", + so many states of {self.searched}" if self.searched else ""
        what = "\n".join(f"- {name}: {about}" for name, about in ANOMALIES.items())
        return "\n".join(
            [
                *lines,
                "",
                f"\\* the default. A cell says what is promised / what {self.seeds:,} seeds of "
                f"`{self.scenario}` have shown: ✓ and how many were tried{states}; or – and the "
                "first seed that shows the anomaly. A column is a promise that is broken:",
                "",
                what,
            ]
        )

    def save(self, folder: Path) -> None:
        """The page ``anomalies.md``, and the tapes that it links to."""
        (folder / "tapes").mkdir(parents=True, exist_ok=True)
        for row in self.rows:
            for name, cell in row.cells.items():
                if cell.tape is not None:
                    file = folder / row.file(name)
                    file.write_bytes(msgspec.json.encode(cell.tape) + b"\n")
        search = " --exhaustive" if self.searched else ""
        made = f"labkit simulate {self.scenario} --table --seeds {self.seeds}{search} --folder docs"
        again = f"labkit simulate {self.scenario} --replay docs/tapes/FILE"
        page = PAGE.format(made=made, again=again, table=self._markdown(links=True))
        (folder / "anomalies.md").write_text(page, encoding="utf-8")

    def _repr_markdown_(self) -> str:
        return self.markdown


PAGE = """# Which settings show which anomaly

Made by `{made}`.

A seed links to the shortest tape of those that were shrunk; if possible, to one that real servers
can play, too. `{again}` plays it; with `--on-real` on real Kafka and MongoDB.

{table}
"""


def tabulate(
    scenario: Scenario,
    seeds: Sequence[int],
    *,
    report: Callable[[int, int], None] = lambda done, of: None,
    processes: int | None = None,
    states: int = 0,
    tapes: bool = False,
    logs: Sequence[str] = LOGS,
) -> Table:
    """Try all seeds on each of the ``logs``, with each delivery level and write concern.

    So many ``states`` of a small case are tried, too; with ``tapes``, each anomaly has its tape.
    """
    found = Table(command_line(scenario).strip(), len(seeds))
    settings = list(itertools.product(logs, reversed(DELIVERIES), WRITE_CONCERNS))
    for number, (log, delivery, concern) in enumerate(settings):
        mine = structs.replace(scenario, log=log, delivery=delivery, write_concern=concern)
        tried = explore(
            mine,
            seeds,
            report=lambda done, of, at=number: report(at * of + done, len(settings) * of),  # type: ignore[misc]
            processes=processes,
            tell=False,
        )
        proof = search(small(mine, commands=SMALL), most=states) if states else None
        if proof is not None:
            found.searched = counted(proof.scenario, kill=proof.kills)
        default = settings[number] == (DEFAULTS.log, DEFAULTS.delivery, DEFAULTS.write_concern)
        cells = dict(_cells(mine, tried, proof, tapes))
        found.rows.append(Row(log, delivery, concern, default, cells))
        if tried.interrupted or (proof and proof.interrupted):
            found.interrupted = True
            break
    return found


def _cells(
    scenario: Scenario, found: Explored, proof: Proof | None, tapes: bool
) -> Iterator[tuple[str, Cell]]:
    restless = sum(LIVENESS in names for names in found.red.values())
    states = proof.states if proof and proof.good else 0
    for name in ANOMALIES:
        # Who does not come to rest is not looked at any further.
        tried = found.seeds if name == LIVENESS else found.seeds - restless
        if name == "C11" and not scenario.processes:
            tried = 0
        seeds = sorted(seed for seed, names in found.red.items() if name in names)
        tape = None
        if seeds and tapes:
            with quiet():
                stories = [told(scenario, seed, checker=name) for seed in seeds[:SHRUNK]]
                tape = min(stories, key=_unfit).tape()
        if not seeds and proof and proof.story and proof.story.checker == name:
            tape = proof.story.tape()
        promised = name in PROMISED[scenario.delivery]
        yield name, Cell(promised, tried, seeds[0] if seeds else None, states, tape)


def _unfit(story: Story) -> tuple[bool, int]:
    """Real servers cannot have all of its faults; its steps."""
    _, left_out = signalled(simulated(story.scenario, story.tape(), None)[1])
    return bool(left_out), story.steps


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
