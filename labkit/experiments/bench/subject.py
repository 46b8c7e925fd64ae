"""What a bench measures: a service, and one of its workloads.

The built-in choice for each bench is ``labkit.services.BENCHED``. Of any other service it is the
first workload. A process of a bench joins the run and takes the service from there; ``Chosen`` is
what else it needs.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import chain
from random import Random
from typing import Any

from msgspec import Struct

from labkit.errors import UsageError
from labkit.lab import Lab
from labkit.messages import Command
from labkit.read.standard import ById
from labkit.run import references
from labkit.service import Service, View
from labkit.services import BENCHED


class Chosen(Struct, frozen=True):
    """A workload of a service by its name, with options. It can be sent to another process."""

    bench: str
    workload: str
    options: dict[str, Any] = {}

    def of(self, lab: Lab) -> Subject:
        """The same subject in a process that has joined the run."""
        return Subject(lab.of.service(lab.first), self)


class Subject(Struct, frozen=True):
    """A service with a workload."""

    service: Service
    chosen: Chosen

    @property
    def name(self) -> str:
        """The name of the service."""
        return self.service.name

    def opening(self, seed: int, **wanted: Any) -> Iterator[Command]:
        """What comes first; ``wanted`` are options, which count if the workload takes them."""
        make = self.service.workloads[self.chosen.workload].opening
        return iter(make(Random(seed), **self._given(make, wanted)))

    def commands(self, seed: int, **wanted: Any) -> Iterator[Command]:
        """What follows the opening. Raises ``UsageError`` at its end: a workload is endless."""
        make = self.service.workloads[self.chosen.workload].commands
        yield from make(Random(seed), **self._given(make, wanted))
        raise UsageError(
            f"workload {self.chosen.workload!r} of service {self.name!r} ended; it must be endless"
        )

    def all(self, seed: int, **wanted: Any) -> Iterator[Command]:
        """The opening and what follows."""
        return chain(self.opening(seed, **wanted), self.commands(seed, **wanted))

    def takes(self, option: str) -> bool:
        """Whether the workload has this option."""
        return option in _options(self.service.workloads[self.chosen.workload].commands)

    @property
    def first_view(self) -> View:
        """The first view with a document for each stream. Raises ``UsageError`` without one."""
        if (view := self.service.first_view) is not None:
            return view
        raise UsageError(
            f"service {self.name!r} has no view with a document for each stream; the bench "
            f"{self.chosen.bench!r} reads such documents"
        )

    @property
    def shown(self) -> str:
        """The name of that view in a query."""
        return f"{self.name}.{self.first_view.name}"

    def document(self, stream: str) -> ById:
        """The query for the document of a stream."""
        return ById(self.shown, stream)

    def _given(self, make: Any, wanted: dict[str, Any]) -> dict[str, Any]:
        takes = _options(make)
        asked = self.chosen.options | {n: v for n, v in wanted.items() if v is not None}
        return {name: value for name, value in asked.items() if name in takes}


def subject(bench: str, service: str | Service | None = None) -> Subject:
    """What ``bench`` measures; ``service`` is a name, ``module:ATTRIBUTE`` or an object.

    Raises ``UsageError`` for an unknown service, and for one without a workload or without views.
    """
    name, workload, options = BENCHED[bench]
    found = references.service(name if service is None else service)
    if found is not references.service(name):
        if not found.workloads:
            raise UsageError(
                f"service {found.name!r} has no workload; the bench {bench!r} needs one: "
                "Service(..., workload=...)"
            )
        workload, options = next(iter(found.workloads)), {}
    if not found.views:
        raise UsageError(
            f"service {found.name!r} has no views; the bench {bench!r} measures how they are "
            "written or read"
        )
    return Subject(found, Chosen(bench, workload, options))


def about(measured: Subject) -> dict[str, Any]:
    """The subject as a result states it."""
    chosen = measured.chosen
    return {"service": measured.name, "workload": {"name": chosen.workload, **chosen.options}}


def _options(make: Any) -> list[str]:
    return list(inspect.signature(make).parameters)[1:]
