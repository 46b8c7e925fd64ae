"""``labkit load``: no logic, only arguments and tables."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from labkit import stack
from labkit.cli.bench import Client, JsonFile, LabName, bars, known, whole
from labkit.errors import CheckFailed, UsageError
from labkit.experiments.results import archive, check_writable, save, to_json
from labkit.run.settings import DEFAULTS, LOGS, Settings
from labkit.run.worker import calm_gc

#: Up to this number a rate is a share.
MOST_SHARE = 1.5
#: What may be planted, and so must be seen.
PLANTS = ("passed-over",)


def load(
    pattern: Annotated[str, typer.Option(help="constant, poisson, burst or cdnow.")] = "poisson",
    rate: Annotated[
        str,
        typer.Option(
            help=f"Up to {MOST_SHARE}: a share of the sustainable rate, which is searched for if "
            "it is not known yet. Above: commands a second."
        ),
    ] = "0.7",
    seconds: Annotated[str, typer.Option(help="That count.")] = "60",
    warm_up: Annotated[str, typer.Option(help="Seconds before them.")] = "5",
    keys: Annotated[
        str,
        typer.Option(help="new (orders), or deposits to accounts by zipf or real (CDNOW) skew."),
    ] = "new",
    skew: Annotated[str, typer.Option(help="Of zipf: its exponent.")] = "1",
    payload: Annotated[str, typer.Option(metavar="N", help="Bytes of ballast a command.")] = "0",
    seed: Annotated[str, typer.Option(metavar="N", help="Of instants and keys.")] = "1",
    client: Client = DEFAULTS.client,
    log: Annotated[str, typer.Option(help=" or ".join(LOGS))] = DEFAULTS.log,
    partitions: Annotated[
        str, typer.Option(metavar="N", help="Of each topic.")
    ] = f"{DEFAULTS.partitions}",
    batch_size: Annotated[
        str, typer.Option(metavar="N", help="Commands in one transaction, at most.")
    ] = f"{DEFAULTS.batch_size}",
    linger: Annotated[
        str, typer.Option(help="Seconds to wait for a batch to fill.")
    ] = f"{DEFAULTS.linger}",
    handlers: Annotated[str, typer.Option(metavar="N", help="Worker processes.")] = "1",
    projectors: Annotated[str, typer.Option(metavar="N", help="Worker processes.")] = "1",
    p99: Annotated[
        str, typer.Option(help="Bound in ms of the sustainable rate, intended to visible.")
    ] = "500",
    sustainable: Annotated[
        bool, typer.Option("--sustainable", help="Search for the sustainable rate, and end.")
    ] = False,
    anew: Annotated[
        bool, typer.Option("--anew", help="Search for it even if it is known.")
    ] = False,
    plant: Annotated[
        str | None, typer.Option(help=f"A bug that must be seen: {', '.join(PLANTS)}.")
    ] = None,
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """Offer a load at its own pace, and measure: lag and latencies, checked by all checkers."""
    from labkit.experiments.load import sustainable as searching
    from labkit.experiments.load.arrivals import Plan
    from labkit.experiments.load.figures import modelled
    from labkit.experiments.load.offer import offer
    from labkit.experiments.verify.planted_bugs import planted

    known(client)
    asked = number("--rate", rate, 0.001, 1_000_000)
    settings = {
        "client": client,
        "log": log,
        "partitions": whole("--partitions", partitions, 1, 1_000),
        "batch_size": whole("--batch-size", batch_size, 1, 1_000_000),
        "linger": number("--linger", linger, 0, 60),
    }
    Settings(**settings).check()  # type: ignore[arg-type]
    crew = searching.Crew(
        handlers=whole("--handlers", handlers, 1, 64),
        projectors=whole("--projectors", projectors, 1, 64),
        settings=settings,
    )
    plan = Plan(
        pattern=pattern,  # type: ignore[arg-type]  # checked with the rest
        rate=1.0,
        seconds=number("--seconds", seconds, 0.1, 3_600),
        warm_up=number("--warm-up", warm_up, 0, 3_600),
        keys=keys,  # type: ignore[arg-type]
        skew=number("--skew", skew, 0, 10),
        payload=whole("--payload", payload, 0, 1_000_000),
        seed=whole("--seed", seed, 0, 2**63 - 1),
    ).check()
    share = asked <= MOST_SHARE
    plan = plan if share else plan.at(asked).check()
    bound = number("--p99", p99, 1, 60_000)
    if plant not in (None, *PLANTS):
        raise UsageError(f"--plant must be one of {', '.join(PLANTS)}, got {plant!r}")
    check_writable("--json", json_file)
    calm_gc()
    with bars() as (progress, say), stack.borrowed(lab, say), planted(plant):
        found: dict[str, Any] = {}
        if share or sustainable:
            old = None if anew or sustainable else searching.kept(lab, crew, plan, bound)
            at = old or searching.sustainable(lab, crew, plan, bound, progress, say)
            found = {"sustainable_per_second": at.rate, "sustainable_from": str(at.folder)}
            say(f"{at.rate:,.0f} commands a second are sustained: {at.folder}")
            if at.rate == 0 or sustainable:
                save("--json", json_file, to_json(found | {"trials": at.trials}))
            if at.rate == 0:
                last = at.trials[-1]
                raise CheckFailed(f"no rate held, down to {last.rate:,.0f} a second: {last.why}")
        if sustainable:
            return
        plan = plan.at(asked * at.rate).check() if share else plan
        say(f"{plan.rate:,.0f} commands a second for {plan.seconds:g} s, after {plan.warm_up:g} s")
        with crew.working(lab, plan.service) as run:
            loaded = offer(run, plan, lambda done, total: progress("visible", done, total))
    found = {"bench": "load", "rate": plan.rate, "share": asked if share else None} | found
    found |= loaded.report | ({"model": modelled(loaded)} if loaded.ok else {})
    folder = archive("load", found, {"commands": loaded.commands, "samples": loaded.samples})
    save("--json", json_file, to_json(found | {"folder": str(folder)}))
    _show(found)
    print(f"kept: {folder}")
    if not loaded.ok:
        raise CheckFailed("; ".join(loaded.trouble))


def number(option: str, text: str, least: float, most: float) -> float:
    """Typer's own message does not name the value."""
    try:
        value = float(text)
        if least <= value <= most and math.isfinite(value):
            return value
    except ValueError:
        pass
    raise UsageError(f"{option} must be a number from {least:g} to {most:g}, got {text!r}")


ENDS = {
    "ack": "sent -> acknowledged",
    "reply": "intended -> committed, and heard of",
    "visible": "intended -> visible",
    "lag_stale": "lag: heard of -> visible, at least",
    "lag": "lag: heard of -> visible, at most",
}


def _show(found: dict[str, Any]) -> None:
    generator, law, backlog = found["generator"], found["little"], found["backlog"]
    if found["ok"]:
        table = Table(title=f"{found['offered_per_second']:,.0f} commands a second, in ms")
        for column in ("", "p50", "p95", "p99", "p99.9", "max"):
            table.add_column(column, justify="right" if column else "left")
        for name, what in ENDS.items():
            row = found["latencies_ms"][name]
            at = (row[f"{p}_ms"] for p in ("p50", "p95", "p99", "p999", "max"))
            table.add_row(what, *(f"{value:,.1f}" for value in at))
        Console().print(table)
        if (median := found["model"].get("p50")) is not None:
            print(
                f"The model says {median['model_ms']:,.1f} ms for the p50 of the lag; measured: "
                f"{median['measured_ms']:,.1f} ms ({median['error']:.0%} apart)."
            )
    print(
        f"Little's law: {law['L']:,.1f} in the system, lambda W is {law['lambda_W']:,.1f} "
        f"({law['difference']:.1%} apart; at most {law['bound']:.0%}). The backlog "
        f"{'stayed level' if backlog['ok'] else 'grew'}: {backlog['growth_per_second']:+,.0f} a "
        "second."
    )
    late, ability = generator["late_ms"], generator["ability"]
    print(
        f"The generator was late by {late['p50']:.1f} ms (p50), {late['p99']:.1f} ms (p99); it can "
        f"send {ability['topic']:,.0f} a second to a topic, {ability['void']:,.0f} into the void. "
        f"The observer looked every {found['observer']['interval_ms']:.0f} ms."
    )
    verdicts = found["checkers"]
    red = [name for name, verdict in verdicts.items() if not verdict["ok"]]
    print(f"Checkers: {', '.join(verdicts)}; {f'RED: {red}' if red else 'all green'}.")
    for name in red:
        for line in verdicts[name]["violations"][:3]:
            print(f"{name}: {line}")
