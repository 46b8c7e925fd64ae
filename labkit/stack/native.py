"""Kafka and mongod as processes of this machine, without Docker."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from labkit.errors import StackError, Unreachable, UsageError
from labkit.stack import broker, jars, java, mongod, ports
from labkit.stack.ports import HOST
from labkit.stack.processes import find, is_alive, last_line, marked, stop
from labkit.stack.state import Process, Report, State, lab_folder, save, writing

PATIENCE_S = 90.0
# Kafka's and mongod's first files take about 350 MB; less, and they die half-way.
LEAST_FREE_MB = 600


def alive(lab: str, state: State) -> tuple[psutil.Process | None, psutil.Process | None]:
    """Return the processes of Kafka and mongod that live, each verified to be ours."""
    folder = lab_folder(lab)
    return find(state.kafka, broker.mark(folder)), find(state.mongo, mongod.mark(folder))


def is_up(lab: str, state: State) -> bool:
    """Return whether both processes live and their ports accept: a check of a few milliseconds."""
    return (
        all(alive(lab, state))
        and ports.accepts(HOST, state.kafka_port)
        and ports.accepts(HOST, state.mongo_port)
    )


def start(lab: str, state: State, kafka_port: int, mongo_port: int, report: Report) -> None:
    """Start what does not run, wait until both answer, and save the state after every step.

    Args:
        lab: its name; the caller holds its lock.
        state: changed in place.
        kafka_port: 0 for the last one if it is free, otherwise any free one.
        mongo_port: the same.
        report: gets a line for each step.

    Raises:
        StackError: a server is missing or dies. What this call has started is stopped again.
    """
    kafka, mongo = alive(lab, state)
    asked = kafka_port or mongo_port
    if state.up and not asked and is_up(lab, state) and _both_answer(state):
        report(f"lab {lab!r} is up already")
        return
    if kafka or mongo:
        # One that does not answer may have been killed this instant.
        time.sleep(0.5)
        kafka, mongo = alive(lab, state)
    # What is missing on this machine is said before anything is downloaded or started.
    if kafka is None:
        java.find()
    if mongo is None:
        mongod.find()
    folder = lab_folder(lab)
    _prepare(folder)
    jars.ensure(report)
    deadline = time.monotonic() + PATIENCE_S
    _stop_strangers(lab, state, report)
    started: list[psutil.Process] = []
    begun = time.monotonic()
    try:
        _choose_ports(state, kafka, mongo, kafka_port, mongo_port)
        if mongo is None:
            if state.member_port not in (0, state.mongo_port):
                report(f"the port of mongod changes to {state.mongo_port}")
                _move_mongod(folder, state.mongo_port, deadline)
                state.member_port = state.mongo_port
            mongo = mongod.start(folder, state.mongo_port)
            started.append(mongo)
            state.mongo = Process(mongo.pid, mongo.create_time(), state.mongo_port)
            save(lab, state)
            report(f"mongod starts on {HOST}:{state.mongo_port} (pid {mongo.pid})")
        if kafka is None:
            kafka = broker.start(folder, state.kafka_port, state.controller_port)
            started.append(kafka)
            state.kafka = Process(kafka.pid, kafka.create_time(), state.kafka_port)
            save(lab, state)
            report(f"Kafka starts on {HOST}:{state.kafka_port} (pid {kafka.pid})")
        with _dead_or_late(mongo, folder / "logs" / "mongo.log", "mongod"):
            _until(mongo, lambda: ports.accepts(HOST, state.mongo_port), deadline)
            _until(mongo, lambda: mongod.become_primary(state.mongo_port), deadline)
        report(f"mongod answers after {time.monotonic() - begun:.1f} s")
        with _dead_or_late(kafka, folder / "logs" / "kafka.log", "Kafka"):
            _until(kafka, lambda: ports.accepts(HOST, state.kafka_port), deadline)
            _until(kafka, lambda: broker.answers(state.kafka_port), deadline)
        report(f"Kafka answers after {time.monotonic() - begun:.1f} s")
    except BaseException:
        # Ctrl-C included: an `up` that did not come to its end leaves nothing behind.
        stop([*started, *_strangers(lab, state)])
        raise
    state.member_port = state.mongo_port
    state.bootstrap = f"{HOST}:{state.kafka_port}"
    state.mongo_uri = mongod.uri(state.mongo_port)


def _move_mongod(folder: Path, port: int, deadline: float) -> None:
    process = mongod.start(folder, port, alone=True)
    try:
        with _dead_or_late(process, folder / "logs" / "mongo.log", "mongod"):
            _until(process, lambda: ports.accepts(HOST, port), deadline)
            _until(process, lambda: mongod.record_port(port), deadline)
    finally:
        stop([process])


def _both_answer(state: State) -> bool:
    return broker.answers(state.kafka_port) and mongod.answers(state.mongo_port)


def leftovers(lab: str) -> list[psutil.Process]:
    """Return every process of this lab, whether its state knows it or not."""
    return marked([broker.mark(lab_folder(lab)), mongod.mark(lab_folder(lab))])


def shut_down(lab: str, state: State) -> bool:
    """Stop Kafka and mongod, also those of which the state knows nothing; returns if any ran."""
    # The known ones first: one that is just ending has no command line to be found by any more.
    known = [process for process in alive(lab, state) if process is not None]
    running = {process.pid: process for process in [*known, *leftovers(lab)]}
    stop(running.values())
    state.kafka = state.mongo = None
    with contextlib.suppress(OSError):
        for left in (lab_folder(lab) / "tmp").iterdir():
            left.unlink(missing_ok=True)
    return bool(running)


def _prepare(folder: Path) -> None:
    with writing(folder):
        for name in ("kafka", "mongo", "logs", "tmp"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free // 1_000_000
    if free < LEAST_FREE_MB:
        raise StackError(
            f"the disk of {folder} is full: {free} MB are free, at least {LEAST_FREE_MB} MB are "
            "needed; free some space, or set LABKIT_HOME to a folder on another disk"
        )


def _strangers(lab: str, state: State) -> list[psutil.Process]:
    known = {process.pid for process in alive(lab, state) if process is not None}
    return [process for process in leftovers(lab) if process.pid not in known]


def _stop_strangers(lab: str, state: State, report: Report) -> None:
    """End what a killed `up` left: it holds the locks of the data folders."""
    strangers = _strangers(lab, state)
    if strangers:
        pids = ", ".join(str(process.pid) for process in strangers)
        report(f"stopping what an interrupted run left behind (pid {pids})")
        stop(strangers)


def _choose_ports(
    state: State,
    kafka: psutil.Process | None,
    mongo: psutil.Process | None,
    kafka_port: int,
    mongo_port: int,
) -> None:
    for running, now, wanted, option in (
        (kafka, state.kafka_port, kafka_port, "--kafka-port"),
        (mongo, state.mongo_port, mongo_port, "--mongo-port"),
    ):
        if running and wanted and wanted != now:
            raise StackError(f"{option} {wanted}: it runs on port {now}; `labkit down` first")
    if kafka_port and kafka_port == mongo_port:
        raise UsageError(f"--kafka-port and --mongo-port are both {kafka_port}: choose two")
    taken = {kafka_port, mongo_port} - {0}
    if kafka is None:
        if kafka_port:
            state.kafka_port = ports.demand(kafka_port, "--kafka-port")
        else:
            state.kafka_port = ports.choose(state.kafka_port, taken)
        taken.add(state.kafka_port)
        state.controller_port = ports.choose(state.controller_port, taken)
        taken.add(state.controller_port)
    if mongo is None:
        if mongo_port:
            state.mongo_port = ports.demand(mongo_port, "--mongo-port")
        else:
            state.mongo_port = ports.choose(state.mongo_port, taken)


class _DiedError(Exception):
    """The process ended while it was waited for."""


class _LateError(Exception):
    """It lives, but did not answer in time."""


@contextlib.contextmanager
def _dead_or_late(process: psutil.Process, log: Path, name: str) -> Iterator[None]:
    try:
        yield
    except (_DiedError, _LateError) as error:
        if not is_alive(process):
            raise StackError(
                f"{name} died while it started: {last_line(log) or 'it said nothing'} (log: {log})"
            ) from error
        raise Unreachable(
            f"{name} (pid {process.pid}) did not answer within {PATIENCE_S:.0f} s; its last word: "
            f"{last_line(log)} (log: {log}); `labkit down`, then `labkit up`"
        ) from error


def _until(process: psutil.Process, ready: Callable[[], bool], deadline: float) -> None:
    while not ready():
        if not is_alive(process):
            raise _DiedError
        if time.monotonic() > deadline:
            raise _LateError
        time.sleep(0.05)
