"""A seeded world: the same number makes the same run, and every planted bug is found and shrunk."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import structs

from labkit.errors import OutcomeUnknown, UsageError
from labkit.lab import Lab
from labkit.run.wiring import Parts
from labkit.run.worker import Worker
from labkit.simulation.climb import Rung, climb
from labkit.simulation.explore import (
    SEARCHES,
    SHORT,
    TOLD,
    Explored,
    explore,
    replay,
    shortest,
    told,
    try_one,
)
from labkit.simulation.faults import draw_faults
from labkit.simulation.fence import fenced
from labkit.simulation.ladder import BUGS, fitting, planted
from labkit.simulation.lives import Happening
from labkit.simulation.processors import quiet
from labkit.simulation.reason import sides
from labkit.simulation.saved_tape import read_tape
from labkit.simulation.scenario import SCENARIOS, Scenario, chosen
from labkit.simulation.shrink import Played, Shrinker, Values
from labkit.simulation.story import Story
from labkit.simulation.tape import FAULTS, READS, SCHEDULE, SCHEMAS, WORKLOAD, Priorities, Tape
from labkit.simulation.trial import Trial
from labkit.simulation.world import Stuck, World
from tests import desk
from tests.test_cli import labkit

ONE, THREE = SCENARIOS["one"], SCENARIOS["three"]

# --- the tape


def test_kinds_of_decisions_do_not_disturb_each_other() -> None:
    one, other = Tape(7), Tape(7)
    first = [one.draw(SCHEDULE, "go", 10) for _ in range(5)]
    again = []
    for _ in range(5):
        other.draw(FAULTS, "one more", 3)
        again.append(other.draw(SCHEDULE, "go", 10))
    assert first == again
    assert first != [Tape(8).draw(SCHEDULE, "go", 10) for _ in range(5)]


def test_a_recorded_tape_is_calm_past_its_end_and_keeps_its_bounds() -> None:
    tape = Tape(1, recorded={FAULTS: [9, 1]})
    assert [tape.draw(FAULTS, "f", 4) for _ in range(3)] == [3, 1, 0]
    assert tape.values == {SCHEDULE: [], FAULTS: [3, 1], WORKLOAD: [], READS: [], SCHEMAS: []}


# --- the world


def test_who_waits_is_woken_or_comes_back_in_time() -> None:
    world = World(Tape(0, recorded={}))
    told: list[tuple[str, bool, float]] = []

    def waits(name: str, seconds: float) -> Callable[[], None]:
        return lambda: told.append((name, world.wait(["news"], seconds), world.time / 1e9))

    def tells() -> None:
        world.clock.sleep(2.0)
        world.wake("news")

    world.spawn("patient", waits("patient", 60.0))
    world.spawn("hasty", waits("hasty", 1.0))
    world.spawn("teller", tells)
    assert world.run(lambda: len(told) == 2, 100.0)
    assert told == [("hasty", False, 1.0), ("patient", True, 2.0)]


def test_a_life_that_is_killed_does_nothing_any_more() -> None:
    world = World(Tape(0, recorded={}))
    done: list[str] = []

    def lives() -> None:
        try:
            world.place("before the effect")
            done.append("effect")
        finally:
            world.place("at its end")
            done.append("finally" if not world.over else "")

    world.spawn("worker", lives, "handler")
    world.strike = lambda life, place: world.kill(life)
    with pytest.raises(Stuck):
        world.run(lambda: False, 10.0)
    assert done == []
    world.end()


# --- one run


def test_the_same_number_makes_the_same_run_under_two_hash_seeds() -> None:
    program = (
        "import sys; from labkit.simulation.explore import *; "
        "from labkit.simulation.scenario import SCENARIOS\n"
        "with quiet():\n"
        "    for seed in range(3):\n"
        "        o = Trial(SCENARIOS['three'], Tape(seed), recording=True).run()\n"
        "        print(o.steps, [(e.step, e.at, e.life, e.text) for e in o.trace])"
    )

    def run(seed: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = run("1")
    assert len(first) > 100_000
    assert first == run("4242")


def test_nothing_goes_wrong_in_many_seeds_and_all_failpoints_are_struck() -> None:
    found = explore(ONE, range(150), processes=1)
    assert (found.seeds, found.red, found.story) == (150, {}, None)
    kinds = {"kill", "pause", "refuse", "lose", "hide", "rewind", "skew", "leave"}
    assert kinds <= set(found.struck)
    assert len(found.missed) < 8  # of 30
    few = explore(ONE, range(3), processes=1)
    assert "kill at handler.offsets" in few.missed
    assert len(few.missed) > 15
    assert not any("process" in cell or "relay" in cell for cell in few.missed)


def test_clients_read_as_fresh_as_they_ask_for() -> None:
    verdicts = [Trial(ONE, Tape(seed)).run().verdicts["C10"] for seed in range(20)]
    assert sum(verdict.checked for verdict in verdicts) > 20
    assert all(verdict.ok for verdict in verdicts)


def test_three_services_with_both_processes_come_to_rest() -> None:
    with quiet():
        assert [try_one(THREE, seed).red for seed in range(12)] == [[]] * 12


# --- another way to choose who goes on


def test_who_has_the_highest_priority_goes_on_until_it_falls_behind() -> None:
    step = itertools.count()
    tape, search = Tape(1), Priorities(100, lambda: next(step))
    able = [Happening(name, 0, lambda: None) for name in "abcd"]
    went = [able[tape.draw(SCHEDULE, "next", 4, search(able))].name for _ in range(110)]
    order = [name for name, _ in itertools.groupby(went)]
    assert len(order) == len(set(order)) == 3  # two fall behind, and come no more
    firsts = {
        able[Tape(seed).draw(SCHEDULE, "next", 4, Priorities(100, lambda: 0)(able))].name
        for seed in range(20)
    }
    assert firsts == {*"abcd"}
    assert Tape(0, recorded={SCHEDULE: [3]}).draw(SCHEDULE, "next", 4, search(able)) == 3


def test_a_bug_is_found_by_priorities_and_its_tape_played_without() -> None:
    found = explore(ONE, range(40), plant="no-dedupe", search="pct", stop_after=1, processes=1)
    assert found.story is not None
    again = replay(ONE, found.story.tape(), plant="no-dedupe")
    assert again.red == {0: found.red[min(found.red)]}
    other = [try_one(scenario, 0) for scenario in (ONE, found.scenario)]
    assert [done.red for done in other] == [[], []]
    assert other[0].steps != other[1].steps


# --- faults of labkit that the simulator has found, by their tapes


@pytest.mark.parametrize(
    ("scenario", "tape"),
    [
        # A handler that takes over turned round and round while its predecessor's offsets were
        # unsettled: no time passed, and a whole processor was busy.
        (ONE, "take_over"),
        # C1 compared a stored state with repeats that came after its checkpoint.
        (ONE, "c1_repeats"),
        # A process that was made by half stayed a member of a group, and kept its partitions.
        (THREE, "half_made"),
        # In the twin a transaction stayed open for ever if its owner ended in order and for good.
        (THREE, "left_open"),
        # On the MongoDB log a partition stood still where somebody had set the offsets back.
        (ONE, "rewound_on_mongodb"),
    ],
)
def test_what_was_found_stays_mended(scenario: Scenario, tape: str) -> None:
    found = replay(scenario, read_tape(Path(__file__).parent / "tapes" / f"{tape}.json"))
    assert found.red == {}
    assert found.steps < 10_000, "nobody turns round and round"


def test_a_part_that_is_not_made_to_its_end_closes_what_it_has_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    services, processes = ["orders", "inventory"], ["fulfilment"]
    with Lab(backend="memory", services=services, processes=processes) as lab:
        topic = lab.topic_name("orders.events")
        source = type(lab.broker).source

        def fails(broker: object, name: str, *rest: object, **more: object) -> object:
            if name == lab.topic_name("inventory.events"):
                raise OutcomeUnknown("no answer")
            return source(broker, name, *rest, **more)  # type: ignore[arg-type]

        with monkeypatch.context() as broken:
            broken.setattr(type(lab.broker), "source", fails)
            with pytest.raises(OutcomeUnknown):
                Parts(lab.of).make(Worker("process", "fulfilment", 0))
        part = Parts(lab.of).make(Worker("process", "fulfilment", 0))
        part.step(0)
        group = lab.of.group("process", "fulfilment.orders")
        assert len(lab.broker.group(topic, group).members) == 1  # type: ignore[attr-defined]
        part.close()


def test_a_service_that_draws_its_own_chance_is_named_with_the_line(tmp_path: Path) -> None:
    rule = "def open_ticket(ticket: Ticket | None, command: OpenTicket) -> Event:\n"
    source = Path(desk.__file__).read_text().replace("from random", "import random\nfrom random")
    unruly = source.replace(rule, f"{rule}    random.random()\n")
    assert unruly != source
    (tmp_path / "unruly_desk.py").write_text(unruly)
    line = unruly[: unruly.index(rule)].count("\n") + 2
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(UsageError, match=rf"unruly_desk.py:{line} calls random.random\(\)"):
            explore(Scenario(services=("unruly_desk:DESK",)), range(3), processes=1)
    finally:
        sys.path.remove(str(tmp_path))


@pytest.mark.parametrize(
    "call",
    [
        lambda: time.sleep(1),
        lambda: uuid.uuid4(),
        lambda: threading.Thread(target=print).start(),
        lambda: socket.socket().connect(("127.0.0.1", 9)),
    ],
)
def test_nothing_comes_from_outside(call: Callable[[], object]) -> None:
    world = World(Tape(0))
    world.spawn("worker", lambda: call() and None)
    with pytest.raises(UsageError, match=r"test_simulation.py:\d+ calls"), fenced(world):
        world.run(lambda: True, 1.0)


# --- bugs, found and told


def found_story(name: str, seeds: int) -> Story:
    scenario = fitting(THREE if BUGS[name].processes else ONE, name)
    with quiet(), planted(name):
        bad = (seed for seed in range(seeds) if try_one(scenario, seed).red)
        return shortest(scenario, [*itertools.islice(bad, TOLD)], name)


@pytest.mark.parametrize(
    "name",
    [
        "no-dedupe",
        "early-offsets",
        "commit-again",
        "version-ignored",
        "read-uncommitted",
        "stale-reads",
        "outbox-forgotten",
        pytest.param("passed-over", marks=pytest.mark.slow),
    ],
)
def test_a_bug_is_found_shrunk_and_told(name: str) -> None:
    story = found_story(name, 100)
    assert story.checker in BUGS[name].red
    assert story.steps <= SHORT
    assert story.sentence.startswith(f"{story.checker} broken: ")
    assert 3 <= len(story.reason) <= 6
    assert all(re.search(r"Step \d+|In the end", line) for line in story.reason)
    assert story.svg().count("<circle") > 5
    assert "<script" not in story._repr_html_()


@pytest.mark.slow
def test_every_bug_of_the_ladder_is_found_and_told_in_few_steps() -> None:
    found = climb(seeds=1_000, starts=3)
    assert [rung.bug for rung in found.rungs] == list(BUGS)
    assert found.missed == [], found.markdown


def test_a_bug_ends_with_its_block() -> None:
    with quiet():
        with planted("no-dedupe"):
            assert try_one(ONE, 0).red == ["C2", "C9"]
        assert try_one(ONE, 0).red == []


def test_a_story_can_be_stopped_saved_and_played_again(tmp_path: Path) -> None:
    story = found_story("no-dedupe", 10)
    story.save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        *("verdict.json", "trace.jsonl", "story.svg", "story.md", "tape.json")
    }
    again = replay(ONE, read_tape(tmp_path / "tape.json"), "no-dedupe")
    assert again.red == {0: [story.checker, "C9"]}
    assert again.story is not None
    assert again.story.events == story.events
    assert replay(ONE, read_tape(tmp_path / "tape.json")).good, "without the bug"
    appended = next(event for event in story.events if event.other == "orders.events")
    with quiet(), planted("no-dedupe"):
        before, after = story.at(appended.step), story.at(story.events[-1].step + 1)
    assert len(before.topic("orders.events")) == 0
    assert len(after.topic("orders.events")) == 2


def test_a_story_argues_compares_and_names_what_is_not_calm() -> None:
    with quiet(), planted("ids-forgotten"):
        story = told(ONE, 7, "ids-forgotten", budget=250)
        (kill,) = (event for event in story.events if event.kind == "fault")
        again = next(event for event in story.events if "c1 refused" in event.text)
        # The handler is dead, and its successor does not know the id any more.
        hand = story.branch(again.step)
        assert [commit.outcome for commit in hand.handler.step(0)] == ["refused"]
    mended = story.branch(again.step)
    assert [commit.outcome for commit in mended.handler.step(0)] == ["repeated"]
    says = " ".join(re.sub(r"\(.*?\)|Step \d+:?", "", line) for line in story.reason)
    for words in ("sends PlaceOrder c1 ", "decides: c1 accepted as version 1 ", "once more sends"):
        assert words in says
    assert "is killed at handler.flushed" in says
    assert "once more decides: c1 refused: order 'o1' exists" in says
    assert says.endswith("accepted as version 1, and now refused: order 'o1' exists.")
    (answers,) = story.sides
    assert answers.names == ("first", "second")
    assert answers.lines == [("", "accepted as version 1", "refused: order 'o1' exists")]
    died = f"step {kill.step}, where handler-orders-0 is killed at handler.flushed"
    instead = f"step {kill.step + 1}: client-0 hears that c1 is accepted as version 1"
    assert story.calm_except.startswith(f"Calm, except {died} (without that, {instead})")
    assert story.replay == "labkit simulate one --replay tape.json --plant ids-forgotten"


def test_only_what_differs_stands_side_by_side() -> None:
    model = "order 'o1': the model says {'cents': 5, 'status': 'paid'}, the view "
    view, none = sides([model + "{'cents': 5, 'status': 'placed'}", model + "None"])
    assert (view.what, view.names) == ("order 'o1'", ("expected", "found"))
    assert view.lines == [("status", "paid", "placed")]
    assert none.lines == [("", "cents 5, status paid", "nothing")]
    assert sides(["readers ignored 1 commits"]) == []


def test_shrinking_keeps_what_is_needed() -> None:
    """A run is bad if its second fault is above 2 and any schedule decision is 1."""

    def play(values: Values) -> Played | None:
        faults, schedule = values[FAULTS], values[SCHEDULE]
        return (1, values) if len(faults) > 1 and faults[1] > 2 and 1 in schedule else None

    values = {
        FAULTS: [4, 9, 3],
        SCHEDULE: [2, 5, 1, 0, 1, 3],
        WORKLOAD: [1, 2, 3],
        READS: [4],
        SCHEMAS: [1],
    }
    best = Shrinker(values, play).run()
    assert best == {FAULTS: [0, 3], SCHEDULE: [1], WORKLOAD: [], READS: [], SCHEMAS: []}


def test_fewer_steps_are_better_than_fewer_decisions() -> None:
    """A schedule of one decision makes a long story, one of two a short one."""

    def play(values: Values) -> Played | None:
        steps = {(1,): 30, (1, 1): 5}.get(tuple(values[SCHEDULE]))
        return (steps, values) if steps else None

    values = {FAULTS: [], SCHEDULE: [1, 1], WORKLOAD: [], READS: [], SCHEMAS: []}
    assert Shrinker(values, play).run()[SCHEDULE] == [1, 1]


def test_a_fault_at_any_effect_is_moved_to_a_failpoint() -> None:
    def play(values: Values) -> Played | None:
        one, _, unnamed, failpoint = (*values[FAULTS], 0, 0, 0, 0)[:4]
        steps = 30 if unnamed else 5 if failpoint == 3 else 0
        return (steps, values) if one and steps else None

    values = {FAULTS: [1, 2, 1, 0, 400], SCHEDULE: [], WORKLOAD: [], READS: [], SCHEMAS: []}
    assert Shrinker(values, play).run()[FAULTS] == [1, 0, 0, 3]


def test_faults_strike_early_mostly_and_late_too() -> None:
    numbers = [f.number for seed in range(2_000) for f in draw_faults(Tape(seed)) if not f.place]
    early, late = (sum(low < n <= high for n in numbers) for low, high in ((0, 10), (200, 600)))
    assert 0.3 < early / len(numbers) < 0.5
    assert 0.1 < late / len(numbers) < 0.3


# --- the command line


def test_the_command_line_tells_the_story(tmp_path: Path) -> None:
    out, kept = tmp_path / "s.json", tmp_path / "story"
    arguments = ("simulate", "one", "--seeds", "3", "--plant", "no-dedupe")
    done = labkit(*arguments, "--json", str(out), "--folder", str(kept))
    assert done.returncode == 1, done.stderr
    assert "C2 broken" in done.stdout
    report = json.loads(out.read_text())
    assert (report["ok"], report["seeds"], report["plant"]) == (False, 3, "no-dedupe")
    tape = ("--replay", str(kept / "tape.json"), "--folder", str(kept))
    again = labkit("simulate", "one", *tape, "--plant", "no-dedupe")
    assert again.returncode == 1
    good = labkit("simulate", "one", "--replay", str(kept / "tape.json"))
    assert good.returncode == 0, good.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["one", "--service", "bank"], "scenario 'one' has its services already"),
        (["--seeds", "many"], "--seeds must be a whole number"),
        (["--plant", "typo"], "--plant must be one of no-dedupe"),
        (["--ladder", "--plant", "no-dedupe"], "plants all bugs; no others"),
        (["--starts", "3"], "--starts is for --ladder"),
        (["twelve"], "must be one of one, three"),
        (["--service", "nowhere:SERVICE"], "nowhere"),
        (["--replay", "/dev/null"], "is no tape of a story"),
        (["one", "--exhaustive", "--search", "pct"], "--search is for seeds"),
        (["--replay", "none.json"], "cannot be read"),
    ],
)
def test_what_cannot_be_simulated_is_one_line(arguments: list[str], says: str) -> None:
    done = labkit("simulate", *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_tape_of_another_time_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('{"version": 99, "seed": 1, "values": {}}')
    with pytest.raises(UsageError, match="is of version 99; this labkit plays 1"):
        read_tape(tmp_path / "t.json")


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (THREE, "services orders, this scenario has orders, inventory, bank"),
        (structs.replace(ONE, commands=9), "commands 20, this scenario has 9"),
    ],
)
def test_a_tape_of_another_scenario_is_refused(other: Scenario, says: str) -> None:
    tape = read_tape(Path(__file__).parent / "tapes" / "take_over.json")
    with pytest.raises(UsageError, match=says):
        replay(other, tape)


def test_names_are_the_same_on_the_command_line() -> None:
    from labkit.cli import simulate

    assert tuple(BUGS) == simulate.BUGS
    assert tuple(SCENARIOS) == simulate.SCENARIOS
    assert SEARCHES == simulate.SEARCHES
    assert {name for name, bug in BUGS.items() if bug.processes} == simulate.BUGS_OF_PROCESSES
    with pytest.raises(UsageError, match="leave out one of the two"):
        chosen("one", ["bank"], [], {})
    assert isinstance(Explored(ONE).report, dict)
    assert Trial(ONE, Tape(1)).sizes.partitions in (1, 2)


def test_the_ladder_says_how_soon_each_bug_is_found() -> None:
    found = climb(2, 2, bugs=("no-dedupe", "no-fence"), workers=1)
    soon, late = found.rungs
    assert (soon.found, soon.checkers, soon.good) == ([1, 1], ["C2", "C2"], True)
    assert (late.found, late.good, found.missed) == ([], False, ["no-fence"])
    assert "| no-dedupe | a stream forgets" in found.markdown
    assert "| 2 of 2 | 1 | C2 (2) | 7 |" in found.markdown
    assert "| 0 of 2 | above 2 |  |  |" in found.markdown
    assert [rung["median"] for rung in found.report["rungs"]] == [1, None]
    assert found.report["ok"] is False


def test_an_interrupted_ladder_says_that_it_is_a_part() -> None:
    def report(done: int, of: int) -> None:
        assert of == 6
        if done == 3:
            raise KeyboardInterrupt

    found = climb(1, 2, bugs=("no-dedupe", "no-fence", "commit-again"), report=report, workers=1)
    assert [(rung.bug, rung.starts) for rung in found.rungs] == [("no-dedupe", 2), ("no-fence", 1)]
    assert found.markdown.endswith("part of the ladder: 3 of 6 starts, of 2 of 3 bugs.")
    assert (found.report["interrupted"], found.report["ok"]) == (True, False)


def test_a_bug_that_is_not_shown_as_it_should_be_fails_the_ladder() -> None:
    rung = Rung("no-dedupe", 1, [1], ["C2"], SHORT)
    assert rung.good
    assert not structs.replace(rung, steps=SHORT + 1).good
    assert not structs.replace(rung, checkers=["C6"]).good
    assert not structs.replace(rung, starts=2).good
    assert structs.replace(rung, starts=2).median == math.inf
