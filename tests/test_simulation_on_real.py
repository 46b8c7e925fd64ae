"""The same story on real Kafka and MongoDB; the page of the table, made again on a small scale."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest
from msgspec import structs

from labkit import stack
from labkit.errors import UsageError
from labkit.experiments.verify.history import History
from labkit.experiments.verify.planted_bugs import SIMULATED, plant_from_environment
from labkit.experiments.verify.planting import planted_here
from labkit.lab import Lab
from labkit.ports.broker import DELIVERIES
from labkit.run.settings import LOGS, WRITE_CONCERNS
from labkit.simulation.explore import replay, tape_of
from labkit.simulation.ladder import BUGS, in_worker
from labkit.simulation.on_real import OnReal, on_real, signalled, simulated
from labkit.simulation.processors import quiet
from labkit.simulation.real_run import Played
from labkit.simulation.saved_tape import SavedTape, read_tape
from labkit.simulation.scenario import SCENARIOS
from labkit.simulation.table import ANOMALIES, tabulate
from labkit.simulation.tape import FAULTS, WORKLOAD, Tape
from labkit.write.stream_state import StreamState
from tests.test_cli import labkit_here, refused

ONE = SCENARIOS["one"]
TAPES = Path(__file__).parent / "tapes"
DOCS = Path(__file__).parents[1] / "docs"
#: A handler dies between its offsets and its commit; another one is paused for too long.
KILLED = TAPES / "killed_before_its_commit.json"
PAUSED = DOCS / "tapes" / "at_least_once-majority-C6.json"


def tape(faults: list[int]) -> SavedTape:
    """One command, and these faults."""
    return SavedTape.made(ONE, 1, {FAULTS: faults, WORKLOAD: [0, 1, 0, 0, 0, 1]})


# --- what real servers can be made to do


def test_kills_pauses_and_leaves_become_signals_and_the_rest_is_named() -> None:
    kill, lose, pause = [1, 0, 0, 4, 0], [1, 3, 0, 0, 0], [1, 1, 0, 10, 0]
    outcome, fallen = simulated(ONE, tape(kill + lose + pause), None)
    assert [fault.kind for fault in outcome.struck] == [each.kind for each in fallen]
    faults, left_out = signalled(fallen)
    assert [(f.kind, f.role, f.service, f.place, f.passes) for f in faults] == [
        ("kill", "handler", "orders", "handler.offsets", 0),
        ("pause", "projector", "orders", "projector.applied", 0),
    ]
    assert len(left_out) == 1
    assert "gets no answer" in left_out[0]


def test_a_second_fault_of_a_role_is_named_and_passes_are_counted_by_life() -> None:
    first, second = [1, 0, 0, 1, 0], [1, 0, 0, 1, 1]  # at the first pass, then at the second
    _, fallen = simulated(ONE, tape(first + second), None)
    assert [each.passes for each in fallen] == [0, 0], "the second strikes a new life"
    faults, left_out = signalled(fallen)
    assert len(faults) == 1
    assert left_out[0].endswith("(a second fault of a handler of orders)")


def test_all_workers_of_a_role_share_the_fault(tmp_path: Path) -> None:
    saved = read_tape(PAUSED)
    _, fallen = simulated(saved.fitting(ONE), saved, None)
    with Lab(backend="memory", services=["orders"]) as lab:
        played = Played(lab, ONE, Tape(1, recorded=saved.values), signalled(fallen)[0], tmp_path)
    marks = {each.worker.name: (each.fault, each.mark) for each in played.faulty.extras}
    paused = ("SIGSTOP at handler.polled", "fault-0")
    assert marks["handler-orders-0"] == marks["handler-orders-1"] == paused
    assert marks["projector-orders-0"] == ("joins and leaves", "projector-orders-0")
    assert played.came_of(0).endswith("is paused at handler.polled: it did NOT strike")


def test_bugs_of_twins_cannot_be_planted_on_real_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    twins = {name for name, bug in BUGS.items() if bug.in_worker is None}
    assert "read-uncommitted" in twins
    for name in twins:
        with pytest.raises(UsageError, match=f"--plant {name} changes a twin.* one of no-dedupe"):
            on_real(ONE, tape([]), name)
    for name, bug in BUGS.items():
        if name not in twins:
            assert in_worker(name) is (bug.real or bug.plant)
    take = StreamState.take
    monkeypatch.setenv("LABKIT_PLANT", f"{SIMULATED}no-dedupe")
    with planted_here(plant_from_environment):
        assert StreamState.take is not take
    assert StreamState.take is take


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["one", "--on-real"], "--on-real plays one tape or seed: add --replay"),
        (["one", "--replay", "1", "--on-real", "--plant", "undone-unseen"], "changes a twin"),
        (["three", "--replay", str(PAUSED)], "the tape is of a run with"),
    ],
)
def test_what_cannot_be_played_is_one_line(arguments: list[str], says: str) -> None:
    refused(labkit_here("simulate", *arguments), says)


def test_a_seed_can_be_replayed() -> None:
    weak = structs.replace(ONE, delivery="at_most_once")
    with quiet():
        rows = tabulate(ONE, range(9), processes=1, logs=["kafka"]).rows
        bad = min(seed for row in rows for seed in seeds(row.cells))
    short = tape_of(weak, bad)
    assert short.settings == {"delivery": "at_most_once"}
    assert sum(map(len, short.values.values())) < 30, "shrunk"
    assert replay(ONE, short).red == {0: ["C1"]}
    assert tape_of(ONE, bad).settings == {}


def test_a_command_that_is_lost_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each such run took a second of real time, in which nothing can come any more."""
    looks: list[float] = []
    hear = History.hear
    monkeypatch.setattr(History, "hear", lambda self, t=0.0: looks.append(t) or hear(self, t))
    assert replay(ONE, read_tape(KILLED)).red == {0: ["C1"]}
    assert len(looks) < 500


def seeds(cells: dict[str, object]) -> list[int]:
    found = (getattr(cell, "seed", None) for cell in cells.values())
    return [seed for seed in found if seed is not None]


# --- on real servers


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.parametrize(
    ("tape", "settings", "red"),
    [
        (KILLED, {"delivery": "at_most_once"}, ["C1"]),
        (PAUSED, {"delivery": "at_least_once"}, ["C1", "C6"]),
        (PAUSED, {}, []),
    ],
)
def test_a_cell_of_the_table_is_the_same_on_real_servers(
    servers: stack.Servers, tape: Path, settings: dict[str, str], red: list[str]
) -> None:
    saved = structs.replace(read_tape(tape), settings=settings)
    found: OnReal = on_real(ONE, saved)
    assert (found.simulated, found.red) == (red, red), found.text
    assert found.good is not bool(red)
    assert (len(found.faults), found.missed) == (1, [])
    assert found.left_out == []
    assert set(found.verdicts) >= {"C1", "C2", "C3", "C6", "C9", "C10"}


@pytest.mark.servers
@pytest.mark.slow
def test_a_planted_bug_turns_the_same_checkers_red_on_real_servers(servers: stack.Servers) -> None:
    found = on_real(ONE, tape_of(ONE, 0, "no-dedupe"), "no-dedupe")
    assert found.simulated == found.red == ["C2", "C9"], found.text


# --- the page of the docs


def page() -> dict[tuple[str, str, str, str], str]:
    """The cells of ``docs/anomalies.md``."""
    lines = (DOCS / "anomalies.md").read_text().splitlines()
    head, _, *rows = [
        [part.strip() for part in line.strip("|").split("|")] for line in lines if line[:1] == "|"
    ]
    return {
        (row[0], row[1].removesuffix(" \\*"), row[2], name): text
        for row in rows
        for name, text in zip(head[3:], row[3:], strict=True)
    }


def test_each_dash_of_the_page_links_to_a_tape_that_shows_it() -> None:
    cells = page()
    assert set(cells) == set(product(LOGS, DELIVERIES, WRITE_CONCERNS, ANOMALIES))
    links = {cell: re.search(r"\]\((.*)\)", text) for cell, text in cells.items()}
    shown = {cell: link[1] for cell, link in links.items() if link}
    assert all((log, "at_most_once", "majority", "C1") in shown for log in LOGS)
    assert ("kafka", "at_least_once", "majority", "C6") in shown
    for (log, delivery, concern, name), link in shown.items():
        saved = read_tape(DOCS / link)
        scenario = saved.fitting(ONE)
        mine = (scenario.log, scenario.delivery, scenario.write_concern)
        assert mine == (log, delivery, concern)
        found = replay(ONE, saved)
        assert name in found.red[0], (*mine, name)
        assert found.story is not None
        assert found.story.steps <= 40
    assert {DOCS / link for link in shown.values()} == set((DOCS / "tapes").iterdir())


def test_the_page_is_the_same_made_again_on_a_small_scale() -> None:
    few = 12
    cells = page()
    for row in tabulate(ONE, range(few), processes=1).rows:
        for name, cell in row.cells.items():
            text = cells[row.log, row.delivery, row.write_concern, name]
            assert text.startswith("yes /" if cell.promised else "no /")
            seed = re.search(r"seed (\d+)", text)
            known = int(seed[1]) if seed and int(seed[1]) < few else None
            assert cell.seed == known, row.file(name)
            assert ("not tried" in text) is (cell.tried == 0)


def test_a_page_is_kept_with_its_tapes_and_its_states(tmp_path: Path) -> None:
    made = tabulate(ONE, range(8, 9), processes=1, states=20, tapes=True)
    made.save(tmp_path)
    text = (tmp_path / "anomalies.md").read_text()
    assert "`labkit simulate one --table --seeds 1 --exhaustive --folder docs`" in text
    assert re.search(r"\| kafka \| exactly_once \\\* \| majority \| yes / ✓ 1 \+ 2\d \|", text)
    assert "a search](tapes/at_most_once-majority-C1.json)" in text or "seed 8](tapes/" in text
    assert "+ so many states of 2 commands" in text
    assert (tmp_path / "tapes" / "at_most_once-majority-C1.json").exists()
