"""Start worker processes of a run, and wait until they own their partitions."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from labkit.errors import StackError
from labkit.run.positions import Positions
from labkit.run.run import Run
from labkit.run.supervisor import Instructions, Workers
from labkit.run.worker import Worker

READY_SECONDS = 60.0


def start_workers(run: Run, workers: Sequence[Worker], registry: Path) -> Workers:
    """A supervisor with these workers, which it names in the file ``registry``."""
    return Workers(instructions(run, workers, registry), run.environment())


def instructions(run: Run, workers: Sequence[Worker], registry: Path) -> Instructions:
    """What the supervisor of these workers is told."""
    return Instructions(
        registry=str(registry),
        logs=str(run.logs()),
        run=run.run,
        workers=list(workers),
        commands=[run.worker_command(worker) for worker in workers],
    )


def wait_until_owned(
    run: Run,
    positions: Positions,
    workers: Sequence[Worker],
    before: dict[str, int],
    started: Workers,
    check: Callable[[], None],
) -> None:
    """Wait until each partition that ``workers`` read has a new owner, who has raised its epoch.

    ``before``: the epochs before they were started. ``check`` raises if a server is gone. Raises
    ``StackError`` where workers die or are late.
    """
    wanted = {
        f"{reader.name}:{partition}"
        for worker in workers
        for reader in run.readers(worker.role, worker.service)
        for partition in range(run.partitions)
    }
    deadline = time.monotonic() + READY_SECONDS
    while missing := {id for id in wanted if positions.epochs().get(id, 0) <= before.get(id, 0)}:
        check()
        if why := started.deaths():
            raise StackError(f"workers die as they start: {why}; see {run.logs()}")
        if time.monotonic() > deadline:
            late = f"the workers do not own {sorted(missing)} after {READY_SECONDS:g} s"
            raise StackError(f"{late}; see {run.logs()}")
        time.sleep(0.05)
