"""Ports on loopback: which are free, which answer."""

import random
import socket

from labkit.errors import StackError, UsageError

HOST = "127.0.0.1"

# Below the range that Linux gives to outgoing connections (32768 and up): a port from there may
# be taken by any client while its server is down.
_RANGE = range(20_000, 32_000)


def is_free(port: int) -> bool:
    """Return whether a server could listen on this port of loopback now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As Kafka and mongod do: a port in TIME_WAIT from the last run is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def accepts(host: str, port: int, timeout: float = 1.0) -> bool:
    """Return whether something accepts a connection there, within ``timeout`` seconds."""
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
        "name ports with --kafka-port and --mongo-port"
    )


def demand(port: int, option: str) -> int:
    """Return a port that the user named, if a server can listen on it.

    Raises:
        UsageError: it is no port number.
        StackError: something else listens there, or it is not allowed.
    """
    if not 0 < port < 65536:
        raise UsageError(f"{option} must be between 1 and 65535, got {port}")
    if not is_free(port):
        raise StackError(
            f"port {port} ({option}) is busy or not allowed on {HOST}: free it, or choose another "
            "(leave the option out, and a free one is taken)"
        )
    return port
