"""What may go wrong in a seeded world beyond deaths: poison, and who takes it out again."""

from __future__ import annotations

from collections import Counter

import pytest

from labkit.simulation.explore import quiet
from labkit.simulation.scenario import SCENARIOS, Keeper, Scenario
from labkit.simulation.tape import WORKLOAD, Tape
from labkit.simulation.trial import Outcome, Trial

ONE, THREE = SCENARIOS["one"], SCENARIOS["three"]
TWO_COMMANDS = Scenario(commands=2, clients=1, handlers=1, projectors=1, partitions=1)


def trial(scenario: Scenario, seed: int, **recorded: list[int]) -> tuple[Trial, Outcome]:
    """One trial, by its seed or by decisions."""
    with quiet():
        made = Trial(scenario, Tape(seed, recorded or None), recording=bool(recorded))
        return made, made.run()


# --- poison

#: Two commands to one stream, and poison before the first: bytes of another schema.
POISONED = {WORKLOAD: [0, 1, 0, 0, 1, 0, 0, 1, 1, 0]}


def test_poison_parks_a_stream_in_use_until_somebody_drops_it() -> None:
    made, outcome = trial(TWO_COMMANDS, 1, **POISONED)
    assert outcome.red == []
    heard = [(h.token.offset, h.answer.outcome) for h in made.history.heard]
    assert heard[:2] == [(0, "parked"), (1, "parked")]
    assert {(0, "dropped"), (1, "accepted")} <= set(heard)
    assert len(made.history.raw) == 2  # the bytes, and their release


def test_without_a_keeper_it_does_not_come_to_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Keeper, "_release", lambda self: None)
    _, outcome = trial(TWO_COMMANDS, 1, **POISONED)
    assert (outcome.red, outcome.why) == (["liveness"], "no liveness: keeper")


@pytest.mark.parametrize(("scenario", "seeds"), [(ONE, 60), (THREE, 12)])
def test_poison_is_common_and_breaks_nothing(scenario: Scenario, seeds: int) -> None:
    told = Counter[str]()
    for seed in range(seeds):
        made, outcome = trial(scenario, seed)
        assert outcome.red == [], seed
        told.update(heard.answer.outcome for heard in made.history.heard)
        told["raw"] += bool(made.history.raw)
    assert told["raw"] > seeds / 10
    assert told["dropped"] > seeds / 20
    assert told["parked"] > told["dropped"]
