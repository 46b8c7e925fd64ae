"""What the routes share: one lab, its desk, and how a request becomes a command or a query."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from fastapi import Depends, Request, Response
from fastapi.responses import JSONResponse

from labkit.api.addresses import Addresses
from labkit.api.feed import Live
from labkit.api.fields import Schemas
from labkit.api.lab_thread import LabThread
from labkit.api.metrics import Metrics
from labkit.api.problems import Problem
from labkit.api.request_options import FreshOptions, Options
from labkit.api.schema import CommandStatus, written
from labkit.api.updates import OpenStreams
from labkit.errors import Duplicate, TimedOut, UsageError
from labkit.lab import Lab
from labkit.log.partition import fetch_records
from labkit.messages import Answer, Command, Token
from labkit.ports.broker import Source
from labkit.ports.ids import new_id
from labkit.ports.store import Writes
from labkit.read.freshness import Fresh, Position, Version
from labkit.read.queries import Queries
from labkit.run.run import Role
from labkit.service.declared import key_of
from labkit.write.stream_state import StreamState

#: Who asks whether it is ready waits no longer.
PROBE_SECONDS = 5.0
#: Idempotency keys with what they were used for, kept as long as the run.
KEYS = "api.keys"
CHECKPOINTS = "api.checkpoints"

#: Without these nothing goes on.
WORKING: tuple[Role, ...] = ("handler", "relay", "projector", "process")


class Backend:
    """One lab behind HTTP. ``closing`` is set when the server begins to end."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.desk = LabThread(lab)
        self.metrics = Metrics()
        self.streams = OpenStreams()
        self.live = Live(self)
        self.closing = threading.Event()
        self._commands: dict[str, Source] = {}
        # Views are read by the threads of the requests; what Kafka has to say, by the desk alone.
        self.queries = Queries(
            lab.store, lab.services, self.drive, lambda service: self._ends(f"{service}.events")
        )
        self.addresses = Addresses(lab.services, self.queries)
        self.schemas = Schemas(
            [
                *(route.kind for route in self.addresses.commands),
                *(route.kind for route in self.addresses.queries),
            ]
        )

    def start(self) -> None:
        """Begin to serve."""
        self.lab.store.index(KEYS, [("_id", 1)])
        self.desk.start()

    def end(self) -> None:
        """The server ends: streams stop, and nobody waits for an answer any longer."""
        self.closing.set()
        self.desk.release()

    def close(self) -> None:
        """Bounded in time."""
        self.closing.set()
        self.desk.close()
        for source in self._commands.values():
            source.close()

    def drive(self) -> None:
        """In memory, what the worker processes would do."""
        if self.lab.backend == "memory":
            self.desk.call(self.lab.drive)

    def _ends(self, topic: str) -> Mapping[int, int]:
        return self.desk.call(lambda: self.lab.ends(topic))

    def lags(self) -> dict[tuple[str, str], int]:
        """How many offsets the workers are behind, by role and service."""
        lab = self.lab
        places = [(role, host) for role in WORKING for host in lab.instances_of(role)]
        return self.desk.call(lambda: {place: lab.lag(*place) for place in places}, PROBE_SECONDS)

    # --- commands

    def submit(self, command: Command, wishes: Options, *, creates: bool = False) -> Response:
        """Send a command and answer as asked: at once, or with what became of it."""
        command_id = self._claim(command, wishes)
        token = self.desk.send(command, command_id, wishes.expected_version)
        answer = None
        if wishes.wait is not None:
            answer = self.desk.answer(token, wishes.wait)
        status = self._status(token, command, command_id, answer or self.desk.heard(token))
        self.metrics.command(type(command).__name__, status.status)
        headers = {"Labkit-Token": status.token}
        if wishes.wait is not None:
            headers["Preference-Applied"] = f"wait={wishes.wait}"
        if answer is None:
            headers["Location"] = f"/commands/{status.token}"
            return JSONResponse(status.model_dump(), 202, headers)
        if answer.outcome in ("refused", "dropped"):
            raise self._refused(answer, status, wishes, headers)
        headers["ETag"] = f'"{answer.version}"'
        if creates:
            headers["Location"] = status.resource
        return JSONResponse(status.model_dump(), 201 if creates else 200, headers)

    def _refused(
        self, answer: Answer, status: CommandStatus, wishes: Options, headers: dict[str, str]
    ) -> Problem:
        """Where the expected version was another, that is why; all else is a business rule."""
        expected = wishes.expected_version
        missed = expected is not None and expected != answer.version
        more = {"token": status.token, "version": answer.version, "resource": status.resource}
        if missed:
            return Problem(412, "precondition", answer.reason, headers, **more)
        reason = answer.reason or "somebody dropped it as a dead letter"
        return Problem(409, "refused", reason, headers, **more)

    def _claim(self, command: Command, wishes: Options) -> str:
        """The id of the command: with a key always the same, and the key is kept for it.

        What the key was used for is written before the command is sent, so that every process of
        the API, now or after a restart, knows another body under the same key.
        """
        if wishes.idempotency_key is None:
            return new_id()
        key = derived("key", wishes.idempotency_key)
        used = hashlib.sha256(msgspec.json.encode([command, wishes.expected_version])).hexdigest()
        document = {"_id": key, "used": used, "at": time.time_ns() // 1_000_000}
        try:
            self.lab.store.advance(CHECKPOINTS, [], Writes(inserts={KEYS: [document]}))
        except Duplicate:
            known = self.lab.store.load(KEYS, [key])[key]
            if known["used"] != used:
                raise Problem(
                    422,
                    "key-reused",
                    f"Idempotency-Key {wishes.idempotency_key!r} was used for another command; "
                    "take a new one",
                ) from None
        return derived("command", wishes.idempotency_key)

    def status(self, text: str) -> CommandStatus:
        """What has become of a command: from the answers heard, or its stream's bookkeeping.

        That is saved some tenths of a second after the answer, and knows the newest 1,000 commands
        of the stream.
        """
        token = self.token(text)
        envelope = self.desk.call(lambda: self._envelope(token))
        answer = self.desk.heard(token)
        if answer is None:
            service = self.lab.services[token.service]
            stream = envelope.body.stream
            found = self.lab.store.load(service.states, [stream]).get(stream)
            if found is not None:
                kept = StreamState.load(found, service.state)
                if envelope.id in kept.seen:
                    answer = kept.seen[envelope.id][0]
                elif token.offset in kept.held:
                    answer = Answer("parked", kept.version, kept.parked or "waits")
                elif token.offset in kept.scheduled:
                    answer = Answer("scheduled", kept.version)
        return self._status(token, envelope.body, envelope.id, answer)

    def _envelope(self, token: Token) -> Any:
        """The command itself, from its topic; in the desk's thread."""
        name = f"{token.service}.commands"
        if name not in self._commands:
            topic = self.lab.topic_name(name)
            self._commands[name] = self.lab.of.broker_of(name).source(topic)
        source = self._commands[name]
        record = None
        if 0 <= token.offset < source.ends().get(token.partition, 0):
            record = fetch_records(source, token.partition, [token.offset])[token.offset]
        if record is None:
            raise Problem(404, "not-found", f"no command has the token {written(token)!r}")
        return self.lab.services[token.service].codec.decode_command(record.value)

    def _status(
        self, token: Token, command: Command, command_id: str, answer: Answer | None
    ) -> CommandStatus:
        resource = self.addresses.resource(command, f"/commands/{written(token)}")
        return CommandStatus(
            token=written(token),
            command_id=command_id,
            command=type(command).__name__,
            status=answer.outcome if answer else "pending",
            id=str(getattr(command, key_of(type(command)))),
            resource=resource,
            version=answer.version if answer else None,
            reason=answer.reason if answer else "",
        )

    def token(self, text: str) -> Token:
        """A token as it was given out; raises a problem for one of a backend that is not here."""
        service, partition, offset = text.split("-")
        if service not in self.lab.services:
            raise Problem(404, "not-found", f"this run has no service {service!r}")
        return Token(service, int(partition), int(offset))

    # --- queries

    def fresh(self, wishes: FreshOptions, version: Version | None = None) -> Fresh:
        """What a query is to wait for.

        Nobody waits for what cannot come: a token that no command has, a version that nobody can
        have been told of, since the view has passed the end of the log without it.
        """
        tokens = tuple(self.token(text) for text in wishes.token or ())
        strategy = wishes.freshness or (
            "token" if tokens else "version" if version is not None else "eventual"
        )
        goals = tokens + ((version,) if version is not None else ())
        fresh = Fresh(strategy, goals, wishes.timeout)
        if self.queries.behind(goals):
            for token in tokens:
                ends = self._ends(f"{token.service}.commands")
                if token.offset >= ends.get(token.partition, 0):
                    raise UsageError(f"no command has the token {written(token)!r}")
            if version is not None:
                self._check_exists(version, wishes.timeout)
        return fresh

    def _check_exists(self, version: Version, timeout: float) -> None:
        """A version that the view lacks when it has passed all that is in the log now."""
        ends = self._ends(f"{version.service}.events")
        log = [Position(version.service, p, end) for p, end in ends.items() if end > 0]
        self.queries.until(log, timeout)
        try:
            self.queries.until([version], 0)
        except TimedOut:
            at = self.queries.behind([version]).get(version, version.version)
            what = f"version {version.version} of {version.stream!r}"
            raise Problem(404, "not-found", f"there is no {what}, it is at {at}") from None


def derived(what: str, key: str, principal: str = "anonymous") -> str:
    """An id that belongs to a principal and his idempotency key, and to nobody else.

    Until there is authentication, everybody is anonymous.
    """
    parts = "\0".join((what, principal, key))
    return hashlib.sha256(parts.encode()).hexdigest()[:32]


def new_stream(wishes: Options) -> str:
    """The id of what is created: derived from the key, or new."""
    key = wishes.idempotency_key
    return new_id() if key is None else derived("stream", key)


def backend_of(request: Request) -> Backend:
    """The backend of the app that a request came to."""
    found: Backend = request.app.state.backend
    return found


Here = Annotated[Backend, Depends(backend_of)]
