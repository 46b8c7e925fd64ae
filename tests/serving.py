"""The API of a lab on a port of its own, in this process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

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


class Below:
    """A proxy that serves an app below a prefix, and does not tell it; nothing else is there."""

    PREFIX = "/user/me/proxy/8000"

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.state = getattr(app, "state", None)
        #: The addresses that left the prefix.
        self.lost: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if not scope["path"].startswith(f"{self.PREFIX}/"):
                self.lost.append(scope["path"])
                await PlainTextResponse("outside", 418)(scope, receive, send)
                return
            raw = scope["raw_path"].removeprefix(self.PREFIX.encode())
            scope = {**scope, "path": scope["path"].removeprefix(self.PREFIX), "raw_path": raw}
        await self._app(scope, receive, send)


@contextmanager
def serving(lab: Lab, proxy: Callable[[Any], Any] = lambda app: app) -> Iterator[Served]:
    """Serve a lab that has its workers; ended afterwards, if not before."""
    with serve.listen("127.0.0.1", 0) as at:
        server = serve.server(proxy(create_app(lab)))
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
