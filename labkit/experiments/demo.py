"""The demo: 69,659 real purchases through Kafka into MongoDB, every cent checked.

There are two rounds, each with new topics and a new database. The first sends as fast as possible
and measures the rate; its views are compared with pandas over the raw file. The second is an open
loop at a share of that rate, and measures latencies. If the backlog grows they are those of a
queue; then the round is repeated once, at half the rate.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct, structs

from labkit import stack
from labkit.errors import UsageError
from labkit.experiments import cdnow
from labkit.experiments.intervals import too_short
from labkit.experiments.load import steady
from labkit.experiments.load.arrivals import Plan
from labkit.experiments.load.consistency import lag
from labkit.experiments.load.offer import Loaded, offer
from labkit.experiments.results import archive, machine, versions
from labkit.experiments.scratch import scratch_run
from labkit.lab import Lab
from labkit.messages import Token
from labkit.read.standard import All
from labkit.run.worker import calm_gc
from labkit.service import MAX_PAGE
from labkit.services.orders import BestCustomers, OrdersSeen, Revenue
from labkit.stack.state import lab_folder, lock

if TYPE_CHECKING:
    import pandas as pd

OPEN_LOOP_SECONDS, LEAST_SECONDS = 10.0, 0.3
#: The rate of the open loop, as a share of that of the replay: about half of what is sustained on
#: two cores.
SHARE = 0.25
#: An open loop that is shorter cannot show whether the backlog grows.
TELLING_SECONDS = 5.0
VISIBLE_SECONDS = 180.0


#: Called with the name of a stage, and how many of how many purchases it has done.
Progress = Callable[[str, int, int], None]


class Row(Struct, frozen=True):
    """One line of the table: the value of the views, and that of pandas."""

    what: str
    views: str
    pandas: str
    same: bool


class Demo(Struct):
    """The result of a demo; ``report`` is its JSON, which is kept with the rest.

    ``lags`` has a row for each command of the open loop: it became visible between ``stale_ms`` and
    ``fresh_ms`` after its reply.
    """

    report: dict[str, Any]
    rows: list[Row]
    months: list[dict[str, Any]]
    lags: pd.DataFrame
    run: str

    @property
    def matches(self) -> bool:
        """Whether every row is as expected."""
        return bool(self.report["matches"])


def demo(
    name: str,
    client: str,
    limit: int,
    progress: Progress,
    report: Callable[[str], None],
    keep: bool = False,
) -> Demo:
    """Run both rounds on real servers; starts servers that are not up, and stops what it started.

    Raises ``UsageError`` where another demo runs in this lab, ``StackError`` and ``TimedOut`` where
    servers or workers fail. ``keep`` leaves topics and database of the first round.
    """
    import pandas as pd

    commands = cdnow.commands(limit)
    calm_gc()
    with _alone(name), stack.borrowed(name, report):
        first = Lab(name, client=client, services=["orders"])
        with first:
            first.start()
            report(f"run {first.run}: {len(commands):,} purchases, as fast as they go")
            seconds = _replay(first, commands, progress)
            result = _compare(first, len(commands))
            settings = structs.asdict(first.settings)
            stack_versions = versions(first.server_versions(), client)
            ignored = first.ignored_commits()
            if not keep:
                first.drop()
        speed = len(commands) / seconds  # which held many round trips
        for share in (SHARE, SHARE / 2):
            plan = _open_loop(share * speed, len(commands))
            loaded, seen, late = _offered(name, client, plan, progress, report)
            ignored += late
            result.rows.append(_row(f"orders at {plan.rate:,.0f} a second", seen, loaded.sent))
            sustained = _sustained(loaded)
            if sustained is not False:
                break
            report(f"the backlog grew at {plan.rate:,.0f} a second: half of that is offered")
    result.rows.append(_row("ignored commits", ignored, 0))
    if not loaded.commands.empty:
        result.lags = lag(loaded.commands).clip(lower=0)  # the view may have it before the client
    replies = (loaded.commands["heard"] - loaded.commands["intended"]) / 1e6
    result.report |= {
        "matches": all(row.same for row in result.rows),
        "commands_per_second": round(speed, 1),
        "seconds": round(seconds, 3),
        "too_short": too_short(seconds),
        "open_loop_rate": round(plan.rate, 1),
        "open_loop_share": share,
        "open_loop_seconds": round(plan.total, 1),
        "sustained": sustained,
        "cpu": loaded.report["cpu"],
        "reply_ms": _percentiles(replies),
        "lag_ms": _percentiles(result.lags["fresh_ms"]),
        "lag_stale_ms": _percentiles(result.lags["stale_ms"]),
        "probes": len(result.lags),
        "client": client,
        "stack": first.servers.kind if first.servers else "memory",
        "run": first.run,
        "versions": stack_versions,
        "machine": machine(),
        "ignored_commits": ignored,
        "settings": {"purchases": len(commands), "client": client, "lab": settings},
        "seed": None,  # nothing is drawn
    }
    frames = {"lags": result.lags, "months": pd.DataFrame(result.months)}
    result.report["folder"] = str(archive("demo", result.report, frames))
    return result


def _offered(
    name: str, client: str, plan: Plan, progress: Progress, report: Callable[[str], None]
) -> tuple[Loaded, int, int]:
    """The second round: its load, the orders that its view holds, and its ignored commits."""
    with scratch_run(name, client=client, services=["orders"]) as lab:
        lab.start()
        report(f"run {lab.run}: an open loop at {plan.rate:,.0f} a second")
        loaded = offer(
            lab,
            plan,
            lambda done, total: progress("open loop", done, total),
            dry=False,
            checked=False,
        )
        return loaded, lab.queries.ask(OrdersSeen()), lab.ignored_commits()


def _sustained(loaded: Loaded) -> bool | None:
    """Whether the generator was on time and the backlog stayed level; ``None``: it was too short to
    tell."""
    plan, window = loaded.plan, loaded.window
    if plan.seconds < TELLING_SECONDS:
        return None
    level = steady.level(loaded.samples, window, plan.rate)
    return bool(level["ok"] and steady.on_time(loaded.commands, window)["ok"])


def _open_loop(rate: float, purchases: int) -> Plan:
    """Ten seconds, or as long as the purchases last; a tenth, at most a second, is warm-up."""
    total = min(OPEN_LOOP_SECONDS, max(LEAST_SECONDS, purchases / rate))
    warm_up = min(1.0, total / 10)
    return Plan(pattern="constant", rate=rate, warm_up=warm_up, seconds=total - warm_up)


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """One demo at a time in a lab: two would disturb each other's measurements."""
    folder = lab_folder(name).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / f"{name}.demo").open("a+")
    except OSError as error:
        raise UsageError(
            f"LABKIT_HOME {stack.home()} cannot be written ({error.strerror}); set it to another"
        ) from error
    with file:
        if not lock(file, Path(file.name)):
            file.seek(0)
            raise UsageError(
                f"a demo runs in lab {name!r} already (pid {file.read().strip()}); "
                "wait for its end, or give another --lab"
            )
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _replay(lab: Lab, commands: list[Any], progress: Progress) -> float:
    """Send all commands and wait until all are visible; returns the seconds from the first send."""
    checked = 0.0

    def meanwhile() -> None:
        nonlocal checked
        if time.monotonic() - checked > 0.2:
            checked = time.monotonic()
            visible = sum(offset + 1 for offset in lab.queries.reached("orders").values())
            progress("visible", visible, len(commands))
            lab.check()

    bus = lab.bus
    began = time.monotonic()
    sent = []
    for number, command in enumerate(commands):
        sent.append(bus.send(command, id=command.order_id))
        if number % 1_000 == 0:
            meanwhile()
    bus.flush(VISIBLE_SECONDS)
    last: dict[int, Token] = {}
    for delivery in sent:
        token = delivery.token()
        if token.partition not in last or token.offset > last[token.partition].offset:
            last[token.partition] = token
    lab.queries.until(last.values(), VISIBLE_SECONDS, meanwhile)
    seconds = time.monotonic() - began
    progress("visible", len(commands), len(commands))
    return seconds


def _compare(lab: Lab, limit: int) -> Demo:
    """Compare the views with pandas."""
    import pandas as pd

    expected = cdnow.expected(limit)
    totals = _totals(lab)
    months = lab.ask(Revenue())
    orders = lab.ask(OrdersSeen())
    revenue = sum(totals.values())
    best = [(c["_id"], c["cents"]) for c in lab.ask(BestCustomers(limit=10))]
    by_month = [(m["_id"], m["orders"], m["cents"]) for m in months]
    rows = [
        _row("orders", orders, expected.orders),
        _row("customers", len(totals), expected.customers),
        _row("revenue", revenue, expected.revenue_cents, _money),
        _row("ten best customers", best, expected.best, lambda b: f"{b[0][0]}: {_money(b[0][1])}"),
        _row(
            "revenue a month",
            by_month,
            expected.months,
            lambda m: f"{len(m)} months, {_money(sum(cents for _, _, cents in m))}",
        ),
    ]
    report = {
        "orders": orders,
        "customers": len(totals),
        "revenue_cents": revenue,
        "expected": {
            "orders": expected.orders,
            "customers": expected.customers,
            "revenue_cents": expected.revenue_cents,
        },
    }
    wanted = {month: orders for month, orders, _ in expected.months}
    shown = {month: (orders, cents) for month, orders, cents in by_month}
    table = [
        {
            "month": month,
            "orders": shown.get(month, (0, 0))[0],
            "cents": shown.get(month, (0, 0))[1],
            "expected_orders": wanted.get(month, 0),
        }
        for month in sorted({*wanted, *shown})
    ]
    lags = pd.DataFrame(columns=["stale_ms", "fresh_ms"], dtype=float)
    return Demo(report, rows, table, lags, lab.run)


def _totals(lab: Lab) -> Counter[str]:
    """The cents of each customer: all customers, page by page."""
    found, cursor, more = Counter[str](), "", True
    while more:
        page = lab.ask(All("orders.customers", limit=MAX_PAGE, cursor=cursor))
        for part in page.rows:
            found[part["customer"]] += part["cents"]
        cursor, more = page.cursor, bool(page.cursor)
    return found


def _row(what: str, views: Any, pandas: Any, show: Any = None) -> Row:
    show = show or (lambda value: f"{value:,}")
    return Row(what, show(views) if views or views == 0 else "-", show(pandas), views == pandas)


def _money(cents: int) -> str:
    return f"${cents // 100:,}.{cents % 100:02d}"


def _percentiles(values: pd.Series[float]) -> dict[str, float | None]:
    if values.empty:
        return {"p50": None, "p95": None, "p99": None}
    return {f"p{q}": round(float(values.quantile(q / 100)), 3) for q in (50, 95, 99)}
