"""``labkit load``: an open-loop load on a run of its own, with latencies and checkers."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec import Struct

from labkit import stack
from labkit.cli.measure import Progress, Say, cells, measure, table
from labkit.cli.options import (
    BatchSize,
    Client,
    JsonFile,
    LabName,
    Linger,
    Log,
    Partitions,
    Seed,
    Services,
    bug_of,
    choice,
    number,
    option,
    whole,
)
from labkit.experiments.load import arrivals
from labkit.experiments.results import archive
from labkit.messages import MAX_ID
from labkit.run.settings import DEFAULTS
from labkit.run.worker import calm_gc
from labkit.services import MEASURED

if TYPE_CHECKING:
    from labkit.experiments.load.sustainable import Crew, Sustainable

#: A rate up to this number is a share of the sustainable rate.
MOST_SHARE = 1.5
RATE = (
    f"Up to {MOST_SHARE}: a share of the sustainable rate, which is searched for if it is unknown. "
    "Above: commands a second."
)
PLANTS = ("passed-over",)


class Goal(Struct, frozen=True):
    """The rate to offer: a ``share`` of the sustainable rate, or else the plan's rate."""

    share: float | None
    p99_ms: float
    only_search: bool
    anew: bool


def load(
    pattern: Annotated[arrivals.Pattern, choice("Arrivals", arrivals.PATTERNS)] = "poisson",
    rate: Annotated[float, option(RATE, number(0.001, 1_000_000))] = 0.7,
    seconds: Annotated[float, option("Measured seconds.", number(0.1, 3_600))] = 60,
    warm_up: Annotated[float, option("Seconds before them.", number(0, 3_600))] = 5,
    services: Services = None,
    keys: Annotated[
        str,
        typer.Option(metavar="WORKLOAD", help="Name of a workload; default: the first."),
    ] = "",
    skew: Annotated[
        float | None, option("Exponent, if the workload takes one.", number(0, 10))
    ] = None,
    payload: Annotated[int, option("Extra bytes in each command.", whole(0, MAX_ID))] = 0,
    seed: Seed = 1,
    client: Client = DEFAULTS.client,
    log: Log = DEFAULTS.log,
    partitions: Partitions = DEFAULTS.partitions,
    batch_size: BatchSize = DEFAULTS.batch_size,
    linger: Linger = DEFAULTS.linger,
    handlers: Annotated[int, option("Handler processes.", whole(1, 64))] = 1,
    projectors: Annotated[int, option("Projector processes.", whole(1, 64))] = 1,
    p99: Annotated[float, option("Bound of the sustainable rate, in ms.", number(1, 60_000))] = 500,
    sustainable: Annotated[bool, typer.Option("--sustainable", help="Only search for it.")] = False,
    anew: Annotated[bool, typer.Option("--anew", help="Search even if it is known.")] = False,
    plant: Annotated[str | None, bug_of(PLANTS)] = None,
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """Offer a load at its own pace; measure lag and latencies, and run all checkers."""
    from labkit.experiments.load.sustainable import Crew
    from labkit.experiments.verify.planted_bugs import planted

    share = rate if rate <= MOST_SHARE else None
    plan = arrivals.Plan(
        pattern=pattern,
        rate=rate if share is None else 1.0,
        seconds=seconds,
        warm_up=warm_up,
        services=tuple(services or MEASURED),
        keys=keys,
        skew=skew,
        payload=payload,
        seed=seed,
    ).check()
    settings = {"client": client, "log": log, "partitions": partitions, "batch_size": batch_size}
    settings["linger"] = linger
    crew = Crew(handlers=handlers, projectors=projectors, settings=settings)
    goal = Goal(share, p99, sustainable, anew)
    calm_gc()
    with planted(plant):
        measure(partial(_measure, lab, crew, plan, goal), json_file, _show)


def _measure(
    lab: str, crew: Crew, plan: arrivals.Plan, goal: Goal, progress: Progress, say: Say
) -> dict[str, Any]:
    from labkit.experiments.load import sustainable as searching
    from labkit.experiments.load.figures import modelled
    from labkit.experiments.load.offer import offer

    found: dict[str, Any] = {}
    with stack.borrowed(lab, say):
        if goal.share is not None or goal.only_search:
            fresh = goal.anew or goal.only_search
            at = None if fresh else searching.kept(lab, crew, plan, goal.p99_ms)
            at = at or searching.sustainable(lab, crew, plan, goal.p99_ms, progress, say)
            found = at.report()
            of = f"{found['sustainable_to_heap']:.2f} of the {at.heap:,.0f} of a heap"
            say(f"{at.rate:,.0f} commands a second are sustained, {of}: {at.folder}")
            if at.rate == 0 or goal.only_search:
                return found | {"trials": at.trials}
        if goal.share is not None:
            plan = plan.at(goal.share * found["sustainable_per_second"]).check()
        else:
            _compare(searching.kept(lab, crew, plan, goal.p99_ms), plan.rate, say)
        say(f"{plan.rate:,.0f} commands a second for {plan.seconds:g} s, after {plan.warm_up:g} s")
        with crew.working(lab, plan.service) as run:
            loaded = offer(
                run,
                plan,
                lambda done, total: progress("visible", done, total),
                warn=lambda why: say(f"warning: {why}"),
            )
    found = {"bench": "load", "rate": plan.rate, "share": goal.share} | found | loaded.report
    if loaded.ok:
        found["model"] = modelled(loaded)
    folder = archive("load", found, {"commands": loaded.commands, "samples": loaded.samples})
    return found | {"folder": str(folder)}


def _compare(at: Sustainable | None, rate: float, say: Say) -> None:
    """Say what is known of a rate before it is offered."""
    if at is None:
        say(
            "what these workers sustain is not known; `labkit load --sustainable` with the same "
            "options measures it"
        )
    elif rate > at.rate:
        say(
            f"warning: {rate:,.0f} commands a second are more than the {at.rate:,.0f} that were "
            f"sustained here ({at.folder}): the backlog will grow, and the load ends once that is "
            "clear"
        )


def _show(found: dict[str, Any]) -> str | None:
    if "trials" in found:
        last = found["trials"][-1]
        held = found["sustainable_per_second"] > 0
        return None if held else f"no rate held, down to {last.rate:,.0f} a second: {last.why}"
    if found["ok"]:
        _show_latencies(found)
    law, backlog = found["little"], found["backlog"]
    print(
        f"Little's law: {law['L']:,.1f} in the system, lambda W is {law['lambda_W']:,.1f}, "
        f"{law['edges']:+,.1f} for the edges of the window ({law['difference']:.1%} apart; "
        f"at most {law['bound']:.0%}). The backlog "
        f"{'stayed level' if backlog['ok'] else 'grew'}: {backlog['growth_per_second']:+,.0f} a "
        "second."
    )
    generator = found["generator"]
    late, ability = generator["late_ms"], generator["ability"]
    print(
        f"The generator was late by {late['p50']:.1f} ms (p50), {late['p99']:.1f} ms (p99). It can "
        f"send {ability['topic']:,.0f} commands a second to a topic; without a client, it keeps up "
        f"with {ability['void']:,.0f} a second. The observer looked every "
        f"{found['observer']['interval_ms']:.0f} ms."
    )
    _show_cpu(found)
    verdicts = found["checkers"]
    red = [name for name, verdict in verdicts.items() if verdict["ok"] is False]
    unknown = [name for name, verdict in verdicts.items() if verdict["ok"] is None]
    said = f"RED: {red}" if red else f"unknown: {unknown}" if unknown else "all green"
    print(f"Checkers: {', '.join(verdicts)}; {said}.")
    for name in red:
        for line in verdicts[name]["violations"][:3]:
            print(f"{name}: {line}")
    return "; ".join(found["trouble"]) or None


def _show_cpu(found: dict[str, Any]) -> None:
    """Who took which share of the machine, and how much CPU time for each command."""
    cpu = found["cpu"]
    share, each = cpu["machine_share"], cpu["us_per_command"]

    def said(roles: Iterable[str]) -> str:
        return ", ".join(f"{role} {share[role]:.0%} ({each[role]:,.0f} us)" for role in roles)

    workers = [role for role in share if role not in (*cpu["harness"], *cpu["servers"])]
    print(
        f"Of the CPU time of {cpu['cores']:g} cores, and for each command: {said(cpu['harness'])}, "
        f"on {found['harness_client']} whatever is measured; {said(workers)}, on "
        f"{found['client']}; {said(cpu['servers'])}."
    )


LATENCIES = {
    "ack": "sent to acknowledged",
    "reply": "intended to committed, as the reply says",
    "visible": "intended to visible",
    "lag_stale": "lag: reply to visible, at least",
    "lag": "lag: reply to visible, at most",
}


def _show_latencies(found: dict[str, Any]) -> None:
    names = ("p50_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms")
    of = found["latencies_ms"]
    rows = ([what, *cells(of[name], ",.1f", *names)] for name, what in LATENCIES.items())
    title = f"{found['offered_per_second']:,.0f} commands a second, in ms"
    table(title, ("", "p50", "p95", "p99", "p99.9", "max"), rows, prose=("",))
    if (median := found["model"].get("p50")) is not None:
        print(
            f"The model predicts {median['model_ms']:,.1f} ms for the p50 of the lag; the "
            f"measured p50 is {median['measured_ms']:,.1f} ms ({median['error']:.0%} apart)."
        )
