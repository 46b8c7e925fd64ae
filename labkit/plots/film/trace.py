"""The trace of one command: where it went, and when."""

from __future__ import annotations

from typing import Any

import msgspec

INSTANTS = ("sent", "polled", "decided", "fetched", "applied")


class Trace(msgspec.Struct, frozen=True):
    """Where one command went, and when.

    ``instants`` are monotonic nanoseconds of one host, keyed by ``INSTANTS``; the last two may be
    missing. ``version`` is the version of the stream after the command.
    """

    service: str
    stream: str
    command: str
    events: tuple[str, ...]
    outcome: str
    partitions: int
    partition: int
    command_offset: int
    event_offset: int
    version: int
    instants: dict[str, int]

    @classmethod
    def of(
        cls,
        service: str,
        document: dict[str, Any],
        sent: list[dict[str, Any]],
        made: list[dict[str, Any]],
        partitions: int,
    ) -> Trace:
        """The trace of the latest command in the view document of a stream.

        ``sent`` and ``made`` are the rows of the commands and events topics, as ``Lab.peek``
        returns them. A commit is found by the partition and offset of its command, because
        repeated commands share an id.
        """
        at = document["trace"]
        place = (at["partition"], at["command"])
        (command,) = [r["value"] for r in sent if (r["partition"], r["offset"]) == place]
        commits = [r for r in made if isinstance(r["value"], dict)]  # the topic may hold noise
        (row,) = [
            r for r in commits if (r["value"].get("partition"), r["value"].get("offset")) == place
        ]
        commit = row["value"]
        return cls(
            service=service,
            stream=document["_id"],
            command=command["body"]["type"],
            events=tuple(event["type"] for event in commit.get("events", ())),
            outcome=commit["outcome"],
            partitions=partitions,
            partition=at["partition"],
            command_offset=at["command"],
            event_offset=row["offset"],
            version=document["version"],
            instants={stage: at[stage] for stage in INSTANTS},
        )
