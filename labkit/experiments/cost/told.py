"""What the clients of an arm were told, as the operations that the checkers read."""

from __future__ import annotations

from collections.abc import Iterable

from labkit.experiments.cost.writers import Told
from labkit.service import Operation, Service


def operations(service: Service, told: Iterable[Told]) -> list[Operation]:
    """One a call, a repeat too."""
    found: list[Operation] = []
    for each in told:
        envelope = service.codec.decode_command(bytes(each.envelope))
        operation = Operation(envelope.id, envelope.body, envelope.expected_version)
        operation.token = each.token
        if each.answer is None:
            operation.unknown(each.why)
        else:
            operation.ok(each.answer)
        found.append(operation)
    return found
