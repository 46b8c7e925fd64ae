"""``labkit simulate``: a seeded world, where one number decides chance, time and faults."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labkit.cli.measure import Progress, Say, measure, table
from labkit.cli.options import (
    Client,
    JsonFile,
    LabName,
    Log,
    Processes,
    Services,
    bug_of,
    choice,
    chosen,
    option,
    whole,
)
from labkit.errors import UsageError

if TYPE_CHECKING:
    from labkit.simulation.explore import Explored
    from labkit.simulation.on_real import OnReal
    from labkit.simulation.proof import Searched
    from labkit.simulation.saved_tape import SavedTape
    from labkit.simulation.story import Story
    from labkit.simulation.table import Table

#: Copies of ``simulation``'s: the help must not wait for pandas. A test compares them.
SCENARIOS = ("one", "three")
BUGS = (
    "no-dedupe",
    "ids-forgotten",
    "early-offsets",
    "no-fence",
    "commit-again",
    "version-ignored",
    "passed-over",
    "checkpoint-apart",
    "undone-unseen",
    "read-uncommitted",
    "stale-reads",
    "random-ids",
    "outbox-deleted-first",
    "dual-write",
    "outbox-forgotten",
)
#: So many states of each row --table --exhaustive tries.
STATES = 1_000
SEARCHES = ("random", "pct")
#: Those that one service alone cannot show.
BUGS_OF_PROCESSES = {*BUGS[-4:]}


def simulate(
    scenario: Annotated[str | None, chosen(SCENARIOS)] = None,
    services: Services = None,
    processes: Processes = None,
    seeds: Annotated[int, option("Number of seeds.", whole(1, 10_000_000))] = 1_000,
    first: Annotated[int, option("The first seed.", whole(0, 10**12))] = 0,
    commands: Annotated[
        int | None, option("Commands of a trial, at most.", whole(1, 1_000))
    ] = None,
    bug: Annotated[str | None, bug_of(BUGS)] = None,
    search: Annotated[
        str, choice("Who goes on: a random walk, or random priorities that change", SEARCHES)
    ] = SEARCHES[0],
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="All orders of turns and all deaths, no seeds.")
    ] = False,
    handlers: Annotated[int | None, option("Handlers of a search.", whole(1, 10))] = None,
    kills: Annotated[int | None, option("Deaths of a search, at most.", whole(0, 10))] = None,
    delays: Annotated[
        int | None,
        option(
            "Search all runs with so many turns out of order, and a fault anywhere.", whole(0, 4)
        ),
    ] = None,
    replay: Annotated[
        str | None, typer.Option(help="Play again: tape.json of a story, or a seed.")
    ] = None,
    on_real: Annotated[
        bool,
        typer.Option("--on-real", help="With --replay: on real Kafka and MongoDB, too."),
    ] = False,
    table_of: Annotated[
        bool,
        typer.Option("--table", help="A table: settings, and which anomalies seeds have shown."),
    ] = False,
    ladder: Annotated[
        bool,
        typer.Option("--ladder", help="A table: how soon each planted bug is found."),
    ] = False,
    starts: Annotated[
        int | None, option("Starts of --ladder; each tries --seeds at most.", whole(1, 1_000))
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="Where to keep the story of a violation; with --table, the page."),
    ] = None,
    log: Log = "kafka",
    client: Client = "kafka-python",
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """Run services in a seeded world with faults; check each run, and tell the story of a bad one.

    Scenarios: one (a service alone), three (services with the processes between them). With
    --exhaustive a small case of one service is searched to its end; the first command is sent
    twice. That search is of states, or with --delays of runs. With --on-real, real workers are
    killed and paused where the tape says so. Ctrl-C keeps what was found.
    """
    from labkit.simulation import delays as delayed
    from labkit.simulation import exhaustive as all_of
    from labkit.simulation import explore
    from labkit.simulation import scenario as known

    sizes: dict[str, Any] = {"log": log} | ({"commands": commands} if commands else {})
    simple = exhaustive or (bug is not None and not BUGS_OF_PROCESSES & {bug})
    name = scenario or (None if services or processes or not simple else "one")
    of = known.chosen(name, services or (), processes or (), sizes)
    tape = None if replay is None else _tape(replay, of, bug)
    searched = {"handlers": handlers, "kills": kills, "delays": delays}
    for option_name, given in searched.items():
        if given is not None and not exhaustive:
            raise UsageError(f"--{option_name} is for --exhaustive; leave it out, or add that")
    if search != SEARCHES[0] and (exhaustive or table_of or ladder or replay is not None):
        raise UsageError("--search is for seeds; leave it out")

    if starts is not None and not ladder:
        raise UsageError("--starts is for --ladder; leave it out, or add that")
    if ladder:
        others = (scenario, services, processes, first, commands, bug, replay, folder)
        if any(others) or exhaustive or table_of or on_real:
            raise UsageError("--ladder takes --seeds and --starts, and plants all bugs; no others")
        climbed(seeds, starts or 20, json_file)
        return
    if delays is not None and kills is not None:
        raise UsageError("--delays has at most one fault in each run; leave out --kills")

    if table_of:
        if bug is not None or replay is not None:
            raise UsageError("--table tries settings as they are; leave out --plant and --replay")
        if log != "kafka":
            raise UsageError("--table tries both logs; leave out --log")
        states = STATES if exhaustive else 0
        tabulated(of, range(first, first + seeds), json_file, folder, states)
        return

    if on_real:
        if tape is None or exhaustive:
            raise UsageError("--on-real plays one tape or seed: add --replay, without --exhaustive")
        measure(partial(play_on_real, of, tape, bug, lab, client), json_file, _tell_both)
        return

    def run(progress: Progress, say: Say) -> explore.Explored:
        if tape is not None:
            return explore.replay(of, tape, bug)
        return explore.explore(
            of,
            range(first, first + seeds),
            plant=bug,
            search=search,
            report=lambda done, all: progress("seeds", done, all),
        )

    def show(found: explore.Explored) -> str | None:
        rows = [
            [place, *(f"{found.struck.get(k, {}).get(place, 0):,}" for k in found.struck)]
            for place in sorted({p for places in found.struck.values() for p in places})
        ]
        if rows:
            table("What was struck, and how often", ("place", *found.struck), rows, left=1)
        _tell(found, folder)
        return None if found.good else f"{len(found.red)} of {found.seeds:,} seeds went wrong"

    def prove(progress: Progress, say: Say) -> Searched | explore.Explored:
        case = all_of.small(of, commands=commands or 3, handlers=handlers or 2)
        if delays is not None and tape is not None:
            return delayed.replay(case, tape, delays=delays, plant=bug)
        if delays is not None:
            return delayed.search(
                case,
                delays=delays,
                plant=bug,
                report=lambda done, all: progress("faults", done, all),
            )
        deaths = 1 if kills is None else kills
        if tape is not None:
            return all_of.replay(case, tape, kills=deaths, plant=bug)
        return all_of.search(
            case,
            kills=deaths,
            plant=bug,
            report=lambda met, waiting: progress("states", met, met + waiting),
        )

    def proven(found: Searched | explore.Explored) -> str | None:
        _tell(found, folder)
        return None if found.good else "a reachable state is bad"

    if exhaustive:
        measure(prove, json_file, proven)
    else:
        measure(run, json_file, show)


def _tape(replay: str, scenario: Any, bug: str | None) -> SavedTape:
    """A file, or the tape of a seed."""
    from labkit.simulation.explore import tape_of
    from labkit.simulation.saved_tape import read_tape

    if replay.isdecimal() and not Path(replay).exists():
        return tape_of(scenario, int(replay), bug)
    return read_tape(Path(replay))


def play_on_real(
    scenario: Any,
    tape: SavedTape,
    bug: str | None,
    lab: str,
    client: str,
    progress: Progress,
    say: Say,
) -> OnReal:
    """In the simulator and on the servers ``lab``."""
    from labkit.simulation.on_real import on_real

    return on_real(scenario, tape, bug, lab=lab, client=client, report=say)


def _tell_both(found: OnReal) -> str | None:
    print(found.text)
    if found.missed:
        return f"on real servers {len(found.missed)} of {len(found.faults)} faults never struck"
    return None if found.good else f"{', '.join(found.red)} turned red on real servers"


def _tell(found: Explored | Searched, folder: Path | None) -> None:
    """Print what was found, and keep the story."""
    print(found.text)
    if found.story is not None:
        where = folder or Path(f"simulated-{found.story.seed}")
        _kept(found.story, where)
        print(f"The story is kept in {where}")
    if found.interrupted:
        print("Interrupted: this is what was found by then.")


def _kept(found: Story | Table, where: Path) -> None:
    try:
        found.save(where)
    except OSError as error:
        raise UsageError(f"--folder {str(where)!r} cannot be written: {error.strerror}") from None


def climbed(seeds: int, starts: int, json_file: Path | None) -> None:
    """How soon each planted bug is found, as Markdown."""
    from labkit.simulation.climb import Ladder, climb

    def run(progress: Progress, say: Say) -> Ladder:
        return climb(seeds, starts, report=lambda done, all: progress("starts", done, all))

    def show(found: Ladder) -> str | None:
        print(found.markdown)
        if found.interrupted:
            print("Interrupted: this is what was found by then.")
        return f"not found as it should be: {', '.join(found.missed)}" if found.missed else None

    measure(run, json_file, show)


def tabulated(
    scenario: Any, seeds: range, json_file: Path | None, folder: Path | None, states: int
) -> None:
    """What settings promise, beside what seeds have shown, as Markdown."""
    from labkit.simulation.table import tabulate

    def run(progress: Progress, say: Say) -> Table:
        return tabulate(
            scenario,
            seeds,
            report=lambda done, all: progress("seeds", done, all),
            states=states,
            tapes=folder is not None,
        )

    def show(found: Table) -> str | None:
        print(found.markdown)
        if found.interrupted:
            print("Interrupted: this is what was found by then; no page is kept.")
        elif folder is not None:
            _kept(found, folder)
        return f"not as promised: {'; '.join(found.broken)}" if found.broken else None

    measure(run, json_file, show)
