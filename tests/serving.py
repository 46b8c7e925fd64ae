"""The API of a lab on a port of its own, in this process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from labkit.api import create_app, serve
from labkit.lab import Lab


class Served:
    """Where it is, and its end."""

    def __init__(self, url: str, server: uvicorn.Server, thread: threading.Thread) -> None:
        self.url = url
        self._server = server
        self._thread = thread

    def end(self, seconds: float = 20.0) -> bool:
        """As after a signal; whether it came to its end."""
        self._server.should_exit = True
        self._thread.join(seconds)
        return not self._thread.is_alive()


@contextmanager
def serving(lab: Lab) -> Iterator[Served]:
    """Serve a lab that has its workers; ended afterwards, if not before."""
    with serve.listen("127.0.0.1", 0) as at:
        server = serve.server(create_app(lab))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [at]}, daemon=True)
        thread.start()
        served = Served(serve.address(at), server, thread)
        try:
            yield served
        finally:
            assert served.end()


@contextmanager
def command(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`labkit api`, and where it serves; ended afterwards, if not before."""
    arguments = ("api", "--port", "0", *arguments)
    with subprocess.Popen(
        [sys.executable, "-m", "labkit", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    ) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line.startswith("http://127.0.0.1:"), process.communicate()
            yield process, line.split()[0]
        finally:
            process.kill()
