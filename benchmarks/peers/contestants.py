"""The contestants: their guarantees after a crash, and their settings."""

from __future__ import annotations

from msgspec import Struct


class Contestant(Struct, frozen=True, kw_only=True):
    """``fast``: it gets more commands in a round. ``full_view``: the complete view of labkit.

    Its sides are names for ``job.play``, so that a process imports only the framework it runs.
    """

    name: str
    guarantee: str
    how: str
    fast: bool
    commands: str
    view: str
    full_view: str = ""

    @property
    def arms(self) -> list[bool]:
        """The runs of a round: without the full view, and with it if there is one."""
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
            commands="benchmarks.peers.bare:kafka_python_commands",
            view="benchmarks.peers.bare:kafka_python_view",
        ),
        Contestant(
            name="bare-confluent-upsert",
            guarantee=AT_LEAST_ONCE + UPSERTS,
            how="consume, produce, flush, commit; bulk_write of ReplaceOne upserts, unordered",
            fast=True,
            commands="benchmarks.peers.bare:confluent_commands",
            view="benchmarks.peers.bare:confluent_upserts",
        ),
        Contestant(
            name="bare-confluent-insert",
            guarantee=AT_LEAST_ONCE + INSERTS,
            how="consume, produce, flush, commit; insert_many, unordered",
            fast=True,
            commands="benchmarks.peers.bare:confluent_commands",
            view="benchmarks.peers.bare:confluent_inserts",
        ),
        Contestant(
            name="faststream-message",
            guarantee=(
                "FastStream's default, ACK_FIRST: offsets are committed in the background every "
                "5 s, also of a record that is not yet done with. A crash loses that record, and "
                "has up to 5 s of others read again, which leads to events twice; nobody looks for "
                "a command that was sent twice. " + UPSERTS
            ),
            how=(
                "a subscriber with a publisher, and one with replace_one upserts by pymongo's "
                "asyncio client; each record is awaited before the next; a decoder on msgspec, no "
                "logger"
            ),
            fast=False,
            commands="benchmarks.peers.faststream:message_commands",
            view="benchmarks.peers.faststream:message_view",
        ),
        Contestant(
            name="faststream-batch",
            guarantee=AT_LEAST_ONCE + UPSERTS,
            how=(
                "batch=True on both ends with max_records of the batch size, NACK_ON_ERROR (an "
                "offset commit a batch); unordered bulk_write of ReplaceOne upserts by pymongo's "
                "asyncio client; a decoder on msgspec, no logger"
            ),
            fast=False,
            commands="benchmarks.peers.faststream:batch_commands",
            view="benchmarks.peers.faststream:batch_view",
        ),
        Contestant(
            name="quix",
            guarantee=AT_LEAST_ONCE + UPSERTS,
            how=(
                "two applications, topic to topic and topic to MongoDBSink (ReplaceOne, ordered "
                "bulk_write a partition); a checkpoint each batch (commit_every) or 0.5 s; bytes "
                "decoded by msgspec; processing_guarantee at-least-once, its default"
            ),
            fast=False,
            commands="benchmarks.peers.quix:commands",
            view="benchmarks.peers.quix:view",
        ),
        Contestant(
            name="labkit-kafka-python",
            guarantee=EXACTLY_ONCE,
            how="Handler and Projector, as workers have them; the view is the one document",
            fast=False,
            commands="benchmarks.peers.own:kafka_python_handler",
            view="benchmarks.peers.own:kafka_python_lean",
            full_view="benchmarks.peers.own:kafka_python_full",
        ),
        Contestant(
            name="labkit-confluent",
            guarantee=EXACTLY_ONCE,
            how="Handler and Projector, as workers have them; the view is the one document",
            fast=True,
            commands="benchmarks.peers.own:confluent_handler",
            view="benchmarks.peers.own:confluent_lean",
            full_view="benchmarks.peers.own:confluent_full",
        ),
    )
}
