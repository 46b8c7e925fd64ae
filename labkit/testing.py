"""Given, when, then: a business rule as a test that reads like one.

::

    given = specification(ORDERS)

    given(placed).when(PayOrder("o1", 1_499)).then(OrderPaid("o1", "ann", "1997-01-31", 1_499))
    given(placed).when(PayOrder("o1", 1)).then_refused("costs 1499 cents")

It needs no server, no test framework and no clock: a decision is a pure function of the events so
far and a command. The form is that of emmett's ``DeciderSpecification``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from labkit.errors import Refused, UsageError
from labkit.messages import Command, Event
from labkit.service import Service


class Then:
    """What a command led to: events, or a refusal."""

    def __init__(self, story: str, events: tuple[Event, ...], refused: Refused | None) -> None:
        self._story = story
        self._events = events
        self._refused = refused

    def then(self, *events: Event) -> None:
        """Exactly these events, in this order; none at all: nothing happened, nor was it refused.

        Raises ``AssertionError`` that tells the whole story.
        """
        if self._refused is not None:
            raise AssertionError(
                f"{self._story}\nexpected{_list(events)}\nrefused: {self._refused}"
            )
        if self._events != events:
            raise AssertionError(
                f"{self._story}\nexpected{_list(events)}\ngot{_list(self._events)}"
            )

    def then_refused(self, reason: str) -> None:
        """A refusal whose reason holds this text.

        A reason is part of the rule, so an empty text is a ``UsageError``. Raises
        ``AssertionError`` that tells the whole story.
        """
        if not reason:
            raise UsageError("say a part of the reason: '' would fit every refusal")
        if self._refused is None:
            raise AssertionError(
                f"{self._story}\nexpected a refusal: {reason!r}\ngot{_list(self._events)}"
            )
        if reason not in str(self._refused):
            raise AssertionError(
                f"{self._story}\nexpected a refusal: {reason!r}\nrefused: {self._refused}"
            )


class When:
    """A stream with its past."""

    def __init__(self, service: Service, past: tuple[Event, ...]) -> None:
        self._service = service
        self._past = past

    def when(self, command: Command) -> Then:
        """Decide on a command, as the handler would: on the fold of the past.

        Raises ``UsageError`` where the service does not take such a command. A bug in a rule comes
        through as it is.
        """
        if (decide := self._service.decide.get(type(command))) is None:
            raise UsageError(
                f"service {self._service.name!r} does not take {type(command).__name__}"
            )
        story = f"given{_list(self._past)}\nwhen\n  {command!r}"
        try:
            command.validate()
            events = decide(fold(self._service, *self._past), command)
        except Refused as refused:
            return Then(story, (), refused)
        return Then(story, events, None)


def specification(service: Service) -> Callable[..., When]:
    """The ``given(*events)`` of a service; without events the stream is new."""

    def given(*events: Event) -> When:
        return When(service, events)

    return given


def fold(service: Service, *events: Event) -> Any:
    """The state after these events; ``None`` before the first."""
    state = None
    for event in events:
        state = service.evolve(state, event)
    return state


def _list(events: tuple[Event, ...]) -> str:
    return "".join(f"\n  {event!r}" for event in events) or " nothing"
