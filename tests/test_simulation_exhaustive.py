"""A small case is searched to its end, and nothing is left out that makes a difference."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from labkit.errors import UsageError
from labkit.experiments.verify.evidence import gather
from labkit.simulation import delays
from labkit.simulation.exhaustive import Search, replay, search, small, workload_of
from labkit.simulation.ladder import BUGS
from labkit.simulation.processors import quiet
from labkit.simulation.proof import Proof
from labkit.simulation.saved_tape import read_tape
from labkit.simulation.scenario import SCENARIOS, Scenario
from labkit.simulation.turns import Played, Turn
from tests.test_cli import labkit

ONE = SCENARIOS["one"]
TINY = small(ONE, commands=1, handlers=1)


def seen(played: Played) -> str:
    """All that the checkers see of an end, without instants: the log, the answers, the views."""
    trial = played.trial
    found = gather(trial.lab, "orders")
    commits = [
        (c.stream, c.id, c.offset, c.outcome, c.first, c.last, c.reason, c.events, c.repeats)
        for c in found.commits
    ]
    told = [(o.id, o.status, o.token, o.answer) for o in trial.history.operations]
    heard = [(h.token, h.answer) for h in trial.history.heard]
    at = {c.id: (c.position, c.command, c.ignored, c.parked) for c in found.checkpoints}
    states = {
        id: {k: v for k, v in document.items() if k != "at"}
        for id, document in found.states.items()
    }
    views = [
        {k: v for k, v in document.items() if k != "trace"}
        for name in sorted(found.views)
        for document in sorted(found.views[name], key=lambda d: str(d["_id"]))
    ]
    traced = [(d["trace"]["command"], d["trace"]["polled"]) for d in found.streams]
    marks = [(c.offset, c.polled) for c in found.commits]
    return repr(
        (commits, told, heard, sorted(at.items()), states, views, found.saved, found.lag)
    ) + (repr([mark in marks for mark in traced]))


def ends(scenario: Scenario, kills: int, *, plain: bool = False) -> tuple[Proof, set[str]]:
    found: set[str] = set()
    searching = Search(Proof(scenario, kills), 1_000_000, plain)
    searching.ended = lambda played: found.add(seen(played))
    with quiet():
        searching.run(lambda states, waiting: None)
    assert searching.found.complete
    return searching.found, found


def a_walk(scenario: Scenario, kills: int, random: Random) -> str:
    """The end of one path by chance, in which nobody is preferred and any place may be deadly."""
    played = Played(scenario, workload_of(scenario), kills, plain=True)
    with closing(played):
        dying = [random.randrange(1, 25) for _ in range(kills)]
        while actors := played.next():
            dies_at = dying.pop() if dying and random.random() < 0.15 else 0
            played.take(Turn(random.randrange(len(actors)), dies_at), actors)
        assert not played.why
        played.outcome()
        return seen(played)


# --- nothing is left out


def test_merged_states_reach_the_same_ends_as_all_paths_one_by_one() -> None:
    merged, those = ends(TINY, 0)
    one_by_one, all_of_them = ends(TINY, 0, plain=True)
    assert one_by_one.ends > 50 * merged.ends
    assert those == all_of_them


def test_what_any_path_with_a_death_ends_in_is_among_the_ends() -> None:
    case = small(ONE, commands=2, handlers=1)
    _, known = ends(case, 1)
    with quiet():
        met = {a_walk(case, 1, Random(seed)) for seed in range(100)}
    assert met <= known
    assert len(met) > len(known) / 3


# --- what is proven


def test_a_small_case_is_searched_to_its_end() -> None:
    proof = search(TINY, kills=1)
    assert proof.complete
    assert proof.good
    assert proof.ends > 1
    assert proof.text.startswith(
        f"All {proof.states:,} reachable states of 1 command, it is sent twice, 1 handler, "
        "1 projector, 1 partition, 1 kill: good; a good end is reachable"
    )


def test_a_search_that_is_cut_says_how_far_it_went() -> None:
    proof = search(TINY, kills=1, most=200)
    assert not proof.complete
    assert proof.depth > 0
    assert f"all that at most {proof.depth} turns out of the calm order reach" in proof.text


@pytest.mark.parametrize(
    ("bug", "commands"),
    [
        ("no-dedupe", 1),
        ("early-offsets", 1),
        ("checkpoint-apart", 2),
        ("read-uncommitted", 2),
        ("passed-over", 3),
    ],
)
def test_a_bug_has_its_counter_example(bug: str, commands: int) -> None:
    proof = search(small(ONE, commands=commands, handlers=1), plant=bug)
    assert proof.story is not None
    assert proof.story.checker in BUGS[bug].red
    assert proof.depth <= 1
    assert not proof.complete
    again = replay(small(ONE, commands=commands, handlers=1), proof.story.tape(), plant=bug)
    assert again.story is not None
    assert again.story.events == proof.story.events
    assert replay(small(ONE, commands=commands, handlers=1), proof.story.tape()).good


def test_a_state_from_which_no_end_is_reached_is_found() -> None:
    searching = Search(Proof(TINY, 0), 1_000_000)
    with quiet():
        searching.run(lambda states, waiting: None)
        assert searching.found.complete
        searching._ends = searching._ends[:1]  # as if one came to no other
        searching._look_for_dead_ends()
    assert searching.found.story is not None
    assert searching.found.story.checker == "liveness"
    assert not searching.found.complete


@pytest.mark.slow
def test_three_commands_two_handlers_and_a_death_are_searched_to_their_end() -> None:
    proof = search(small(ONE))
    assert proof.complete
    assert proof.good
    assert "3 commands, one sent twice, 2 handlers, 1 projector, 1 partition, 1 kill" in proof.text


# --- the command line


# --- all runs with few delays


def test_every_fault_at_every_place_of_the_calm_run_is_tried() -> None:
    found = delays.search(TINY, delays=0, processes=1)
    assert (found.good, found.complete) == (True, True)
    assert found.runs == found.faults + 1 > 60
    assert f"All {found.runs} runs of 1 command" in found.text
    late = delays.search(TINY, delays=1, processes=1, most=2 * found.runs)
    assert (late.good, late.complete) == (True, False)
    assert late.runs > found.runs
    assert "There are more." in late.text


def test_a_lost_answer_is_among_them(tmp_path: Path) -> None:
    found = delays.search(TINY, delays=0, plant="commit-again", processes=1)
    assert found.story is not None
    assert "gets no answer when committing, though all has happened" in found.story.calm_except
    found.story.save(tmp_path)
    again = delays.replay(TINY, read_tape(tmp_path / "tape.json"), plant="commit-again")
    assert again.story is not None
    assert again.story.events == found.story.events
    assert not delays.replay(TINY, read_tape(tmp_path / "tape.json")).red


@pytest.mark.slow
def test_a_zombie_is_among_them() -> None:
    """A handler is paused within a turn, and another one goes on."""
    case = small(ONE, commands=1, handlers=2)
    found = delays.search(case, delays=1, plant="no-fence")
    assert found.story is not None
    assert found.story.checker in BUGS["no-fence"].red
    assert "is paused at" in found.story.calm_except


def test_the_command_line_proves_and_tells(tmp_path: Path) -> None:
    out, kept = tmp_path / "x.json", tmp_path / "story"
    case = ("simulate", "one", "--exhaustive", "--commands", "1", "--handlers", "1", "--kills", "0")
    good = labkit(*case, "--json", str(out))
    assert good.returncode == 0, good.stderr
    assert "a good end is reachable" in good.stdout
    report = json.loads(out.read_text())
    assert (report["ok"], report["complete"], report["kills"]) == (True, True, 0)
    bad = labkit(*case, "--plant", "no-dedupe", "--json", str(out), "--folder", str(kept))
    assert bad.returncode == 1
    assert "C2 broken" in bad.stdout
    assert json.loads(out.read_text())["ok"] is False
    assert read_tape(kept / "tape.json").values["schedule"]
    story = ("--replay", str(kept / "tape.json"), "--folder", str(kept))
    again = labkit(*case, "--plant", "no-dedupe", *story)
    assert again.returncode == 1, again.stderr
    assert "C2 broken" in again.stdout


def test_ctrl_c_keeps_what_was_found(tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    program = (
        "import sys, os; from labkit.simulation import exhaustive as e\n"
        "real = e.Search._follow\n"
        "def follow(self, path):\n"
        "    real(self, path)\n"
        "    if self.found.paths == 5: os.kill(os.getpid(), 2)\n"
        "e.Search._follow = follow\n"
        "from labkit.__main__ import main\n"
        "sys.argv = ['labkit', 'simulate', 'one', '--exhaustive', '--json', sys.argv[1]]\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(out)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "Interrupted: this is what was found by then." in done.stdout
    report = json.loads(out.read_text())
    assert (report["interrupted"], report["complete"], report["paths"]) == (True, False, 5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["three", "--exhaustive"], "an exhaustive search is of one service"),
        (["one", "--kills", "1"], "--kills is for --exhaustive"),
        (["one", "--delays", "1"], "--delays is for --exhaustive"),
        (["one", "--exhaustive", "--delays", "1", "--kills", "1"], "leave out --kills"),
        (["one", "--exhaustive", "--kills", "many"], "--kills must be a whole number"),
        (["one", "--exhaustive", "--plant", "typo"], "--plant must be one of no-dedupe"),
    ],
)
def test_what_cannot_be_searched_is_one_line(arguments: list[str], says: str) -> None:
    done = labkit("simulate", *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_more_than_one_service_is_refused() -> None:
    with pytest.raises(UsageError, match="one service without processes"):
        small(SCENARIOS["three"])
