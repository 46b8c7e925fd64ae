"""Cheap checks after each effect: they find the earliest step at which something is wrong.

They judge nothing, since they see more than any client does: a run is bad if a checker of what the
clients saw is red. Then they say where it began.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
from msgspec import Struct

from labkit.messages import Answer
from labkit.ports.store import Checkpoint


class FirstBad(Struct, frozen=True):
    """The earliest effect that was wrong, and what was."""

    step: int
    what: str


class _Seen(Struct, gc=False):
    """What a monitor looks at of a commit."""

    stream: str
    id: str
    outcome: str
    first: int
    last: int
    digest: int = 0


_decode: Callable[[bytes], _Seen] = msgspec.json.Decoder(_Seen).decode


class Monitors:
    """Told of effects by the twins and the clients; ``step`` says at which step the world is."""

    def __init__(self, step: Callable[[], int]) -> None:
        self.first_bad: FirstBad | None = None
        self._step = step
        self._versions: dict[tuple[str, str], int] = {}
        self._accepted: set[tuple[str, str, str, int]] = set()
        self._answers: dict[str, Answer] = {}

    def committed(self, topic: str, values: Iterable[bytes]) -> None:
        """Records of an events topic that readers may see from now on."""
        for value in values:
            try:
                commit = _decode(value)
            except msgspec.MsgspecError:  # a command, or nothing of ours
                continue
            stream = topic, commit.stream
            before = self._versions.get(stream, 0)
            if commit.first != before + 1:
                self._bad(
                    f"{commit.id!r} on {commit.stream!r} is committed as version {commit.first}, "
                    f"which follows {before}"
                )
            self._versions[stream] = max(before, commit.last)
            if commit.outcome == "accepted" and commit.last >= commit.first:
                effect = (*stream, commit.id, commit.digest)
                if effect in self._accepted:
                    self._bad(f"{commit.id!r} on {commit.stream!r} takes effect a second time")
                self._accepted.add(effect)

    def moved(self, group: str, before: Mapping[int, int], after: Mapping[int, int]) -> None:
        """The offsets of a group. Who sets them back by hand does not tell."""
        for partition, offset in after.items():
            if offset < (known := before.get(partition, 0)):
                self._bad(
                    f"the offset of {group} in partition {partition} goes back from {known} to "
                    f"{offset}"
                )

    def advanced(
        self, stored: Mapping[str, Checkpoint], moves: Sequence[tuple[Checkpoint, Checkpoint]]
    ) -> None:
        """Checkpoints as they stood, and as they were moved."""
        for old, new in moves:
            was = stored.get(old.id, old)
            if (was.epoch, was.position) != (old.epoch, old.position):
                self._bad(
                    f"checkpoint {old.id!r} stood at {was.position} in epoch {was.epoch}, and is "
                    f"moved on from {old.position} in epoch {old.epoch}"
                )
            if new.epoch < was.epoch or new.position < was.position:
                self._bad(
                    f"checkpoint {old.id!r} goes back from {was.position} in epoch {was.epoch} to "
                    f"{new.position} in epoch {new.epoch}"
                )

    def answered(self, id: str, answer: Answer) -> None:
        """What a client was told."""
        if answer.final and self._answers.setdefault(id, answer) != answer:
            self._bad(f"{id!r} was answered {self._answers[id]}, and now {answer}")

    def _bad(self, what: str) -> None:
        if self.first_bad is None:
            self.first_bad = FirstBad(self._step(), what)
