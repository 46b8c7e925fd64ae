"""Sticky assignment: which member of a consumer group should own which partition."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

Member = TypeVar("Member", int, str)


def assign(
    partitions: int, owners: Mapping[int, Member], members: Iterable[Member]
) -> dict[int, Member]:
    """The owner of each partition; partitions move only where the balance requires it.

    The result depends on the arguments alone, so all members that see the same group agree.
    """
    owned: dict[Member, list[int]] = {member: [] for member in sorted(members)}
    if not owned:
        return {}
    fair = -(-partitions // len(owned))
    free = []
    for partition in range(partitions):
        owner = owners.get(partition)
        if owner in owned and len(owned[owner]) < fair:
            owned[owner].append(partition)
        else:
            free.append(partition)
    for partition in free:
        min(owned.values(), key=len).append(partition)
    return {partition: member for member, some in owned.items() for partition in some}
