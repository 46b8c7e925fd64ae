"""``labkit autoscale``: workers of a running run, as many as its time lag asks for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec import structs

from labkit.cli.options import JsonFile, LabName, RunName, choice, number, option, whole
from labkit.cli.runs import joined
from labkit.errors import UsageError
from labkit.experiments.results import machine, save, to_json, versions
from labkit.run.autoscaler import Bounds
from labkit.run.elastic import LOOK_SECONDS, ROLES, Elastic, Look

if TYPE_CHECKING:
    from labkit.lab import Lab

Least = Annotated[int, option("Workers at least.", whole(1, 64))]
Most = Annotated[int, option("Workers at most.", whole(1, 64))]
Up = Annotated[float, option("Seconds of lag above which one is added.", number(0, 3_600))]
Down = Annotated[float, option("Seconds of lag below which one is removed.", number(0, 3_600))]
DEFAULTS = Bounds()


def autoscale(
    role: Annotated[str, choice("Whose workers", ROLES)] = "handler",
    least: Least = DEFAULTS.least,
    most: Most = DEFAULTS.most,
    up: Up = DEFAULTS.up_above,
    down: Down = DEFAULTS.down_below,
    hold: Annotated[
        float, option("Seconds for which the lag must stay there.", number(0, 3_600))
    ] = DEFAULTS.hold,
    cool_down: Annotated[
        float, option("Seconds after a change without another.", number(0, 3_600))
    ] = DEFAULTS.cool_down,
    service: Annotated[
        str | None, typer.Option(help="The service; needed if there are several.")
    ] = None,
    run: RunName = None,
    seconds: Annotated[
        float | None, option("End after so long; by default at Ctrl-C.", number(0.1, 86_400))
    ] = None,
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """Add and remove workers of a run by its time lag, until Ctrl-C comes or the run is dropped.

    Workers that others have started on this host count, and stay. `labkit bench elasticity`
    compares it with fixed numbers of workers.
    """
    bounds = Bounds(
        least=least, most=most, up_above=up, down_below=down, hold=hold, cool_down=cool_down
    ).check()
    with joined(lab, run, service) as of:
        name = service or _only(of, role)
        looks: list[Look] = []
        known = versions(of.server_versions(), of.settings.client)
        with closing(Elastic(of.of, of.positions, role, name, bounds, report=_say)) as elastic:
            _say(
                f"{elastic.least} to {elastic.most} {role}s of {name} in run {of.run}; Ctrl-C ends "
                "them"
            )
            try:
                looks.extend(_looking(elastic, seconds))  # also those before an interruption
            finally:
                save("--json", json_file, to_json(report(of, elastic, looks, known)))
        _say(f"the {role}s of this autoscaler are stopped")


def _only(of: Lab, role: str) -> str:
    known = of.instances_of(role)
    if len(known) != 1:
        raise UsageError(f"name the service by --service, one of {', '.join(known) or 'none'}")
    return known[0]


def _looking(elastic: Elastic, seconds: float | None) -> Iterator[Look]:
    began = time.monotonic()
    while seconds is None or time.monotonic() - began < seconds:
        if (look := elastic.step()) is None:
            _say(f"run {elastic.run.run} was dropped")
            return
        yield look
        time.sleep(LOOK_SECONDS)


def _say(line: str) -> None:
    print(line, flush=True)


def report(of: Lab, elastic: Elastic, looks: list[Look], known: dict[str, str]) -> dict[str, Any]:
    """What it saw and did; ``worker_seconds`` is what it cost, ``looks`` begin at 0 s."""
    start = looks[0].at if looks else 0.0
    shifted = [structs.replace(look, at=round(look.at - start, 3)) for look in looks]
    changes = [look for look in shifted if look.wanted != look.workers]
    above = elastic.bounds.up_above
    return {
        "command": "autoscale",
        "run": of.run,
        "role": elastic.role,
        "service": elastic.service,
        "settings": {
            "bounds": structs.asdict(elastic.bounds),
            "lab": structs.asdict(of.settings),
            "ceiling": elastic.most,
        },
        "versions": known,
        "machine": machine(),
        "seconds": shifted[-1].at if shifted else 0.0,
        "worker_seconds": round(sum((b.at - a.at) * a.wanted for a, b in pairwise(shifted)), 3),
        "above_seconds": round(sum(b.at - a.at for a, b in pairwise(shifted) if a.lag > above), 3),
        "changes": changes,
        "looks": shifted,
    }
