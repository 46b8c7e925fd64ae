"""labkit over HTTP under a peak: a run whose workers are paced, and its API in another process.

Workers take ``rate * EVERY_SECONDS`` commands each ``EVERY_SECONDS`` (scheduled mode). So what they
sustain is a small part of what this machine can offer, and a peak of twenty times that can be
offered on the same machine.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse
from multiprocessing.connection import Connection
from typing import Any

import msgspec
import numpy as np

from labkit.api import create_app
from labkit.api.paths import fields_in, filled
from labkit.api.protection import Protection
from labkit.api.request_options import derived
from labkit.api.serve import listen, server
from labkit.errors import TimedOut
from labkit.experiments.backlog import behind
from labkit.experiments.burst.arm import Client, Told
from labkit.experiments.burst.clients import may_open_files
from labkit.experiments.load.observer import Watch
from labkit.experiments.load.sustainable import Crew
from labkit.experiments.processes import hear, process, settings_of
from labkit.experiments.verify.checkers import check, gather
from labkit.experiments.verify.history import Heard, History
from labkit.experiments.verify.verdict import Verdict
from labkit.lab import Lab
from labkit.messages import Command, Token, encode
from labkit.run.worker import calm_gc
from labkit.service import Operation, Service

EVERY_SECONDS = 0.1
#: How long clients wait for an answer, and for a view; and for anything at all.
WAIT_SECONDS, PATIENCE_SECONDS = 2, 30.0
#: One look takes commits for at most this long.
LOOK_SECONDS = 0.01
QUIET_SECONDS = 60.0
#: A server closes a connection that is idle for longer; uvicorn after 5 s.
IDLE_SECONDS = 2.0
#: What says that nothing was done.
TURNED_AWAY = ("/problems/limited", "/problems/overloaded")


class OverHttp:
    """The arm; ``rate`` is the number of commands a second that its workers are paced to."""

    name = "labkit"

    def __init__(self, service: Service, rate: float, client: str) -> None:
        self._service = service
        batch = max(1, round(rate * EVERY_SECONDS))
        self._crew = Crew(settings={"client": client, "batch_size": batch, "every": EVERY_SECONDS})

    @contextmanager
    def running(self, lab: str) -> Iterator[RunningOverHttp]:
        with (
            self._crew.working(lab, self._service) as run,
            process(serve, settings_of(run)) as api,
        ):
            hear(run, api)
            yield RunningOverHttp(run, self._service, api)


def serve(pipe: Connection, settings: dict[str, Any]) -> None:
    """Serve a run with each protection that comes, until b"end" comes; then with the next."""
    may_open_files()
    with Lab(**settings, start=False) as lab:
        calm_gc()
        pipe.send_bytes(b"ready")
        while True:
            protection = msgspec.json.decode(pipe.recv_bytes(), type=Protection)
            with listen("127.0.0.1", 0) as at:
                serving = server(create_app(lab, protection))
                thread = threading.Thread(target=serving.run, kwargs={"sockets": [at]})
                thread.start()
                pipe.send_bytes(str(at.getsockname()[1]).encode())
                pipe.recv_bytes()
                serving.should_exit = True
                thread.join()
                pipe.send_bytes(b"ended")


class RunningOverHttp:
    """See ``arm.Running``."""

    def __init__(self, lab: Lab, service: Service, api: Connection) -> None:
        self.lab, self.service, self._api = lab, service, api
        self._watch = Watch(lab, service.name)
        self._heard: dict[Token, tuple[int, Heard]] = {}
        self._commits: list[Heard] = []
        self._checked = 0.0
        lab.bus.listen(service.name)

    @contextmanager
    def protected(self, protection: Protection) -> Iterator[Callable[[int], Client]]:
        self._api.send_bytes(msgspec.json.encode(protection))
        port = int(hear(self.lab, self._api))
        try:
            yield partial(HttpClient, port, dict(self.service.public))
        finally:
            self._api.send_bytes(b"end")
            hear(self.lab, self._api)

    def id_of(self, key: str) -> str:
        return derived("command", key)

    def look(self) -> None:
        for commit in self.lab.bus.hear(self.service.name, LOOK_SECONDS):
            mark = Heard.of(self.service.name, commit)
            self._commits.append(mark)
            self._heard.setdefault(mark.token, (time.monotonic_ns(), mark))
        self._watch.look()
        if time.monotonic() - self._checked > 1:
            self._checked = time.monotonic()
            self.lab.check()

    def seen(self, told: Sequence[Told]) -> list[tuple[float, float]]:
        tokens = [each.token or Token(self.service.name, -1, -1) for each in told]
        places = np.array([(t.partition, t.offset) for t in tokens], np.int64).reshape(-1, 2)
        _, visible = self._watch.ends(places[:, 0], places[:, 1])
        none = (float("nan"), None)
        heard = [float(self._heard.get(token, none)[0]) for token in tokens]
        return list(zip(heard, visible.tolist(), strict=True))

    def judge(self, operations: Sequence[Operation]) -> Mapping[str, Verdict]:
        """Raises ``TimedOut`` if the workers do not come to rest."""
        deadline = time.monotonic() + QUIET_SECONDS
        while behind(self.lab):
            self.look()
            if time.monotonic() > deadline:
                raise TimedOut(
                    f"the workers are still busy after {QUIET_SECONDS:g} s; see "
                    f"{self.lab.of.logs()}, and run it again"
                )
        for operation in operations:
            if operation.token is None:
                continue
            if (found := self._heard.get(operation.token)) is None:
                operation.unknown("it was never heard of")
            else:
                operation.ok(found[1].answer)
        history = History()
        history.operations, history.heard = list(operations), self._commits
        return check(gather(self.lab, self.service.name), history)


class HttpClient:
    """One connection of the client with this number, who has an address of its own."""

    def __init__(self, port: int, public: Mapping[type[Command], str], number: int) -> None:
        self._public = public
        self._http = HTTPConnection(
            "127.0.0.1",
            port,
            timeout=PATIENCE_SECONDS,
            source_address=(f"127.0.0.{number + 2}", 0),
        )
        self._used = 0.0

    def send(self, command: Command, id: str, urgency: int) -> Told:
        method, _, path = self._public[type(command)].partition(" ")
        values = {name: getattr(command, name) for name in command.__struct_fields__}
        named = {name: str(values.pop(name)) for name in fields_in(path)}
        headers = {"Idempotency-Key": id, "Prefer": f"wait={WAIT_SECONDS}"}
        headers |= {"Content-Type": "application/json", "Priority": f"u={urgency}"}
        answer, body = self._ask(method, filled(path, named), encode(values), headers)
        if answer is None or answer.status not in (200, 201, 202, 409, 412):
            return _not_done(answer, body)
        service, partition, offset = body["token"].split("-")
        token = Token(service, int(partition), int(offset))
        return Told("taken", answer.status, token, where=body.get("resource", ""))

    def read(self, command: Command, told: Told) -> Told:
        assert told.token is not None
        token = "-".join(map(str, told.token))
        path = f"{told.where}?token={token}&timeout={WAIT_SECONDS}"
        answer, body = self._ask("GET", path, None, {})
        if answer is None or answer.status not in (200, 404):
            return _not_done(answer, body)
        age = answer.getheader("Age")
        return Told("taken", answer.status, age=None if age is None else float(age))

    def _ask(
        self, method: str, path: str, data: bytes | None, headers: dict[str, str]
    ) -> tuple[HTTPResponse | None, dict[str, Any]]:
        if time.monotonic() - self._used > IDLE_SECONDS:
            self._http.close()  # and opened again by the request
        self._used = time.monotonic()
        try:
            self._http.request(method, path, data, headers)
            answer = self._http.getresponse()
            return answer, json.loads(answer.read() or b"{}")
        except (OSError, HTTPException, ValueError) as error:
            self._http.close()
            return None, {"detail": f"{type(error).__name__}: {error}"}

    def close(self) -> None:
        self._http.close()


def _not_done(answer: HTTPResponse | None, body: Mapping[str, Any]) -> Told:
    """What a client knows who was not given what it asked for."""
    why = str(body.get("detail", ""))
    if answer is None:
        return Told("unknown", why=why)
    away = body.get("type") in TURNED_AWAY
    again = answer.getheader("Retry-After")
    return Told(
        "turned away" if away else "unknown",
        answer.status,
        retry_after=None if again is None else float(again),
        why=why,
    )
