"""``labkit verify``: load and faults, then checkers."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer

from labkit.cli.measure import cells, measure, table
from labkit.cli.options import (
    Client,
    JsonFile,
    LabName,
    Processes,
    Seed,
    Services,
    bug_of,
    option,
    whole,
)
from labkit.plots.rule_of_three import counted

app = typer.Typer(help="Run load and faults, then check the results.", no_args_is_help=True)

#: Copies of the experiments' ``PLANTS``: the help must not wait for pandas. A test compares them.
WRITE_PLANTS = ("no-dedupe", "early-offsets", "no-fence", "checkpoint-apart", "random-saga-ids")
QUERY_PLANTS = ("swapped-answers", "lost-answers")


@app.command()
def write(
    services: Services = None,
    processes: Processes = None,
    commands: Annotated[int, option("Number of commands.", whole(100, 10_000_000))] = 100_000,
    bug: Annotated[str | None, bug_of(WRITE_PLANTS)] = None,
    client: Client = "kafka-python",
    seed: Seed = 1,
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """Run services under load and faults; check that no command is lost or repeated."""
    from labkit.experiments.verify import write as experiment

    run = partial(
        experiment.verify_write,
        *(lab, client, commands, bug, seed),
        services=services or (),
        processes=processes or (),
    )
    measure(run, json_file, _show_write)


@app.command()
def queries(
    services: Services = None,
    queries: Annotated[int, option("Number of queries.", whole(100, 10_000_000))] = 10_000,
    bug: Annotated[str | None, bug_of(QUERY_PLANTS)] = None,
    client: Client = "kafka-python",
    seed: Seed = 1,
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """Send queries over Kafka while query handlers are killed; check that each answer fits."""
    from labkit.experiments.verify import queries as experiment

    run = partial(
        experiment.verify_queries, lab, client, queries, bug, seed, services=services or ()
    )
    measure(run, json_file, _show_queries)


def _verdict(verdict: dict[str, Any]) -> str:
    if verdict["ok"] is None:
        return "[yellow]unknown[/]"
    return "[green]holds[/]" if verdict["ok"] else f"[bold red]{verdict['found']} WRONG[/]"


def _show_write(found: dict[str, Any]) -> str | None:
    from labkit.experiments.verify.write import red

    rows = (
        [
            *(name, found["meanings"][name]),
            _verdict(verdict),
            *cells(verdict, ",", "checked"),
        ]
        for name, verdict in found["checkers"].items()
    )
    columns = ("", "meaning", "verdict", "facts")
    title = "The guarantees, checked against what the client saw"
    table(title, columns, rows, left=3, prose=("meaning",))
    for name, verdict in found["checkers"].items():
        for line in verdict["violations"][:3]:
            print(f"{name}: {line}")
        if verdict["ok"] is None:
            print(f"{name} is unknown: {verdict['why']}")
    for fault in found["faults"]:
        print(f"{fault['worker']}: {fault['fault']}{'' if fault['struck'] else ' (NOT injected)'}")
    print(
        f"{found['commands']:,} commands, of which {found['repeated']:,} were sent twice; "
        f"processes sent {found['process_commands']:,} more. {found['commands_per_second']:,.0f} "
        f"commands a second, with faults. Parked: {found['parked']}; ignored commits: "
        f"{found['ignored_commits']}; the run {'became' if found['quiet'] else 'never became'} "
        "quiet."
    )
    if found["ok"]:
        return None
    wrong = red(found)
    return (
        f"{', '.join(wrong)} turned red"
        if wrong
        else "no checker is red, but see the faults and counts above"
    )


def _show_queries(found: dict[str, Any]) -> str | None:
    print(
        f"{found['answered']:,} of {found['asked']:,} queries were answered, and "
        f"{counted(found['mismatched'], found['answered'])} answers were wrong; "
        f"{found['timed_out']} timed out, {found['refused']} were refused. "
        f"{found['answers_per_second']:,.0f} answers a second, with {len(found['killed'])} "
        f"killed; the median answer took {found['p50_ms']:,.0f} ms."
    )
    for line in found["examples"]:
        print(line)
    return None if found["ok"] else "some queries did not get their answer; see above and the JSON"
