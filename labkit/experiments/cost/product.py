"""labkit itself, used as its HTTP API uses it: one thread owns the bus, many wait for answers."""

from __future__ import annotations

from contextlib import suppress

from labkit.api.lab_thread import LabThread
from labkit.errors import TimedOut
from labkit.experiments.cost.arm import Reply
from labkit.lab import Lab
from labkit.messages import Command, Document
from labkit.read.queries import Queries
from labkit.read.standard import ById
from labkit.service import Service

#: A client sends a command again, with the same id, if it has no answer by then.
ANSWER_SECONDS = 20.0


class Product:
    """Commands over Kafka, reads from the view in MongoDB; the workers are the run's."""

    conflicts = 0

    def __init__(self, service: Service, lab: Lab) -> None:
        view = service.first_view
        assert view is not None
        self._service, self._lab = service, lab
        self._shown = f"{service.name}.{view.name}"
        self._collection = service.collection(view)
        self._thread = LabThread(lab)
        self._thread.start()
        self._queries = Queries(lab.store, lab.services)

    def send(self, command: Command, id: str) -> Reply:
        token = self._thread.send(command, id, None)
        if (answer := self._thread.answer(token, ANSWER_SECONDS)) is None:
            raise TimedOut(f"no answer to {id!r} within {ANSWER_SECONDS:g} s; send it again")
        return Reply(answer, token)

    def read(self, stream: str) -> Document | None:
        found: Document | None = self._queries.ask(ById(self._shown, stream))
        return found

    def documents(self) -> list[Document]:
        return self._lab.store.find(self._lab.where(self._collection), {})

    def states(self) -> list[Document]:
        return [d["state"] for d in self._lab.store.find(self._service.states, {})]

    def close(self) -> None:
        with suppress(Exception):
            self._thread.close()
