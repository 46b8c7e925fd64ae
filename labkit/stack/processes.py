"""Server processes that outlive the program that started them."""

import os
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

from labkit.errors import StackError
from labkit.stack.state import Process

# What a JVM or a locale setting of the user's shell would change in our servers.
_UNWANTED = ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "CLASSPATH", "LANGUAGE")

# Kafka's errors and Java's; mongod writes JSON, in which F is fatal and E an error.
_TELLING = ("ERROR", "Exception", '"s":"F"', '"s":"E"')


def environment() -> dict[str, str]:
    """Return the environment of every server.

    Under LC_ALL=C a JVM cannot open a path with non-ASCII characters, hence the UTF-8 locale.
    """
    env = {key: value for key, value in os.environ.items() if key not in _UNWANTED}
    env["LC_ALL"] = "C.UTF-8"
    return env


def launch(
    command: list[str], *, cwd: Path, log: Path, env: Mapping[str, str] | None = None
) -> psutil.Process:
    """Start a process that belongs to nobody: its own session, its parent gone, output to ``log``.

    Ctrl-C in the shell does not reach it, and a notebook kernel that ends its children when it
    shuts down does not find it.
    """
    script = 'log="$1"; shift; "$@" >>"$log" 2>&1 </dev/null & echo $!'
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", script, "sh", str(log), *command],
            cwd=cwd,
            env=dict(env or environment()),
            stdout=subprocess.PIPE,
            start_new_session=True,
            check=True,
        )
        return psutil.Process(int(done.stdout))
    except (OSError, subprocess.CalledProcessError, psutil.NoSuchProcess) as error:
        raise StackError(
            f"{command[0]} did not start: {last_line(log) or error}; its log is {log}"
        ) from error


def find(process: Process | None, mark: str) -> psutil.Process | None:
    """Return the living process of this record, or None.

    A pid alone proves nothing: after a reboot it may be anybody's. So the time of its creation
    and ``mark``, an argument of its command line, must agree too.
    """
    if process is None:
        return None
    try:
        found = psutil.Process(process.pid)
        # A minute, since a corrected clock moves the time that is computed for a living process.
        if abs(found.create_time() - process.started) > 60.0:
            return None
        deadline = time.monotonic() + 10.0
        while not _arguments(found) and is_alive(found) and time.monotonic() < deadline:
            time.sleep(0.01)
        if mark in _arguments(found) and is_alive(found):
            return found
    except psutil.Error:
        pass
    return None


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.ZombieProcess:
        return []


def marked(marks: Iterable[str]) -> list[psutil.Process]:
    """Return every living process that carries one of these arguments in its command line."""
    wanted = set(marks)
    found = []
    for process in psutil.process_iter():
        try:
            if wanted.intersection(process.cmdline()) and is_alive(process):
                found.append(process)
        except psutil.Error:
            continue
    return found


def is_alive(process: psutil.Process) -> bool:
    """Return whether it runs; a zombie, dead but not yet waited for, does not.

    While a process of many threads ends, its first may be a zombie before the others have gone:
    until then they hold its ports and its files.
    """
    try:
        if process.is_running():
            zombie = process.status() == psutil.STATUS_ZOMBIE
            return not zombie or int(process.num_threads()) > 1
    except psutil.Error:
        pass
    return False


def stop(processes: Iterable[psutil.Process], patience: float = 20.0) -> None:
    """End processes: SIGTERM, at most ``patience`` seconds, SIGKILL; returns when none is alive."""
    alive = [process for process in processes if is_alive(process)]
    for signal in ("terminate", "kill"):
        for process in alive:
            try:
                getattr(process, signal)()
            except psutil.NoSuchProcess:
                pass
            except psutil.AccessDenied as error:
                raise StackError(
                    f"process {process.pid} belongs to another user: let its owner stop it"
                ) from error
        # wait_procs would wait for a zombie that nobody reaps, so ask in short rounds.
        waited = 0.0
        while alive and waited < (patience if signal == "terminate" else 10.0):
            psutil.wait_procs(alive, timeout=0.05)
            waited += 0.05
            alive = [process for process in alive if is_alive(process)]
    if alive:
        pids = ", ".join(str(process.pid) for process in alive)
        raise StackError(f"process {pids} does not end, not even by SIGKILL: see `ps` and `dmesg`")


def last_line(log: Path) -> str:
    """Return the line of a log that best says why its writer died; "" if there is none."""
    try:
        tail = log.read_text(errors="replace")[-64_000:].splitlines()
    except OSError:
        return ""
    lines = [line.strip() for line in tail if line.strip() and not line.startswith("\tat ")]
    telling = [
        line
        for line in lines
        if any(word in line for word in ("ERROR", "Exception", '"s":"F"', '"s":"E"'))
    ]
    return (telling or lines or [""])[-1][:400]
