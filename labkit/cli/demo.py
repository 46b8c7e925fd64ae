"""``labkit demo``: replay the CDNOW purchases, and compare the views with pandas."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labkit.cli.measure import measure, show_too_short, table
from labkit.cli.options import Client, JsonFile, LabName, option, result_file, whole
from labkit.experiments.cdnow import ORDERS

if TYPE_CHECKING:
    from labkit.experiments.demo import Demo


def demo(
    limit: Annotated[int, option("Replay the first N purchases.", whole(1, ORDERS))] = ORDERS,
    client: Client = "kafka-python",
    json_file: JsonFile = None,
    plot_file: Annotated[
        Path | None, option("Write the plot.", result_file(".png", ".svg"), "--plot")
    ] = None,
    lab: LabName = "lab",
    keep: Annotated[bool, typer.Option("--keep", help="Leave topics and database.")] = False,
) -> None:
    """Replay 69,659 real purchases through Kafka into MongoDB, and check every cent."""
    from labkit.experiments import demo as experiment

    def show(found: Demo) -> str | None:
        _show(found)
        if plot_file:
            _draw(found, plot_file)
        if keep:
            print(f"kept: topics {lab}.{found.run}.*, database {lab}_{found.run}")
        if found.matches:
            return None
        return "the views differ from pandas over the raw file; see the table"

    measure(partial(experiment.demo, lab, client, limit, keep=keep), json_file, show)


def _show(found: Demo) -> None:
    marks = {True: "[green]same[/]", False: "[bold red]DIFFERENT[/]"}
    rows = ([row.what, marks[row.same], row.views, row.pandas] for row in found.rows)
    columns = ("", "", "views", "pandas")
    table("The views in MongoDB against pandas over the raw file", columns, rows, left=2)
    report = found.report
    print(
        f"{report['commands_per_second']:,.0f} commands a second from the first send to the last "
        f"visible order, with {report['client']}."
    )
    show_too_short(report["too_short"])
    reply, lag = report["reply_ms"], report["lag_ms"]
    if lag["p50"] is not None:
        print(
            f"{_at(report)}, the median reply takes {reply['p50']:.0f} ms (p99 "
            f"{reply['p99']:.0f} ms), and an order is visible {lag['p50']:.0f} ms after its reply "
            f"(p99 {lag['p99']:.0f} ms; {report['probes']} probes)."
        )


def _at(report: dict[str, Any]) -> str:
    """The rate at which latencies were measured, and whether it is sustained."""
    held = {
        True: "which is sustained: the backlog stayed level",
        False: "which is NOT sustained here: the backlog grew, so this is the time in a queue",
        None: "for too short a time to tell whether it is sustained",
    }[report["sustained"]]
    share = f"{report['open_loop_share']:.4g} of that rate"
    return f"At {report['open_loop_rate']:,.0f} a second ({share}, {held})"


def _draw(found: Demo, file: Path) -> None:
    import pandas as pd

    from labkit.plots.demo import demo_figure

    figure = demo_figure(
        pd.DataFrame(found.months),
        found.lags,
        client=found.report["client"],
        commands_per_second=found.report["commands_per_second"],
        lag_rate=found.report["open_loop_rate"],
        sustained=found.report["sustained"],
    )
    temporary = file.with_name(f".{file.name}.{os.getpid()}{file.suffix}")
    figure.savefig(temporary)
    temporary.replace(file)
    print(f"the plot is {file}")
