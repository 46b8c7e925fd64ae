"""What may go wrong in a seeded world beyond deaths: poison, and who takes it out again."""

from __future__ import annotations

import re
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from msgspec import structs

from labkit.messages import Answer
from labkit.ports.failpoints import ALL, Failpoint
from labkit.ports.store import Checkpoint, Writes
from labkit.simulation.clients import Keeper
from labkit.simulation.drawing import drawn
from labkit.simulation.explore import replay
from labkit.simulation.faults import KINDS
from labkit.simulation.ladder import fitting, planted
from labkit.simulation.monitors import FirstBad, Monitors
from labkit.simulation.processors import quiet
from labkit.simulation.saved_tape import read_tape
from labkit.simulation.scenario import SCENARIOS, Scenario
from labkit.simulation.stores import SimulatedStore
from labkit.simulation.story import Story
from labkit.simulation.table import PROMISED, tabulate
from labkit.simulation.tape import FAULTS, WORKLOAD, Tape
from labkit.simulation.trial import Outcome, Trial
from labkit.simulation.world import World
from tests.test_cli import labkit, labkit_here, refused

ONE, THREE = SCENARIOS["one"], SCENARIOS["three"]
TWO_COMMANDS = Scenario(commands=2, clients=1, handlers=1, projectors=1, partitions=1)


def trial(scenario: Scenario, seed: int, **recorded: list[int]) -> tuple[Trial, Outcome]:
    """One trial, by its seed or by decisions."""
    with quiet():
        made = Trial(scenario, Tape(seed, recorded or None), recording=bool(recorded))
        return made, made.run()


# --- poison

#: Two commands to one stream, and poison before the first: bytes of another schema.
POISONED = {WORKLOAD: [0, 1, 0, 0, 1, 0, 0, 1, 1, 0]}


def test_poison_parks_a_stream_in_use_until_somebody_drops_it() -> None:
    made, outcome = trial(TWO_COMMANDS, 1, **POISONED)
    assert outcome.red == []
    heard = [(h.token.offset, h.answer.outcome) for h in made.history.heard]
    assert heard[:2] == [(0, "parked"), (1, "parked")]
    assert {(0, "dropped"), (1, "accepted")} <= set(heard)
    assert len(made.history.raw) == 2  # the bytes, and their release


def test_without_a_keeper_it_does_not_come_to_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Keeper, "release", lambda self: None)
    _, outcome = trial(TWO_COMMANDS, 1, **POISONED)
    assert (outcome.red, outcome.why) == (["liveness"], "no liveness: keeper")


@pytest.mark.parametrize(("scenario", "seeds"), [(ONE, 60), (THREE, 12)])
def test_poison_is_common_and_breaks_nothing(scenario: Scenario, seeds: int) -> None:
    told = Counter[str]()
    for seed in range(seeds):
        made, outcome = trial(scenario, seed)
        assert outcome.red == [], seed
        told.update(heard.answer.outcome for heard in made.history.heard)
        told["raw"] += bool(made.history.raw)
    assert told["raw"] > seeds / 10
    assert told["dropped"] > seeds / 20
    assert told["parked"] > told["dropped"]


# --- workers that come for a while


def test_a_worker_joins_its_group_and_leaves_again() -> None:
    fault = [1, KINDS.index("join"), 0, ALL.index(Failpoint.HANDLER_POLLED), 0]
    made, outcome = trial(ONE, 3, **{FAULTS: fault, WORKLOAD: [0, 0, 0, 1, 0, *[1, 0, 1] * 8]})
    assert outcome.red == []
    assert [fault.kind for fault in outcome.struck] == ["join"]
    assert made.workforce.guests == made.workforce.gone == {"handler-orders-1"}
    did = [event for event in outcome.trace if event.life == "handler-orders-1"]
    assert any(event.kind == "claim" for event in did)
    group = made.lab.of.group("handler", "orders")
    assert len(made.broker.group(made.lab.topic_name("orders.commands"), group).members) == 1


# --- an election: see also contracts/test_elections.py


@pytest.mark.parametrize("later", ["a majority write", "time"])
def test_an_election_undoes_nothing_that_others_have(later: str) -> None:
    world = World(Tape(0, {}))
    store = SimulatedStore(world)
    store.weak().advance("p", [], Writes(inserts={"docs": [{"_id": "there"}]}))
    if later == "time":
        world.clock.sleep(1.0)
    else:
        store.claim("p", "reader:0")
    assert store.count("docs") == len(store.find("docs", {})) == 1
    store.elect()
    assert store.count("docs") == 1


def seeds_that_are_red(scenario: Scenario, seeds: int, plant: str | None = None) -> dict[int, str]:
    with quiet(), planted(plant):
        tried = ((seed, Trial(scenario, Tape(seed)).run().red) for seed in range(seeds))
        return {seed: " ".join(red) for seed, red in tried if red}


def test_an_undone_batch_is_seen_and_made_again_with_either_write_concern() -> None:
    """A projector that does not look loses it for good, where it was not the majority's."""
    weak = structs.replace(ONE, write_concern="1")
    assert seeds_that_are_red(weak, 40) == {}
    red = seeds_that_are_red(weak, 40, "undone-unseen")
    assert red
    assert set(red.values()) == {"C1 C9"}
    assert seeds_that_are_red(ONE, max(red) + 1, "undone-unseen") == {}


def test_who_is_idle_sees_that_its_last_batch_was_undone() -> None:
    """A projector compared the epoch of its checkpoint alone, and waited for the next event."""
    scenario = structs.replace(ONE, write_concern="1", commands=4)
    found = replay(scenario, read_tape(Path(__file__).parent / "tapes" / "undone.json"))
    assert found.red == {}
    assert found.story is None


# --- the first wrong step


def test_a_good_run_has_no_wrong_step() -> None:
    for seed in range(40):
        _, outcome = trial(ONE, seed)
        assert outcome.first_bad is None, seed


@pytest.mark.parametrize(
    ("plant", "says"),
    [
        ("no-dedupe", "takes effect a second time|was answered .* and now"),
        ("undone-unseen", "stood at .* and is moved on from"),
        ("no-fence", "is committed as version .* which follows"),
    ],
)
def test_the_first_wrong_step_is_told_and_ringed(plant: str, says: str) -> None:
    scenario = fitting(ONE, plant)
    with quiet(), planted(plant):
        bad = next(seed for seed in range(200) if Trial(scenario, Tape(seed)).run().red)
        outcome = Trial(scenario, Tape(bad), recording=True).run()
    assert outcome.first_bad is not None
    assert outcome.first_bad.step < outcome.steps
    assert re.search(says, outcome.first_bad.what)
    story = Story.of(scenario, outcome, outcome.red[0], plant)
    assert f"Step {outcome.first_bad.step} breaks the promise: " in story.text()
    step = outcome.first_bad.step
    near = [event for event in story.events if abs(event.step - step) < 20]
    assert drawn(near, 0, step).count('class="wrong"') == 1
    assert 'class="wrong"' not in drawn(near)


def test_monitors_see_what_goes_back() -> None:
    told = Monitors(lambda: 9)
    told.moved("g", {0: 5}, {0: 5, 1: 1})
    told.answered("c1", Answer("parked", 0))
    told.answered("c1", Answer("accepted", 1))
    told.answered("c1", Answer("accepted", 1))
    before, after = Checkpoint("v:0", 2, 4), Checkpoint("v:0", 2, 7)
    told.advanced({"v:0": before}, [(before, after)])
    assert told.first_bad is None
    told.advanced({"v:0": after}, [(after, before)])
    told.moved("g", {0: 5}, {0: 4})  # later: the first one counts
    assert told.first_bad == FirstBad(
        9, "checkpoint 'v:0' goes back from 7 in epoch 2 to 4 in epoch 2"
    )
    again = Monitors(lambda: 1)
    again.moved("g", {0: 5}, {0: 4})
    assert again.first_bad is not None
    assert again.first_bad.what == "the offset of g in partition 0 goes back from 5 to 4"


# --- the table


def test_the_table_says_what_is_promised_beside_what_was_found() -> None:
    made = tabulate(ONE, range(12), processes=1)
    rows = {(row.log, row.delivery, row.write_concern): row for row in made.rows}
    assert [key for key, row in rows.items() if row.default] == [
        ("kafka", "exactly_once", "majority")
    ]
    assert len(rows) == 12
    assert made.broken == []
    for log, concern in product(("mongodb", "kafka"), ("majority", "1")):
        exact = rows[log, "exactly_once", concern].cells
        assert {cell.text for name, cell in exact.items() if name != "C11"} == {"yes / ✓ 12"}
        assert exact["C11"].text == "yes / not tried"
        lost = rows[log, "at_most_once", concern].cells["C1"]
        assert (lost.promised, lost.text) == (False, f"no / – seed {lost.seed}")
    assert lost.seed is not None
    weak = structs.replace(ONE, delivery="at_most_once", write_concern="1")
    assert "C1" in trial(weak, lost.seed)[1].red, "the seed shows it"
    assert made.markdown.count("\n| kafka | exactly_once \\* | majority |") == 1
    assert made.report["ok"]


def test_a_promise_that_is_broken_fails_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROMISED, "at_most_once", frozenset(["C1"]))
    made = tabulate(ONE, range(9), processes=1, logs=["mongodb"])
    assert [line.partition(",")[0] for line in made.broken] == [
        f"at_most_once on mongodb with write concern {concern}: C1" for concern in ("majority", "1")
    ]


def test_the_table_takes_no_bug() -> None:
    done = labkit("simulate", "one", "--table", "--plant", "no-dedupe")
    assert done.returncode == 2
    assert "leave out --plant and --replay" in done.stderr
    refused(labkit_here("simulate", "one", "--table", "--log", "mongodb"), "leave out --log")
