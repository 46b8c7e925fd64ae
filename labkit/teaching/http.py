"""The API of a lab over HTTP, from a notebook."""

from __future__ import annotations

import json
import threading
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from msgspec import Struct

#: Without the proxies of the environment: the server is in this process.
_direct = build_opener(ProxyHandler({}))
#: An HTTP server that has not answered by then will not.
HTTP_SECONDS = 60.0


class Reply(Struct, frozen=True):
    """What an HTTP server answered; ``body`` is JSON where it said so, and else text."""

    status: int
    headers: dict[str, str]
    body: Any


class Http:
    """The API of a lab on a free port, served by a thread of this process, and a client of it.

    Close it before the lab is used again.
    """

    def __init__(self, lab: Any, **protection: Any) -> None:
        """``protection``: settings of ``api.protection.Protection``, by name."""
        import uvicorn

        from labkit.api import create_app
        from labkit.api.protection import Protection
        from labkit.api.serve import Server, address, listen

        app, at = create_app(lab, Protection(**protection)), listen("127.0.0.1", 0)
        self.url = address(at)
        self._server = Server(uvicorn.Config(app, log_level="warning"), app.state.backend.end)
        # After a cell that failed nobody closes it; the process must end all the same.
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [at]}, daemon=True
        )
        self._thread.start()

    def get(self, path: str, **headers: str) -> Reply:
        """Ask; ``if_none_match`` is the header ``If-None-Match``."""
        return self._call(path, None, headers)

    def post(self, path: str, body: Any, **headers: str) -> Reply:
        """Send JSON."""
        return self._call(path, json.dumps(body).encode(), headers)

    def _call(self, path: str, data: bytes | None, headers: dict[str, str]) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = Request(self.url + path, data, {"Content-Type": "application/json"} | named)
        try:
            answer = _direct.open(request, timeout=HTTP_SECONDS)
        except HTTPError as error:  # which is an answer, too
            answer = error
        with answer:
            text = answer.read().decode()
            kind = answer.headers.get("content-type", "")
            body = json.loads(text) if text and "json" in kind else text
            return Reply(answer.status, dict(answer.headers), body)

    def close(self) -> None:
        """End the server."""
        self._server.should_exit = True
        self._thread.join()
