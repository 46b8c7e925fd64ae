"""Ports on the loopback interface."""

import random
import socket

from labkit.errors import StackError, UsageError

HOST = "127.0.0.1"

# Below the ephemeral range of Linux (32768 and up): any client may take an ephemeral port while
# the server of that port is down.
_RANGE = range(20_000, 32_000)


def is_free(port: int) -> bool:
    """Return whether a server can listen on this loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As Kafka and mongod do, so that a port in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def accepts(host: str, port: int, timeout: float = 1.0) -> bool:
    """Return whether a server accepts a connection within ``timeout`` seconds."""
    try:
        with socket.create_connection((host, port), timeout=timeout):
            return True
    except OSError:
        return False


def choose(kept: int, taken: set[int]) -> int:
    """Return ``kept`` if it is still free, otherwise a free port that is not in ``taken``."""
    if kept and kept not in taken and is_free(kept):
        return kept
    for port in random.sample(_RANGE, k=1000):
        if port not in taken and is_free(port):
            return port
    raise StackError(
        f"no free port between {_RANGE.start} and {_RANGE.stop} on {HOST}: close some programs, or "
        "choose ports with --kafka-port and --mongo-port"
    )


def demand(port: int, option: str) -> int:
    """Return ``port``, which the user chose, if a server can listen on it.

    Raises:
        UsageError: the number is not a port.
        StackError: the port is in use or not permitted.
    """
    if not 0 < port < 65536:
        raise UsageError(f"{option} must be between 1 and 65535, got {port}")
    if not is_free(port):
        raise StackError(
            f"port {port} ({option}) is busy or not permitted on {HOST}: free it, choose another, "
            f"or omit {option} to take any free port"
        )
    return port
