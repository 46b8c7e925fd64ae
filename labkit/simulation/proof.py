"""What a search of a small case says of it."""

from __future__ import annotations

from msgspec import Struct, field, to_builtins

from labkit.simulation.scenario import Scenario
from labkit.simulation.story import Story


class Searched(Struct, kw_only=True):
    """What any search of a small case says. ``complete``: there is nothing more; ``story``: of the
    first violation."""

    plant: str = ""
    complete: bool = False
    interrupted: bool = False
    seconds: float = 0.0
    story: Story | None = None

    @property
    def good(self) -> bool:
        """Whether nothing went wrong."""
        return self.story is None

    @property
    def report(self) -> dict[str, object]:
        """For the JSON."""
        found = to_builtins(self, enc_hook=str, str_keys=True)
        return {**found, "ok": self.good, "text": self.text}

    @property
    def text(self) -> str:
        """What is proven, in words."""
        raise NotImplementedError


class Proof(Searched):
    """What was searched: ``states`` that were met, ``ends`` where all is at rest.

    ``complete``: there is no state that was not looked at; else all are that differ from the calm
    order in at most ``depth`` turns.
    """

    scenario: Scenario
    kills: int
    states: int = 0
    ends: int = 0
    paths: int = 0
    depth: int = 0
    by_depth: dict[int, int] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """What is proven, in words."""
        about = counted(self.scenario, kill=self.kills)
        if self.story is not None:
            return f"{self.story.text()}\n({about}; found after {self.states:,} states)"
        if self.complete:
            return (
                f"All {self.states:,} reachable states of {about}: good; a good end is reachable "
                f"from each of them ({self.ends:,} ends)."
            )
        return (
            f"{self.states:,} states of {about} were met, {self.ends:,} ends among them: good. "
            f"There are more; all that at most {self.depth} turns out of the calm order reach are "
            "among them."
        )


def counted(scenario: Scenario, **more: int) -> str:
    """The sizes of a small case, in words."""
    counts = {
        "handler": scenario.handlers,
        "projector": scenario.projectors,
        "partition": scenario.partitions,
        **more,
    }
    return ", ".join(
        [
            f"{scenario.commands} command{'s' * (scenario.commands > 1)}, "
            f"{'one' if scenario.commands > 1 else 'it is'} sent twice",
            *(f"{count} {what}{'s' * (count != 1)}" for what, count in counts.items()),
        ]
    )
