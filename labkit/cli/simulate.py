"""``labkit simulate``: a seeded world, where one number decides chance, time and faults."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labkit.cli.measure import Progress, Say, measure, table
from labkit.cli.options import JsonFile, Processes, Services, bug_of, chosen, option, whole
from labkit.errors import UsageError

if TYPE_CHECKING:
    from labkit.simulation.exhaustive import Searched
    from labkit.simulation.explore import Explored

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
        Path | None, typer.Option(help="Play a tape again: tape.json of a story.")
    ] = None,
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
        Path | None, typer.Option(help="Where to keep the story of a violation.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Run services in a seeded world with faults; check each run, and tell the story of a bad one.

    Scenarios: one (a service alone), three (services with the processes between them). With
    --exhaustive a small case of one service is searched to its end; the first command is sent
    twice. That search is of states, or with --delays of runs. Ctrl-C keeps what was found.
    """
    from labkit.simulation import delays as delayed
    from labkit.simulation import exhaustive as all_of
    from labkit.simulation import explore
    from labkit.simulation import scenario as known
    from labkit.simulation.saved_tape import read_tape

    sizes: dict[str, Any] = {"commands": commands} if commands else {}
    simple = exhaustive or (bug is not None and not BUGS_OF_PROCESSES & {bug})
    name = scenario or (None if services or processes or not simple else "one")
    of = known.chosen(name, services or (), processes or (), sizes)
    searched = {"handlers": handlers, "kills": kills, "delays": delays}
    for option_name, given in searched.items():
        if given is not None and not exhaustive:
            raise UsageError(f"--{option_name} is for --exhaustive; leave it out, or add that")

    if starts is not None and not ladder:
        raise UsageError("--starts is for --ladder; leave it out, or add that")
    if ladder:
        if scenario or services or processes or bug or replay or exhaustive or table_of:
            raise UsageError("--ladder takes --seeds and --starts, and plants all bugs; no others")
        climbed(seeds, starts or 20, json_file)
        return
    if delays is not None and kills is not None:
        raise UsageError("--delays has at most one fault in each run; leave out --kills")

    if table_of:
        if bug is not None or replay is not None:
            raise UsageError("--table tries settings as they are; leave out --plant and --replay")
        tabulated(of, range(first, first + seeds), json_file)
        return

    def run(progress: Progress, say: Say) -> explore.Explored:
        if replay is not None:
            return explore.replay(of, read_tape(replay), bug)
        return explore.explore(
            of,
            range(first, first + seeds),
            plant=bug,
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

    def search(progress: Progress, say: Say) -> all_of.Searched | explore.Explored:
        case = all_of.small(of, commands=commands or 3, handlers=handlers or 2)
        if delays is not None and replay is not None:
            return delayed.replay(case, read_tape(replay), delays=delays, plant=bug)
        if delays is not None:
            return delayed.search(
                case,
                delays=delays,
                plant=bug,
                report=lambda done, all: progress("faults", done, all),
            )
        deaths = 1 if kills is None else kills
        if replay is not None:
            return all_of.replay(case, read_tape(replay), kills=deaths, plant=bug)
        return all_of.search(
            case,
            kills=deaths,
            plant=bug,
            report=lambda met, waiting: progress("states", met, met + waiting),
        )

    def prove(found: all_of.Searched | explore.Explored) -> str | None:
        _tell(found, folder)
        return None if found.good else "a reachable state is bad"

    if exhaustive:
        measure(search, json_file, prove)
    else:
        measure(run, json_file, show)


def _tell(found: Explored | Searched, folder: Path | None) -> None:
    """Print what was found, and keep the story."""
    print(found.text)
    if found.story is not None:
        where = folder or Path(f"simulated-{found.story.seed}")
        try:
            found.story.save(where)
        except OSError as error:
            raise UsageError(
                f"--folder {str(where)!r} cannot be written: {error.strerror}"
            ) from None
        print(f"The story is kept in {where}")
    if found.interrupted:
        print("Interrupted: this is what was found by then.")


def climbed(seeds: int, starts: int, json_file: Path | None) -> None:
    """How soon each planted bug is found, as Markdown."""
    from labkit.simulation.climb import Ladder, climb

    def run(progress: Progress, say: Say) -> Ladder:
        return climb(seeds, starts, report=lambda done, all: progress("bugs", done, all))

    def show(found: Ladder) -> str | None:
        print(found.markdown)
        return f"not found as it should be: {', '.join(found.missed)}" if found.missed else None

    measure(run, json_file, show)


def tabulated(scenario: Any, seeds: range, json_file: Path | None) -> None:
    """What settings promise, beside what seeds have shown, as Markdown."""
    from labkit.simulation.table import Table, tabulate

    def run(progress: Progress, say: Say) -> Table:
        return tabulate(scenario, seeds, report=lambda done, all: progress("seeds", done, all))

    def show(found: Table) -> str | None:
        print(found.markdown)
        return f"not as promised: {'; '.join(found.broken)}" if found.broken else None

    measure(run, json_file, show)
