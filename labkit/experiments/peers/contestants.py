"""Who takes part, what each promises about a crash, and how it is set."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.connection import Connection

from msgspec import Struct

from labkit.experiments.peers import bare, own
from labkit.experiments.peers.job import Job

Side = Callable[[Connection, Job], None]


class Contestant(Struct, frozen=True, kw_only=True):
    """``fast``: it gets more commands a round. ``full_view``: with all that labkit's view keeps."""

    name: str
    guarantee: str
    how: str
    fast: bool
    commands: Side
    view: Side
    full_view: Side | None = None

    @property
    def arms(self) -> list[bool]:
        """What of it is run in a round: its view, and its full one where it has one."""
        return [False, True] if self.full_view else [False]


AT_LEAST_ONCE = (
    "At least once on both sides: a crash between a write and the commit of its offsets has the "
    "batch read again, so commands lead to events twice, under new offsets; nobody looks for a "
    "command that was sent twice. "
)
UPSERTS = (
    "The view writes whole documents under the order's id, so a second event changes nothing; but "
    "one that comes late would put an old document over a newer one."
)
INSERTS = (
    "The view inserts, so a second event of an order is refused by MongoDB as a duplicate, and the "
    "loop ends there: after a crash somebody has to skip by hand what is there already."
)
EXACTLY_ONCE = (
    "Exactly once: a batch's commits and its command offsets are one Kafka transaction, and its "
    "documents and the view's checkpoint one MongoDB transaction under an epoch. A crash between "
    "any two steps loses nothing and doubles nothing; a command that was sent twice takes effect "
    "once; versions fence zombies; each command has an answer; a poison message parks its stream "
    "alone."
)

CONTESTANTS: dict[str, Contestant] = {
    contestant.name: contestant
    for contestant in (
        Contestant(
            name="bare-kafka-python",
            guarantee=AT_LEAST_ONCE + UPSERTS,
            how="poll, send, flush, commit; bulk_write of ReplaceOne upserts, unordered",
            fast=False,
            commands=bare.kafka_python_commands,
            view=bare.kafka_python_view,
        ),
        Contestant(
            name="bare-confluent-upsert",
            guarantee=AT_LEAST_ONCE + UPSERTS,
            how="consume, produce, flush, commit; bulk_write of ReplaceOne upserts, unordered",
            fast=True,
            commands=bare.confluent_commands,
            view=bare.confluent_upserts,
        ),
        Contestant(
            name="bare-confluent-insert",
            guarantee=AT_LEAST_ONCE + INSERTS,
            how="consume, produce, flush, commit; insert_many, unordered",
            fast=True,
            commands=bare.confluent_commands,
            view=bare.confluent_inserts,
        ),
        Contestant(
            name="labkit-kafka-python",
            guarantee=EXACTLY_ONCE,
            how="Handler and Projector, as workers have them; the view is the one document",
            fast=False,
            commands=own.kafka_python_handler,
            view=own.kafka_python_lean,
            full_view=own.kafka_python_full,
        ),
        Contestant(
            name="labkit-confluent",
            guarantee=EXACTLY_ONCE,
            how="Handler and Projector, as workers have them; the view is the one document",
            fast=True,
            commands=own.confluent_handler,
            view=own.confluent_lean,
            full_view=own.confluent_full,
        ),
    )
}
