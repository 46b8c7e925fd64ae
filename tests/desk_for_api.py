"""A service of somebody's own, with what the API must cope with: bounds, nested values, keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from labkit.errors import Refused, UsageError
from labkit.messages import Command, Document, Event, State
from labkit.service import At, Documents, KeyedView, Limit, Page, Query, Service, View, Views

Customer = Annotated[str, Meta(min_length=1, max_length=20, pattern="^[a-z]+$", examples=["ann"])]
Hours = Annotated[float, Meta(ge=0, le=1_000, examples=[1.5])]
Stars = Annotated[int, Meta(ge=1, le=5, examples=[5])]


class Contact(Struct, frozen=True):
    mail: Annotated[str, Meta(max_length=100)]
    phones: Annotated[tuple[str, ...], Meta(max_length=3)] = ()


class TicketCommand(Command, frozen=True):
    id: str


class OpenTicket(TicketCommand, frozen=True):
    """Ask for help."""

    customer: Customer
    urgency: Literal["low", "high"] = "low"
    minutes: int = 0
    hours: Hours = 1.0
    contact: Contact | None = None

    def validate(self) -> None:
        if self.urgency == "high" and self.hours > 10:
            raise Refused(f"what takes {self.hours} hours is not urgent")


class CloseTicket(TicketCommand, frozen=True):
    """The customer was helped."""

    stars: Stars | None = None


class ForgetTicket(TicketCommand, frozen=True):
    """Delete what is closed."""


class Escalate(TicketCommand, frozen=True):
    """Only for the desk itself."""


class TicketOpened(Event, frozen=True):
    customer: str
    urgency: str
    minutes: int
    contact: Contact | None


class TicketClosed(Event, frozen=True):
    customer: str
    stars: int | None


class Ticket(State, frozen=True):
    customer: str
    closed: bool = False


def open_ticket(ticket: Ticket | None, c: OpenTicket) -> Event:
    if ticket is not None:
        raise Refused(f"ticket {c.id!r} exists")
    return TicketOpened(c.customer, c.urgency, c.minutes, c.contact)


def close_ticket(ticket: Ticket | None, c: CloseTicket) -> Event:
    if ticket is None or ticket.closed:
        raise Refused(f"ticket {c.id!r} is not open")
    return TicketClosed(ticket.customer, c.stars)


def nothing(ticket: Ticket | None, c: Any) -> None:
    """No event."""


def evolve(ticket: Ticket | None, event: Any) -> Ticket:
    return Ticket(event.customer, isinstance(event, TicketClosed))


class Tickets(View):
    """One ticket."""

    indexes = (("customer", "_id"),)

    def apply(self, document: Any, event: Any) -> Document:
        if isinstance(event, TicketOpened):
            contact = event.contact and {"mail": event.contact.mail}
            fields = {"customer": event.customer, "urgency": event.urgency, "contact": contact}
            return {**fields, "minutes": event.minutes, "closed": False}
        return {**document, "closed": True, "stars": event.stars}


class Customers(KeyedView):
    """Tickets by customer."""

    def keys(self, event: Event, at: At) -> Iterable[str]:
        yield f"{event.customer}:{at.partition}"  # type: ignore[attr-defined]

    def change(self, documents: Documents, event: Any, at: At) -> None:
        id = f"{event.customer}:{at.partition}"
        found = documents.get(id) or documents.add({"_id": id, "events": 0})
        found["events"] += 1


class TicketById(Query, frozen=True):
    """One ticket."""

    ticket: str
    path = "/desk/{ticket}"

    def read(self, views: Views) -> Document | None:
        return views.get(Tickets, self.ticket)


class TicketsOf(Query, frozen=True):
    """A page of a customer's tickets."""

    customer: Customer
    limit: Limit = 100
    cursor: str = ""

    def read(self, views: Views) -> Page:
        found = {"customer": self.customer}
        return views.page(Tickets, limit=self.limit, cursor=self.cursor, **found)


class TicketsById(Query, frozen=True):
    """Several tickets."""

    ids: Annotated[list[str], Meta(max_length=5)]
    closed: bool | None = None

    def read(self, views: Views) -> dict[str, Document]:
        if "" in self.ids:
            raise UsageError(f"an id must not be empty, got {self.ids}")
        found = views.load(Tickets, self.ids)
        return {id: d for id, d in found.items() if self.closed in (None, d["closed"])}


class Count(Query, frozen=True):
    """How many tickets there are."""

    def read(self, views: Views) -> int:
        return views.count(Tickets)


class Pair(Query, frozen=True):
    """Two tickets, side by side."""

    left: str
    right: str
    at_least: Hours = 0.0

    def read(self, views: Views) -> Any:
        found = views.load(Tickets, [self.left, self.right])
        return {"left": found.get(self.left), "others": list(found.values())}


DESK = Service(
    "desk",
    decide={
        OpenTicket: open_ticket,
        CloseTicket: close_ticket,
        ForgetTicket: nothing,
        Escalate: nothing,
    },
    events=[TicketOpened, TicketClosed],
    evolve=evolve,
    state=Ticket,
    views=[Tickets, Customers],
    queries=[TicketById, TicketsOf, TicketsById, Count, Pair],
    public={
        OpenTicket: "POST /desk",
        CloseTicket: "PUT /desk/{id}/end",
        ForgetTicket: "DELETE /desk/{id}",
    },
)
