"""How the parts of a run work: one set of settings for all its workers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from msgspec import Struct

from labkit.errors import UsageError
from labkit.ports.broker import DELIVERIES, Delivery
from labkit.run.cron import Cron

CLIENTS = ("kafka-python", "confluent")
LOGS = ("kafka", "mongodb")
WRITE_CONCERNS = ("majority", "1")
#: In scheduled mode: on the MongoDB log a session lasts 6 s, and only polls keep it alive.
MOST_SECONDS_BETWEEN = 5.0


class Settings(Struct, frozen=True, kw_only=True):
    """How the parts of a run work; every worker of a run is given the same.

    Args:
        client: ``kafka-python`` or ``confluent``.
        log: ``kafka``, or ``mongodb``: commands and commits are kept there, and a relay publishes
            the commits to Kafka.
        partitions: of each topic; fixed for the run's life.
        delivery: what a handler promises in a crash, see ``ports.Delivery``.
        batch_size: how many commands go into one transaction at most.
        linger: seconds that a handler waits for a batch to fill.
        every: seconds between two batches in scheduled mode, at most ``MOST_SECONDS_BETWEEN``; 0 is
            batch mode.
        cache: how many answers a query handler holds; 0: it reads each.
        in_flight: commands that a bus has sent and the broker has not acknowledged yet, at most;
            one more is ``Overloaded`` and not sent. 0: any number.
        write_concern: of a projector's transactions. ``majority`` waits until no election can undo
            a batch, which on one server is a flush of its journal. ``1`` does not wait: the next
            batch begins earlier, and an election may undo batches of a view, each with its
            checkpoint: they are applied again, so no event is lost or counted twice. Queries read
            what the majority has: they see a batch no sooner than before, and none that is undone.
        report_at: when a scheduler writes the report of each service: a crontab, in UTC.
        clean_up_at: when it forgets old idempotency keys; see ``run.jobs``.
    """

    client: str = "kafka-python"
    log: str = "kafka"
    partitions: int = 4
    delivery: Delivery = "exactly_once"
    batch_size: int = 4_000
    linger: float = 0.0
    every: float = 0.0
    cache: int = 0
    in_flight: int = 0
    write_concern: str = "majority"
    report_at: str = "0 3 * * *"
    clean_up_at: str = "30 3 * * *"

    def check(self) -> Settings:
        """The same settings; raises ``UsageError`` that names the one that cannot be."""
        if self.client not in CLIENTS:
            raise UsageError(f"client must be one of {', '.join(CLIENTS)}, got {self.client!r}")
        if self.log not in LOGS:
            raise UsageError(f"log must be one of {', '.join(LOGS)}, got {self.log!r}")
        if self.write_concern not in WRITE_CONCERNS:
            raise UsageError(
                f"write_concern must be one of {', '.join(WRITE_CONCERNS)}, "
                f"got {self.write_concern!r}"
            )
        if self.delivery not in DELIVERIES:
            raise UsageError(
                f"delivery must be one of {', '.join(DELIVERIES)}, got {self.delivery!r}"
            )
        floors = {"partitions": 1, "batch_size": 1, "linger": 0, "every": 0}
        for name, least in {**floors, "cache": 0, "in_flight": 0}.items():
            value: Any = getattr(self, name)
            kind: type = Real if name in ("linger", "every") else Integral
            if not isinstance(value, kind):
                raise UsageError(f"{name} must be a number, got {value!r}")
            if not least <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} must be at least {least}, got {value}")
        for name in ("report_at", "clean_up_at"):
            if (crontab := getattr(self, name)) != getattr(DEFAULTS, name):
                Cron(name, crontab)
        if self.every > MOST_SECONDS_BETWEEN:
            raise UsageError(
                f"every must be at most {MOST_SECONDS_BETWEEN:g} s, got {self.every}: "
                "a worker that polls less often is taken for dead"
            )
        return self

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Settings:
        """Settings by name; raises ``UsageError`` for one that there is not, or cannot be."""
        if unknown := set(given) - set(cls.__struct_fields__):
            raise UsageError(
                f"unknown setting {unknown.pop()!r}; known: {', '.join(cls.__struct_fields__)}"
            )
        return cls(**given).check()


DEFAULTS = Settings()
