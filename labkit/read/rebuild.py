"""A view is built anew while the old one serves.

::

    build    the next generation folds the whole log, beside the one that is read
    switch   the old one is held still, the new one brought at least as far; one transaction then
             moves the pointer and takes the old one from its owner
    serve    the new one is kept going until its workers have taken it over; they rejoin by it
    drop     the old one goes once no query can be reading it any more

It may end at any point, by Ctrl-C or by a crash: what is built stays, and the next rebuild of the
view goes on with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from msgspec import Struct, structs

from labkit.errors import CheckFailed, Conflict, Fenced
from labkit.ports.clock import SYSTEM, Clock
from labkit.ports.store import Store, Writes
from labkit.read.generations import named
from labkit.read.projection import Projection, parked_in
from labkit.read.projector import Projector

#: So few offsets behind, a view can be held still until the rest is applied.
CLOSE = 500
#: How long the old generation is kept for those who read it: a look at a view is far shorter.
KEEP_SECONDS = 5.0
#: An estimate rests on so much of the recent past.
WINDOW_SECONDS = 5.0
#: A switch is tried so often: each time the owner of the old generation was quick to rejoin.
TRIES = 20


class Progress(Struct, frozen=True):
    """Offsets of the log that are done, of how many; commits applied and seconds so far.

    ``remaining`` is the estimate, in seconds; ``None``: there is none yet, or the log grows faster
    than it is read.
    """

    done: int
    total: int
    applied: int
    seconds: float
    remaining: float | None


class Rebuild:
    """Builds the next generation of a view.

    ``build(generation)`` makes a projector of all partitions, in no group. Raises ``Fenced`` where
    another rebuild of the view was begun later: there is one at a time.
    """

    def __init__(
        self,
        view: Projection,
        store: Store,
        checkpoints: str,
        build: Callable[[int], Projector],
        clock: Clock = SYSTEM,
    ) -> None:
        self._clock = clock
        self._view = view
        self._store = store
        self._checkpoints = checkpoints
        self._pointer = store.claim(checkpoints, view.name)
        self.generation = self._pointer.position + 1
        self._projector = build(self.generation)
        try:
            self._partitions = range(len(self._projector.ends()))
            self._projector.own(self._partitions)
        except BaseException:
            self._projector.close()
            raise
        #: The offsets that an earlier rebuild has done; 0: this one began.
        self.went_on_at = sum(self._projector.positions.values())
        self._applied = 0
        self._began = self._clock.seconds()
        self._seen: deque[tuple[float, int, int]] = deque()

    def step(self, timeout: float = 0.1) -> Progress:
        """One batch into the next generation."""
        self._applied += self._projector.step(timeout)
        now = self._clock.seconds()
        done, total = sum(self._projector.positions.values()), sum(self._projector.ends().values())
        self._seen.append((now, done, total))
        while len(self._seen) > 2 and now - self._seen[0][0] > WINDOW_SECONDS:
            self._seen.popleft()
        return Progress(done, total, self._applied, now - self._began, self._remaining())

    def _remaining(self) -> float | None:
        """At the speed of the last seconds, while the log grows as it did in these."""
        (since, before, shorter), (now, done, total) = self._seen[0], self._seen[-1]
        if done >= total:
            return 0.0
        gained = (done - before) - (total - shorter)
        return (total - done) * (now - since) / gained if gained > 0 else None

    def switch(self) -> None:
        """Let the next generation serve, from one instant to the next.

        Raises ``CheckFailed`` where it parks a stream that the old one serves, and ``Fenced`` where
        another rebuild was begun.
        """
        old = named(self._view.name, self.generation - 1)
        for _ in range(TRIES):
            held = [
                self._store.claim(self._checkpoints, f"{old}:{partition}")
                for partition in self._partitions
            ]
            while any(self._projector.positions[p] < at.position for p, at in enumerate(held)):
                self._applied += self._projector.step(0.1)
            self._check_parked()
            moves = [(self._pointer, structs.replace(self._pointer, position=self.generation))]
            moves += [(at, structs.replace(at, epoch=at.epoch + 1)) for at in held]
            try:
                self._store.advance(self._checkpoints, moves, Writes())
                self._projector.live = True
                return
            except (Fenced, Conflict):
                self._check_alone()
        raise Fenced(f"{self._view.name!r} was taken back {TRIES} times by its projector")

    def _check_alone(self) -> None:
        found = self._store.checkpoints(self._checkpoints)
        if self._pointer not in found:
            raise Fenced(f"another rebuild of {self._view.name!r} was begun meanwhile")

    def _check_parked(self) -> None:
        old, new = (
            {letter["_id"]: letter for letter in self._store.find(named(self._letters, n), {})}
            for n in (self.generation - 1, self.generation)
        )
        if worse := sorted(new.keys() - old.keys()):
            raise CheckFailed(
                f"the new generation of {self._view.name!r} cannot apply {len(worse)} streams that "
                f"the old one serves, such as {worse[0]!r}: {new[worse[0]]['reason']}; the old one "
                "serves on. Mend the projection and begin anew"
            )

    def serve(self, seconds: float = KEEP_SECONDS) -> None:
        """Keep the new generation going until its workers have taken it over, for so long."""
        until = self._clock.seconds() + seconds
        try:
            while self._clock.seconds() < until:
                self._projector.step(0.05)
        except Fenced:
            self._clock.sleep(max(0.0, until - self._clock.seconds()))

    def run(
        self, keep: float = KEEP_SECONDS, report: Callable[[Progress], None] = lambda _: None
    ) -> Progress:
        """All of it; ``report`` is told of each batch. Returns where it was before the switch."""
        while True:
            progress = self.step()
            report(progress)
            if progress.total - progress.done <= CLOSE:
                break
        self.switch()
        self.serve(keep)
        self.drop_old()
        return progress

    def drop_old(self) -> None:
        """Drop the old generation."""
        self._discard(self.generation - 1)

    def discard(self) -> None:
        """Drop what is built; this rebuild is over."""
        self._discard(self.generation)

    def _discard(self, generation: int) -> None:
        """The checkpoints first: whoever still writes is fenced then."""
        name = named(self._view.name, generation)
        ids = [f"{name}:{partition}" for partition in self._partitions]
        self._store.advance(self._checkpoints, [], Writes(deletes={self._checkpoints: ids}))
        collections = [*self._view.indexes, self._letters]
        self._store.discard(named(collection, generation) for collection in collections)

    @property
    def _letters(self) -> str:
        return parked_in(self._view.name)

    def close(self) -> None:
        """Let go of the log; what is built stays."""
        self._projector.close()
