"""The three delivery levels: the order of the steps of a commit."""

from __future__ import annotations

from collections.abc import Callable

from labkit.ports.broker import Delivery

#: The next offset after the commits, by events partition.
Ends = dict[int, int]


def commit_in_order(
    delivery: Delivery,
    transaction: Callable[[], Ends],
    produce: Callable[[], Ends],
    move_offsets: Callable[[], object],
) -> Ends:
    """Write commits and command offsets, in one transaction or one after the other."""
    match delivery:
        case "exactly_once":
            ends = transaction()
        case "at_least_once":
            ends = produce()
            move_offsets()
        case "at_most_once":
            move_offsets()
            ends = produce()
    return ends
