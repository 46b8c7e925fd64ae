"""A service of somebody's own: tickets of a help desk, with few rules and one view."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

from labkit.errors import Refused
from labkit.messages import Command, Document, Event, State
from labkit.service import Page, Query, Service, View, Views, Workload


class OpenTicket(Command, frozen=True):
    id: str
    customer: str


class Note(Command, frozen=True):
    """Note some texts; each is an event, and no text changes nothing."""

    id: str
    texts: list[str]


class TicketOpened(Event, frozen=True):
    customer: str


class Noted(Event, frozen=True):
    text: str


class Ticket(State, frozen=True):
    customer: str
    notes: int = 0


def open_ticket(ticket: Ticket | None, command: OpenTicket) -> Event:
    if ticket is not None:
        raise Refused(f"ticket {command.id!r} is open already")
    return TicketOpened(command.customer)


def note(ticket: Ticket | None, command: Note) -> Sequence[Event] | None:
    if ticket is None:
        raise Refused(f"there is no ticket {command.id!r}")
    return [Noted(text) for text in command.texts] or None


def evolve(ticket: Ticket | None, event: Event) -> Ticket:
    if isinstance(event, TicketOpened):
        return Ticket(event.customer)
    assert ticket is not None
    return Ticket(ticket.customer, ticket.notes + 1)


class Tickets(View):
    indexes = (("customer",),)

    def apply(self, document: Any, event: Any) -> Document:
        if isinstance(event, TicketOpened):
            return {"customer": event.customer, "notes": 0}
        return {**document, "notes": document["notes"] + 1}


class TicketsOf(Query, frozen=True):
    customer: str

    def read(self, views: Views) -> Page:
        return views.page(Tickets, customer=self.customer)


class Clerk:
    """The reference model."""

    def apply(self, state: Document | None, command: Command) -> Document | None:
        if isinstance(command, OpenTicket):
            return {"customer": command.customer, "notes": 0} if state is None else None
        assert isinstance(command, Note)
        return state and {**state, "notes": state["notes"] + len(command.texts)}

    def shown(self, document: Document) -> Document:
        return {field: document[field] for field in ("customer", "notes")}

    def compare(self, streams: dict[str, Document], views: dict[str, list[Document]]) -> list[str]:
        shown = {d["_id"]: self.shown(d) for d in views["desk.view.tickets"]}
        every = sorted(streams.keys() | shown.keys())
        return [
            f"ticket {id!r}: {streams.get(id)}, shown as {shown.get(id)}"
            for id in every
            if streams.get(id) != shown.get(id)
        ]


def opening(random: Random) -> Iterator[Command]:
    yield OpenTicket("first", "ann")


def calm(random: Random) -> Iterator[Command]:
    number = 0
    while True:
        number += 1
        yield OpenTicket(f"t{number}", f"c{random.randrange(5)}")


def busy(random: Random) -> Iterator[Command]:
    """One in ten opens a ticket; most notes have one text, others several or none."""
    number = 0
    while True:
        number += 1
        if random.random() < 0.1:
            yield OpenTicket(f"t{number}", f"c{random.randrange(5)}")
        else:
            id = "first" if random.random() < 0.3 else f"t{random.randrange(number + 1)}"
            yield Note(id, [f"n{n}" for n in range(random.choice((0, 1, 1, 1, 3)))])


def desk(name: str, **parts: Any) -> Service:
    return Service(
        name,
        decide={OpenTicket: open_ticket, Note: note},
        events=[TicketOpened, Noted],
        evolve=evolve,
        state=Ticket,
        **parts,
    )


SHOWN: dict[str, Any] = {"views": [Tickets()], "queries": [TicketsOf]}
WORKLOADS = {"calm": Workload(calm, opening), "busy": Workload(busy, opening)}
DESK = desk(
    "desk",
    workload=WORKLOADS,
    model=Clerk(),
    invariants={"at most 1,000 notes": lambda ticket: ticket.notes <= 1_000},
    **SHOWN,
)
#: Without a model; without a workload; and with the log alone.
PLAIN = desk("plain", workload=WORKLOADS, **SHOWN)
DUMB = desk("dumb", **SHOWN)
BLIND = desk("blind", workload=WORKLOADS, model=Clerk())
