"""The records that a pipeline has to read: up to the last record of each partition."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing

from labkit.log.partition import read_partition
from labkit.ports.broker import Broker, Source


def unread(broker: Broker, group: str, topics: Iterable[str]) -> dict[tuple[str, int], int]:
    """The last record of each (topic, partition) that the group has not read completely."""
    found: dict[tuple[str, int], int] = {}
    for topic in topics:
        committed = broker.committed(topic, group, settled=True)
        with closing(broker.source(topic)) as source:
            for partition, end in source.ends().items():
                last = _last(source, partition, end)
                if last >= max(committed.get(partition, 0), 0):
                    found[topic, partition] = last
    return found


def _last(source: Source, partition: int, end: int) -> int:
    """The offset of the last committed record, or -1.

    Transaction markers may follow it, so this looks back from the end, farther each time.
    """
    back, start = 64, end
    while start > 0:
        start, back = max(0, end - back), back * 8
        last = -1
        for records in read_partition(source, partition, start, end=end):
            last = records[-1].offset
        if last >= 0:
            return last
    return -1
