"""Many trials on all processors, and none of them with a log line for each retry."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from typing import TypeVar

import structlog

from labkit.service import Service
from labkit.simulation.scenario import Scenario

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def on_all_processors(
    work: Callable[[list[Item]], Iterable[Result]],
    items: Sequence[Item],
    chunk: int,
    processes: int,
) -> Iterator[Iterable[Result]]:
    """The results of ``work``, one for each item and in their order; each process is given a
    ``chunk`` of items at once. One process is this one."""
    if processes == 1:
        with closing(_each(work, list(items))) as results:
            yield results
        return
    chunks = (list(items[at : at + chunk]) for at in range(0, len(items), chunk))
    context = multiprocessing.get_context("spawn")
    deaf = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for this process
    with ProcessPoolExecutor(processes, context, signal.signal, deaf) as pool:
        jobs = [pool.submit(_all, work, some) for some in chunks]
        try:
            yield (result for job in jobs for result in job.result())
        finally:
            for job in jobs:
                job.cancel()


def _each(work: Callable[[list[Item]], Iterable[Result]], items: list[Item]) -> Generator[Result]:
    yield from work(items)


def _all(work: Callable[[list[Item]], Iterable[Result]], items: list[Item]) -> list[Result]:
    return list(work(items))


def processors(scenario: Scenario, wanted: int | None = None) -> int:
    """How many processes may try it: services that no other process could import are tried in
    this one."""
    alone = any(isinstance(service, Service) for service in scenario.services)
    return 1 if alone else wanted or os.cpu_count() or 1


@contextmanager
def quiet() -> Iterator[None]:
    """Without a log line for each retry and new life."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    try:
        yield
    finally:
        structlog.configure(**before)
