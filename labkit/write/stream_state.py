"""A stream's bookkeeping: its state, its version, the commands it has seen, and those that wait.

Duplicates, refusals, ``deliver_at``, retries and parking are one mechanism: commits, folded into
this. A command that waits is remembered by its offset alone; the commands topic is the queue that
keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from msgspec import Struct

from labkit.errors import UsageError, said
from labkit.log.snapshots import CURE, restored
from labkit.messages import Answer, Commit, Event
from labkit.ports.store import Document
from labkit.write.older_ids import Known, OlderIds

#: How many command ids a stream keeps in its own document, with their answers, so that it stays
#: small. Older ones have a document each, and are looked up.
SEEN_WINDOW = 1_000

#: How many commands may wait in one stream; its document must stay far below MongoDB's 16 MB.
MAX_WAITING = 50_000


class StreamState(Struct, gc=False):
    """A stream's state and bookkeeping, as the handler keeps it.

    ``seen`` holds the newest command ids, ``older`` what there is of others; ``None``: there are no
    others.

    ``held`` are the commands that wait behind the first of them, offset to instant, in order: it is
    either poison (``parked`` says why) or tried again at ``retry_at``. ``scheduled`` are those that
    were given an instant, offset to instant; one may get stuck among the held ones then.

    ``at`` is the latest instant of any commit so far. ``unfit`` says why this code cannot fold the
    stream; then nothing is decided on it, until a handler takes over whose code can. Instants are
    Unix milliseconds.
    """

    partition: int
    stored: bool = False
    version: int = 0
    state: Any = None
    seen: dict[str, Known] = msgspec.field(default_factory=dict)
    held: dict[int, int] = msgspec.field(default_factory=dict)
    parked: str = ""
    dropping: bool = False
    tries: int = 0
    retry_at: int = 0
    scheduled: dict[int, int] = msgspec.field(default_factory=dict)
    at: int = 0
    unfit: str = ""
    older: OlderIds | None = None

    def copy(self) -> StreamState:
        """A copy that may be changed without touching this one."""
        return StreamState(
            self.partition,
            self.stored,
            self.version,
            self.state,
            dict(self.seen),
            dict(self.held),
            self.parked,
            self.dropping,
            self.tries,
            self.retry_at,
            dict(self.scheduled),
            self.at,
            self.unfit,
            self.older and self.older.copy(),
        )

    def take(self, commit: Commit[Any], evolve: Callable[[Any, Event], Any]) -> None:
        """Fold one commit: the only way a stream changes, live and on replay."""
        if commit.at > self.at:
            self.at = commit.at
        if commit.outcome == "parked":
            self._hold(commit)
            return
        state = self.state
        for event in commit.events:
            state = None if self.unfit else evolve(state, event)  # may raise, and nothing changed
        self.state, self.version = state, commit.last
        if self.held or self.scheduled:
            self._let_go(commit.offset)
        if commit.outcome == "repeated":
            return
        if commit.outcome == "scheduled":
            self.scheduled[commit.offset] = commit.due
        if commit.release:
            self.parked, self.tries, self.retry_at = "", 0, 0
            self.dropping = commit.release == "drop"
        known = self.known(commit.id)
        if known is None or known[1] == commit.digest:  # else: another command under a used id
            self._remember(commit.id, (commit.answer, commit.digest))

    def known(self, id: str) -> Known | None:
        """What is known of a command id, as far as it is in memory."""
        found = self.seen.get(id)
        return self.older.known(id) if found is None and self.older is not None else found

    def recall(self, id: str, known: Known) -> None:
        """Take back an id that was looked up: its own document is not needed any more."""
        assert self.older is not None, "others are not looked up"
        self.older.saving[id] = known
        self._remember(id, known)

    def _remember(self, id: str, known: Known) -> None:
        if self.older is not None:
            self.older.give_back(id)
        self.seen[id] = known
        if len(self.seen) > SEEN_WINDOW:
            self.older = self.older or OlderIds()
            oldest = next(iter(self.seen))
            self.older.add(oldest, self.seen.pop(oldest))

    def replay(self, commit: Commit[Any], evolve: Callable[[Any, Event], Any]) -> None:
        """Fold a commit that stands in the log, whatever the service's code makes of it today."""
        try:
            self.take(commit, evolve)
        except Exception as bug:
            self.skip(commit, said(bug))

    def skip(self, commit: Commit[Any], reason: str) -> None:
        """Note a commit that this code cannot fold."""
        self.unfit = f"version {commit.last} cannot be folded ({reason}): {CURE}"
        self.take(commit, lambda state, event: None)

    def _hold(self, commit: Commit[Any]) -> None:
        self.held.setdefault(commit.offset, commit.at)
        if commit.offset == self.head:
            self.tries += 1
            self.retry_at = commit.due
            self.parked = "" if commit.due else commit.reason

    def _let_go(self, offset: int) -> None:
        self.scheduled.pop(offset, None)
        if offset == self.head:
            self.parked, self.dropping, self.tries, self.retry_at = "", False, 0, 0
        self.held.pop(offset, None)

    @property
    def head(self) -> int | None:
        """The offset of the held command that is first in line."""
        return next(iter(self.held), None)

    def due(self, now: int) -> list[int]:
        """The offsets of the commands whose time has come: held ones in order, then by instant."""
        held = list(self.held) if not self.parked and self.retry_at <= now else []
        ripe = sorted((at, offset) for offset, at in self._unheld() if at <= now)
        return held + [offset for _, offset in ripe]

    def may_go(self, offset: int, now: int) -> bool:
        """Whether a command that waits is still next: an earlier one may have got stuck again."""
        if offset in self.held:
            return offset == self.head and not self.parked and self.retry_at <= now
        return offset in self.scheduled

    def next_due(self) -> int | None:
        """When to look at this stream again; ``None``: nothing waits for an instant."""
        instants = [at for _, at in self._unheld()]
        if self.held and not self.parked:
            instants.append(self.retry_at)
        return min(instants, default=None)

    def _unheld(self) -> Iterable[tuple[int, int]]:
        """Those of the scheduled commands that did not get stuck behind others."""
        return (item for item in self.scheduled.items() if item[0] not in self.held)

    def document(self, key: str) -> Document:
        """The stream as the handler saves it, under its id.

        ``waiting`` and ``anew`` (its partition) and ``dead`` are there only where they say
        something, so that sparse indexes find the few among many.
        """
        document: Document = {
            "_id": key,
            "partition": self.partition,
            "version": self.version,
            "at": self.at,
            "state": msgspec.to_builtins(self.state),
            "seen": [[id, a.outcome, a.version, a.reason, d] for id, (a, d) in self.seen.items()],
        }
        if self.unfit:
            document |= {"unfit": self.unfit, "anew": self.partition}
        if self.older is not None:
            document["older"] = True
        if self.held or self.scheduled:
            document |= {
                "held": list(self.held),
                "held_at": list(self.held.values()),
                "parked": self.parked,
                "dropping": self.dropping,
                "tries": self.tries,
                "retry_at": self.retry_at,
                "scheduled": [list(item) for item in self.scheduled.items()],
            }
            if self.parked:
                document["dead"] = True
            if (due := self.next_due()) is not None:
                document |= {"waiting": self.partition, "due": due}
        return document

    @classmethod
    def load(cls, document: Document, state: type[Struct]) -> StreamState:
        """What :meth:`document` saved; ``state`` is the type of the fold."""
        stream = cls(
            partition=document["partition"],
            stored=True,
            version=document["version"],
            at=document["at"],
            seen={id: (Answer(o, v, r), digest) for id, o, v, r, digest in document["seen"]},
            older=OlderIds() if "older" in document else None,
        )
        try:
            stream.state = restored(document["state"], state)
            stream.unfit = document.get("unfit", "")
        except UsageError as changed:
            stream.unfit = str(changed)
        if "held" in document:
            stream.held = dict(zip(document["held"], document["held_at"], strict=True))
            stream.scheduled = dict(document["scheduled"])
            stream.parked, stream.dropping = document["parked"], document["dropping"]
            stream.tries, stream.retry_at = document["tries"], document["retry_at"]
        return stream
