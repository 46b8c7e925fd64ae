"""Server processes that outlive the program that starts them."""

import os
import re
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

from labkit.errors import StackError
from labkit.stack.state import ServerProcess

# Settings of the user's shell that would change the behaviour of the servers.
_UNWANTED = ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "CLASSPATH", "LANGUAGE")

# Errors of Kafka and Java; mongod logs JSON with severity F (fatal) or E (error).
_ERRORS = ("ERROR", "Exception", '"s":"F"', '"s":"E"')


def environment() -> dict[str, str]:
    """Return the environment for a server: the user's, cleaned.

    The locale is UTF-8, because under LC_ALL=C a JVM cannot open a path with non-ASCII characters.
    """
    env = {key: value for key, value in os.environ.items() if key not in _UNWANTED}
    env["LC_ALL"] = "C.UTF-8"
    return env


def launch(
    command: list[str], *, cwd: Path, log: Path, env: Mapping[str, str] | None = None
) -> psutil.Process:
    """Start a detached process: in a new session, without a parent, with its output in ``log``.

    Ctrl-C in the shell does not reach it, and a notebook kernel that shuts down does not kill it.
    It may open as many files as the system allows: a shell's usual 1,024 are too few for the
    collections and topics of two dozen runs.
    """
    more_files = 'ulimit -S -n "$(ulimit -H -n)" 2>/dev/null'
    script = more_files + '; log="$1"; shift; "$@" >>"$log" 2>&1 </dev/null & echo $!'
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
            f"{command[0]} did not start: {last_line(log) or error}; see the log {log}"
        ) from error


def born(pid: int) -> float:
    """When a process was created, in seconds since the machine started; 0: none lives.

    With its pid this identifies a process, for a pid is used again. The wall clock would not do:
    when it is corrected, it shifts the creation times of all processes.
    """
    try:
        process = psutil.Process(pid)
        return process.create_time() - psutil.boot_time() if is_alive(process) else 0.0
    except psutil.NoSuchProcess:
        return 0.0


def same_birth(one: float, other: float) -> bool:
    """Whether two births are one; the machine's own start is known to the second only."""
    return abs(one - other) < 2.0


def find(process: ServerProcess | None, mark: str) -> psutil.Process | None:
    """Return the running process of this record, or None.

    After a reboot, another process may have the same pid. So the creation time and ``mark``, a
    command-line argument, must match too.
    """
    if process is None:
        return None
    try:
        found = psutil.Process(process.pid)
        if not same_birth(born(process.pid), process.started):
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


def version(command: list[str], pattern: str, what: str, todo: str) -> str:
    """Run a program that prints its version, and return the first group of ``pattern``.

    Raises:
        StackError: the program fails; the message is about ``what`` and ends with ``todo``.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=30,
            env=environment(),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StackError(f"{what} does not run ({error}): {todo}") from error
    output = (done.stderr + done.stdout).strip()
    match = re.search(pattern, output)
    if done.returncode or not match:
        first = (output.splitlines() or ["no output"])[0]
        raise StackError(f"{what} does not run (exit code {done.returncode}: {first}): {todo}")
    return match[1]


def marked(marks: Iterable[str]) -> list[psutil.Process]:
    """Return the running processes that have one of these command-line arguments."""
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
    """Return whether a process runs; a zombie does not.

    While a multi-threaded process exits, its main thread may be a zombie while other threads still
    run. Those threads hold the ports and files, so the process counts as alive.
    """
    try:
        if process.is_running():
            zombie = process.status() == psutil.STATUS_ZOMBIE
            return not zombie or int(process.num_threads()) > 1
    except psutil.Error:
        pass
    return False


def stop(processes: Iterable[psutil.Process], patience: float = 20.0) -> None:
    """Send SIGTERM, and SIGKILL after ``patience`` seconds; return when all processes are gone."""
    alive = [process for process in processes if is_alive(process)]
    for signal in ("terminate", "kill"):
        for process in alive:
            try:
                getattr(process, signal)()
            except psutil.NoSuchProcess:
                pass
            except psutil.AccessDenied as error:
                raise StackError(
                    f"process {process.pid} belongs to another user: ask its owner to stop it"
                ) from error
        # wait_procs never returns for a zombie without a parent, so poll in short rounds.
        waited = 0.0
        while alive and waited < (patience if signal == "terminate" else 10.0):
            psutil.wait_procs(alive, timeout=0.05)
            waited += 0.05
            alive = [process for process in alive if is_alive(process)]
    if alive:
        pids = ", ".join(str(process.pid) for process in alive)
        raise StackError(f"process {pids} survives SIGKILL: see `ps` and `dmesg`")


def last_line(log: Path) -> str:
    """Return the log line that best explains why a server died; "" if the log is empty."""
    return last_error(log) or (_lines(log) or [""])[-1][:400]


def last_error(log: Path, start: int = 0) -> str:
    """Return the last line after byte ``start`` of a log that is an error; "": there is none."""
    errors = [line for line in _lines(log, start) if any(word in line for word in _ERRORS)]
    return (errors or [""])[-1][:400]


def _lines(log: Path, start: int = 0) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(start, size_of(log) - 64_000))
            tail = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return [line.strip() for line in tail if line.strip() and not line.startswith("\tat ")]


def size_of(log: Path) -> int:
    """Return the bytes of a log, which may not exist yet."""
    return log.stat().st_size if log.exists() else 0


def cpu_seconds(process: psutil.Process) -> float:
    """What it has taken so far; raises ``psutil.Error`` if it is gone."""
    times = process.cpu_times()
    return float(times.user + times.system)
