"""Helper processes of an experiment: load, clients, probes; each has a pipe to its parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import util
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from labkit.errors import LabkitError, StackError, TimedOut
from labkit.experiments.verify.planted_bugs import plant_from_environment
from labkit.lab import Lab
from labkit.run.worker import SAFE_PATH

#: A process that says nothing for this long hangs.
PATIENCE_SECONDS = 60.0


@contextmanager
def process(target: Callable[..., None], *args: Any) -> Iterator[Connection]:
    """A process that runs ``target(pipe, *args)``; it is terminated afterwards."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_main, args=(target, there, *args), daemon=True)
    with _apart():
        process.start()
    there.close()  # so that we read an end of file when the child dies
    try:
        yield here
    finally:
        here.close()
        process.terminate()
        process.join()


@contextmanager
def _apart() -> Iterator[None]:
    """A process that is started here imports nothing from the current folder, and hears no Ctrl-C:
    that is for its parent, which terminates it."""
    safe = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    resource_tracker.ensure_running()  # it would unblock the signal later
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        del os.environ[SAFE_PATH]
        if safe is not None:
            os.environ[SAFE_PATH] = safe


def settings_of(lab: Lab) -> dict[str, Any]:
    """The arguments with which another process joins the run of a lab."""
    return {"name": lab.name, "run": lab.run, "client": lab.settings.client}


def fast_client() -> str:
    """The fastest installed client: for all of an experiment that is not measured."""
    return "confluent" if util.find_spec("confluent_kafka") else "kafka-python"


def harness_of(lab: Lab) -> dict[str, Any]:
    """The arguments with which a process joins the run that is not measured itself: it sends,
    listens or observes, and takes as little of the machine as possible."""
    return settings_of(lab) | {"client": fast_client()}


def on_fast_client(lab: Lab) -> Lab:
    """The same run in this process, on the fastest installed client."""
    return Lab(**harness_of(lab), start=False)


def steadily(pipe: Connection, rate: float, send: Callable[[int], object]) -> int:
    """Call ``send(0)``, ``send(1)``, ... at ``rate`` until a message arrives; how many calls."""
    began, sent = time.monotonic(), 0
    while not pipe.poll(max(0.0, began + sent / rate - time.monotonic())):
        send(sent)
        sent += 1
    return sent


def _main(target: Callable[..., None], pipe: Connection, *args: Any) -> None:
    if "LABKIT_PLANT" in os.environ:
        plant_from_environment()
    try:
        target(pipe, *args)
    except LabkitError as error:
        print(f"{target.__name__.strip('_')}: {error.line}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (BrokenPipeError, EOFError):
        pass  # the parent is gone, or needs no more


def hear(lab: Lab, pipe: Connection) -> bytes:
    """Its next message; raises ``TimedOut``, and ``StackError`` if it or a server is gone."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not pipe.poll(1.0):
        lab.check()
        if time.monotonic() > deadline:
            raise TimedOut(
                f"a process of the bench said nothing for {PATIENCE_SECONDS:g} s; see "
                f"{lab.of.logs()}, and run it again"
            )
    try:
        return pipe.recv_bytes()
    except EOFError:
        raise StackError("a process of the bench died; its reason is above") from None
