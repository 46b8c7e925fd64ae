"""Kafka and mongod as processes on this machine, without Docker."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from labkit.errors import StackError, Unreachable, UsageError
from labkit.stack import broker, jars, java, limits, mongod, ports
from labkit.stack.ports import HOST
from labkit.stack.processes import born, find, is_alive, last_line, marked, size_of, stop
from labkit.stack.state import LabState, Report, ServerProcess, lab_folder, save, writing

PATIENCE_S = 90.0
# The first files of Kafka and mongod take about 350 MB; with less space the servers die.
LEAST_FREE_MB = 600
# Each run needs some files more: of its topics, and of its collections and their indexes.
OPEN_SHARE = 0.7


def alive(lab: str, state: LabState) -> tuple[psutil.Process | None, psutil.Process | None]:
    """Return the running Kafka and mongod of this lab, or None for each."""
    folder = lab_folder(lab)
    return find(state.kafka, broker.mark(folder)), find(state.mongo, mongod.mark(folder))


def is_up(lab: str, state: LabState) -> bool:
    """Return whether both processes run and accept connections; takes a few milliseconds."""
    return (
        all(alive(lab, state))
        and ports.accepts(HOST, state.kafka_port)
        and ports.accepts(HOST, state.mongo_port)
    )


def tight(lab: str, state: LabState) -> str:
    """Return one line if a server of this lab has most of the files open that it may; or ""."""
    for name, process in zip(("Kafka", "mongod"), alive(lab, state), strict=True):
        with contextlib.suppress(psutil.Error):
            used, most = limits.open_files(process) if process else (0, 0)
            if most and used > most * OPEN_SHARE:
                return (
                    f"{name} of lab {lab!r} has {used:,} of at most {most:,} files open: "
                    f"`labkit runs` lists the runs, `labkit runs drop --unowned` deletes those "
                    "that nobody uses"
                )
    return ""


def start(lab: str, state: LabState, kafka_port: int, mongo_port: int, report: Report) -> None:
    """Start the missing servers and wait until both answer; save the state after every step.

    Args:
        lab: the name of a lab; the caller holds its lock.
        state: changed in place.
        kafka_port: a port, or 0 for the last one if it is free, otherwise any free port.
        mongo_port: the same for mongod.
        report: receives one line for each step.

    Raises:
        StackError: a server is missing or dies. This call stops the servers that it started.
    """
    kafka, mongo = alive(lab, state)
    asked = kafka_port or mongo_port
    if state.up and not asked and is_up(lab, state) and _both_answer(state):
        report(f"lab {lab!r} is up already")
        return
    if kafka or mongo:
        # A server that does not answer may just have been killed; look again.
        time.sleep(0.5)
        kafka, mongo = alive(lab, state)
    # Report missing programs before the download and before the first start.
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
            log_from = size_of(folder / "logs" / "mongo.log")
            mongo = mongod.start(folder, state.mongo_port)
            started.append(mongo)
            state.mongo = ServerProcess(mongo.pid, born(mongo.pid), state.mongo_port, log_from)
            save(lab, state)
            report(f"mongod starts on {HOST}:{state.mongo_port} (pid {mongo.pid})")
        if kafka is None:
            log_from = size_of(folder / "logs" / "kafka.log")
            kafka = broker.start(folder, state.kafka_port, state.controller_port)
            started.append(kafka)
            state.kafka = ServerProcess(kafka.pid, born(kafka.pid), state.kafka_port, log_from)
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
        # Also on Ctrl-C: an interrupted `up` leaves no process running.
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


def _both_answer(state: LabState) -> bool:
    return broker.answers(state.kafka_port) and mongod.answers(state.mongo_port)


def leftovers(lab: str) -> list[psutil.Process]:
    """Return all processes of this lab, including those that its state does not record."""
    return marked([broker.mark(lab_folder(lab)), mongod.mark(lab_folder(lab))])


def shut_down(lab: str, state: LabState) -> bool:
    """Stop all servers of this lab, recorded or not; return whether any ran."""
    # Recorded processes first: an exiting process has no command line to find it by.
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


def _strangers(lab: str, state: LabState) -> list[psutil.Process]:
    known = {process.pid for process in alive(lab, state) if process is not None}
    return [process for process in leftovers(lab) if process.pid not in known]


def _stop_strangers(lab: str, state: LabState, report: Report) -> None:
    """Stop the servers of a killed `up`, because they hold the locks of the data folders."""
    strangers = _strangers(lab, state)
    if strangers:
        pids = ", ".join(str(process.pid) for process in strangers)
        report(f"stopping servers that an interrupted run left behind (pid {pids})")
        stop(strangers)


def _choose_ports(
    state: LabState,
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
            raise StackError(
                f"{option} {wanted}: the server runs on port {now}; run `labkit down` first"
            )
    if kafka_port and kafka_port == mongo_port:
        raise UsageError(
            f"--kafka-port and --mongo-port are both {kafka_port}: choose two different ports"
        )
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
    """The process ended before it was ready."""


class _LateError(Exception):
    """The process runs but did not answer in time."""


@contextlib.contextmanager
def _dead_or_late(process: psutil.Process, log: Path, name: str) -> Iterator[None]:
    try:
        yield
    except (_DiedError, _LateError) as error:
        if not is_alive(process):
            raise StackError(
                f"{name} died while it started: {last_line(log) or 'no output'}; see the log {log}"
            ) from error
        raise Unreachable(
            f"{name} (pid {process.pid}) did not answer within {PATIENCE_S:.0f} s: run "
            f"`labkit down`, then `labkit up`; last line of the log {log}: {last_line(log)}"
        ) from error


def _until(process: psutil.Process, ready: Callable[[], bool], deadline: float) -> None:
    while not ready():
        if not is_alive(process):
            raise _DiedError
        if time.monotonic() > deadline:
            raise _LateError
        time.sleep(0.05)
