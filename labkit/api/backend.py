"""What the routes share: one lab, its thread, its routes and schemas."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping
from typing import Annotated

import msgspec
import stamina
from fastapi import Depends, Request, Response
from fastapi.responses import JSONResponse

from labkit.api.addresses import Addresses
from labkit.api.feed import Live
from labkit.api.fields import Schemas
from labkit.api.guard import Guard
from labkit.api.lab_thread import LabThread
from labkit.api.metrics import Metrics
from labkit.api.problems import Problem
from labkit.api.protection import OFF, Protection
from labkit.api.request_options import FreshOptions, Options, derived
from labkit.api.schema import CommandStatus, written
from labkit.api.updates import OpenStreams
from labkit.errors import Conflict, DecodeError, Duplicate, TimedOut, UsageError
from labkit.lab import Lab
from labkit.log.partition import fetch_records
from labkit.messages import Answer, Command, Document, Token
from labkit.ports.broker import Record, Source
from labkit.ports.clock import SYSTEM, Clock
from labkit.ports.ids import new_id
from labkit.ports.store import Writes
from labkit.read.freshness import Fresh, Position, Version
from labkit.read.queries import Queries
from labkit.run.jobs import KEYS, KEYS_CHECKPOINTS
from labkit.run.run import Role
from labkit.service.declared import key_of
from labkit.write.kept_answers import kept_answer
from labkit.write.names import undecodable_id

#: The time-out of readiness probes.
PROBE_SECONDS = 5.0
#: How long a request waits for another that uses the same idempotency key.
CLAIM_SECONDS = 5.0
#: The roles whose lag is measured.
WORKING: tuple[Role, ...] = ("handler", "relay", "projector", "process")


class Backend:
    """One lab behind HTTP. ``closing`` is set when the server begins to end."""

    def __init__(self, lab: Lab, protection: Protection = OFF, clock: Clock = SYSTEM) -> None:
        self.lab = lab
        self.metrics = Metrics()
        self.streams = OpenStreams()
        self.live = Live(self)
        self.closing = threading.Event()
        self._commands: dict[str, Source] = {}
        # Request threads read the views; only the lab's thread reads Kafka.
        self.queries = Queries(
            lab.store, lab.services, self.drive, lambda service: self._ends(f"{service}.events")
        )
        self.guard = Guard(protection, self.queries, self.metrics, clock)
        self.thread = LabThread(lab, self.guard.heard, lambda: self.guard.in_flight.services)
        self.addresses = Addresses(lab.services, self.queries)
        self.schemas = Schemas(
            [
                *(route.kind for route in self.addresses.commands),
                *(route.kind for route in self.addresses.queries),
            ]
        )

    def start(self) -> None:
        """Begin to serve."""
        self.lab.store.index(KEYS, [("at", 1)])
        self.thread.start()

    def end(self) -> None:
        """The server ends: streams stop, and waits for answers return."""
        self.closing.set()
        self.thread.release()

    def close(self) -> None:
        """Close the readers, within a bounded time."""
        self.closing.set()
        self.thread.close()
        for source in self._commands.values():
            source.close()

    def drive(self) -> None:
        """In memory, do what worker processes would do."""
        if self.lab.backend == "memory":
            self.thread.call(self.lab.drive)

    def _ends(self, topic: str) -> Mapping[int, int]:
        return self.guard.kafka(lambda: self.thread.call(lambda: self.lab.ends(topic)))

    def lags(self) -> dict[tuple[str, str], int]:
        """How many offsets the workers are behind, by role and service."""
        lab = self.lab
        places = [(role, host) for role in WORKING for host in lab.instances_of(role)]
        return self.thread.call(lambda: {place: lab.lag(*place) for place in places}, PROBE_SECONDS)

    # --- commands

    def submit(self, command: Command, options: Options, *, creates: bool = False) -> Response:
        """Send a command; answer at once, or with its outcome if the client waits."""
        guard = self.guard
        command_id = self._claim(command, options)
        token = guard.kafka(lambda: self.thread.send(command, command_id, options.expected_version))
        guard.sent(options.request, token)
        answer, wait = None, options.wait
        if wait and not guard.may_wait(options.request, token.service):
            wait = None
        if wait is not None:
            answer = self.thread.answer(token, wait)
        status = self._status(token, command, command_id, answer or self.thread.heard(token))
        self.metrics.command(type(command).__name__, status.status)
        headers = {"Labkit-Token": status.token}
        if wait is not None:
            headers["Preference-Applied"] = f"wait={wait}"
        if answer is None:
            headers["Location"] = f"/commands/{status.token}"
            return JSONResponse(status.model_dump(), 202, headers)
        if answer.outcome in ("refused", "dropped"):
            raise self._refused(answer, status, options, headers)
        headers["ETag"] = f'"{answer.version}"'
        if creates:
            headers["Location"] = status.resource
        return JSONResponse(status.model_dump(), 201 if creates else 200, headers)

    def _refused(
        self, answer: Answer, status: CommandStatus, options: Options, headers: dict[str, str]
    ) -> Problem:
        """412 if the expected version was wrong, else 409: a business rule."""
        expected = options.expected_version
        missed = expected is not None and expected != answer.version
        more = {"token": status.token, "version": answer.version, "resource": status.resource}
        if missed:
            return Problem("precondition", answer.reason, headers, **more)
        reason = answer.reason or "somebody dropped it as a dead letter"
        return Problem("refused", reason, headers, **more)

    def _claim(self, command: Command, options: Options) -> str:
        """The id of the command; the same key always gives the same id.

        The use of the key is stored before the command is sent, so every process of the API detects
        another body under the same key, also after a restart.
        """
        if options.idempotency_key is None:
            return new_id()
        key = derived("key", options.idempotency_key)
        used = hashlib.sha256(msgspec.json.encode([command, options.expected_version])).hexdigest()
        document = {"_id": key, "used": used, "at": time.time_ns() // 1_000_000}
        for attempt in stamina.retry_context(
            on=Conflict,
            attempts=None,
            timeout=CLAIM_SECONDS,
            wait_initial=0.01,
            wait_max=0.2,
            wait_jitter=0.01,
        ):
            with attempt:  # others may use the key in this very moment
                self.guard.mongodb(lambda: self._insert(key, document, options))
        return derived("command", options.idempotency_key)

    def _insert(self, key: str, document: Document, options: Options) -> None:
        """Note the use of a key; raises ``Conflict`` while another use of it is being noted."""
        try:
            self.lab.store.advance(KEYS_CHECKPOINTS, [], Writes(inserts={KEYS: [document]}))
        except Duplicate:
            known = self.lab.store.load(KEYS, [key]).get(key)
            if known is None:  # not by a majority yet
                raise Conflict(f"Idempotency-Key {options.idempotency_key!r} is in use") from None
            if known["used"] != document["used"]:
                raise Problem(
                    "key-reused",
                    f"Idempotency-Key {options.idempotency_key!r} was used for another command; "
                    "take a new one",
                ) from None

    def status(self, text: str) -> CommandStatus:
        """The outcome of a command: from the answers heard, or from its stream's bookkeeping.

        The bookkeeping is saved some tenths of a second after the answer.
        """
        token = self.token(text)
        guard, service = self.guard, self.lab.services[token.service]
        record = guard.kafka(lambda: self.thread.call(lambda: self._record(token)))
        answer = self.thread.heard(token)
        if answer is None:
            answer = guard.mongodb(lambda: kept_answer(self.lab.store, service, record))
        try:
            envelope = service.codec.decode_command(record.value)
        except DecodeError as error:  # whoever sent it, it is no command
            return CommandStatus(
                token=written(token),
                command_id=undecodable_id(record),
                command="",
                status=answer.outcome if answer else "pending",
                id=record.key.decode("utf-8", "backslashreplace"),
                resource=f"/commands/{written(token)}",
                reason=(answer.reason if answer else "") or str(error),
            )
        return self._status(token, envelope.body, envelope.id, answer)

    def _record(self, token: Token) -> Record:
        """The command as it stands in its topic; in the lab's thread."""
        name = f"{token.service}.commands"
        if name not in self._commands:
            topic = self.lab.topic_name(name)
            self._commands[name] = self.lab.of.broker_of(name).source(topic)
        source = self._commands[name]
        record = None
        if 0 <= token.offset < source.ends().get(token.partition, 0):
            record = fetch_records(source, token.partition, [token.offset])[token.offset]
        if record is None:
            raise Problem("not-found", f"no command has the token {written(token)!r}")
        return record

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
        """The token that was given out as this text; raises a problem if its service is unknown."""
        service, partition, offset = text.split("-")
        if service not in self.lab.services:
            raise Problem("not-found", f"this run has no service {service!r}")
        return Token(service, int(partition), int(offset))

    # --- queries

    def fresh(self, options: FreshOptions, version: Version | None = None) -> Fresh:
        """The freshness that a client asks for.

        Raises at once what a wait could never reach: a token without a command, or a version that
        the log does not have.
        """
        tokens = tuple(self.token(text) for text in options.token or ())
        strategy = options.freshness or (
            "token" if tokens else "version" if version is not None else "eventual"
        )
        goals = tokens + ((version,) if version is not None else ())
        fresh = Fresh(strategy, goals, options.timeout)
        if self.queries.behind(goals):
            for token in tokens:
                ends = self._ends(f"{token.service}.commands")
                if token.offset >= ends.get(token.partition, 0):
                    raise UsageError(f"no command has the token {written(token)!r}")
            if version is not None:
                self._check_exists(version, options.timeout)
        return fresh

    def _check_exists(self, version: Version, timeout: float) -> None:
        """Raises a problem if the view lacks a version after it has applied the whole log."""
        ends = self._ends(f"{version.service}.events")
        log = [Position(version.service, p, end) for p, end in ends.items() if end > 0]
        self.queries.until(log, timeout)
        try:
            self.queries.until([version], 0)
        except TimedOut:
            at = self.queries.behind([version]).get(version, version.version)
            what = f"version {version.version} of {version.stream!r}"
            raise Problem("not-found", f"there is no {what}, it is at {at}") from None


def backend_of(request: Request) -> Backend:
    """The backend of the app that serves a request."""
    found: Backend = request.app.state.backend
    return found


Here = Annotated[Backend, Depends(backend_of)]
