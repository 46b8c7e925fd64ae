"""``labkit api``: the HTTP API and the live page of a run, protected as asked for."""

from __future__ import annotations

from typing import Annotated

import typer

from labkit.cli.options import (
    Client,
    LabName,
    Partitions,
    Processes,
    Services,
    choice,
    number,
    option,
    whole,
)
from labkit.cli.servers import say
from labkit.run.settings import DEFAULTS, Settings

RATE = typer.Option(metavar="RATE", help="Requests of one client, at most: 50/second, say.")
WHOLE_RATE = typer.Option(metavar="RATE", help="The same for all clients together.")
BREAKER = "After this number of failures in a row, ask Kafka or MongoDB no more. 0: go on asking."
IN_FLIGHT = "Commands that wait for their answers, at most. 0: any number."
RESERVE = "Share of them that is kept for urgent ones (header Priority: u=0 to u=2)."
DEGRADE = "Let nobody wait while the views are this number of seconds behind. 0: let them wait."


def api(
    run: Annotated[
        str | None, typer.Option(help="The run to join; by default a new one, with workers.")
    ] = None,
    lab: LabName = "lab",
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, option("Port to listen at; 0: any free port.", whole(0, 65_535))] = 8000,
    services: Services = None,
    processes: Processes = None,
    client: Client = DEFAULTS.client,
    partitions: Partitions = DEFAULTS.partitions,
    limit_client: Annotated[str, RATE] = "",
    limit: Annotated[str, WHOLE_RATE] = "",
    window: Annotated[str, choice("How limits count", ("moving", "fixed"))] = "moving",
    breaker: Annotated[int, option(BREAKER, whole(0, 1_000))] = 0,
    breaker_reset: Annotated[float, typer.Option(help="Seconds until one may try again.")] = 10.0,
    in_flight: Annotated[int, option(IN_FLIGHT, whole(0, 10_000_000))] = 0,
    reserve: Annotated[float, option(RESERVE, number(0, 0.5))] = 0.2,
    degrade: Annotated[float, option(DEGRADE, number(0, 3_600))] = 0.0,
) -> None:
    """Serve the HTTP API and a live page at /: commands, queries, updates, metrics.

    What protects it when too many come at once is off by default (docs/protection.md).
    """
    from labkit.api import serve
    from labkit.api.protection import Protection

    protection = Protection(
        limit_client=limit_client,
        limit=limit,
        window=window,  # type: ignore[arg-type]
        breaker=breaker,
        breaker_reset=breaker_reset,
        in_flight=in_flight,
        reserve=reserve,
        degrade=degrade,
    ).check()
    with serve.listen(host, port) as at:
        settings = Settings(client=client, partitions=partitions)
        serve.api(lab, run, at, settings, say, services, processes or (), protection)
