"""Messages of an older and of a newer schema in the seeded world: what this code makes of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

import pytest
from msgspec import structs

from labkit.errors import DecodeError
from labkit.experiments.verify.checkers import check_all
from labkit.experiments.verify.history import History
from labkit.experiments.verify.planting import planted_here, replace
from labkit.lab import Lab
from labkit.messages import Codec, Command, Commit, Event, digest
from labkit.read.transaction import LogEntry, Transaction
from labkit.services.orders import ORDERS, PlaceOrder
from labkit.simulation.explore import explore, shortest
from labkit.simulation.processors import quiet
from labkit.simulation.scenario import SCENARIOS, Scenario
from labkit.simulation.schemas import MET, NewerEvent, elsewhere, newer, older
from labkit.simulation.tape import SCHEMAS, WORKLOAD, Tape
from labkit.simulation.trial import Outcome, Trial
from labkit.write import decisions
from labkit.write.decisions import Arrival
from labkit.write.stream_state import StreamState
from tests.desk import DESK, Note

ONE, THREE = SCENARIOS["one"], SCENARIOS["three"]
OWN = Scenario(services=(DESK,))
SMALL = Scenario(commands=2, clients=1, handlers=1, projectors=1, partitions=1)
ORDER = PlaceOrder("o1", "c1", "2026-01-01", 1, 100)
#: Two commands; an event of a newer schema, and upon it a command like each of the two.
UPON = {WORKLOAD: [0, 1, 0, 0, 1, 0, 0], SCHEMAS: [1, 0, 1, 1, 0, 2, 1]}
#: Two commands, each sent twice, first by an older client; before them one of a newer client.
MIXED = {WORKLOAD: [0, 2, 0, 0, 2, 0, 0], SCHEMAS: [1, 1, 0, 0, 0, 1, 1, 1]}


class Seat(Command, frozen=True):
    number: int

    @property
    def stream(self) -> str:
        return f"seat {self.number}"


class Seated(Event, frozen=True):
    pass


def ran(recorded: dict[str, list[int]]) -> tuple[Trial, Outcome]:
    with quiet():
        trial = Trial(SMALL, Tape(1, recorded))
        return trial, trial.run()


def told(trial: Trial, id: str) -> list[str]:
    """Every answer to a command, in order."""
    return [str(heard.answer) for heard in trial.history.heard if heard.id == id]


# --- the bytes


def test_an_older_client_writes_the_same_command_without_what_has_a_default() -> None:
    value = older(ORDER, "c1", 3)
    assert b"product_id" not in value
    read = ORDERS.codec.decode_command(value)
    assert (read.id, read.body, read.expected_version) == ("c1", ORDER, 3)
    assert digest(read.body) == digest(ORDER)
    other = structs.replace(ORDER, product_id="lp")
    assert ORDERS.codec.decode_command(older(other, "c2", None)).body == other


@pytest.mark.parametrize(("codec", "command"), [(ORDERS.codec, ORDER), (DESK.codec, Note("t", []))])
def test_a_newer_client_writes_what_this_code_cannot_read(codec: Any, command: Any) -> None:
    with pytest.raises(DecodeError, match="unknown field `of_newer_code`"):
        codec.decode_command(newer(command, "c1"))
    moved = elsewhere(command, "other", codec)
    assert moved is not None
    assert (moved.stream, type(moved)) == ("other", type(command))


def test_a_command_whose_first_field_is_no_name_goes_nowhere_else() -> None:
    assert elsewhere(Seat(7), "other", Codec(Seat, Seated)) is None


# --- what comes of them


def test_an_older_command_is_the_same_and_a_newer_one_parks_its_stream_until_it_is_dropped() -> (
    None
):
    trial, outcome = ran(MIXED)
    assert outcome.red == []
    assert {*outcome.met} == {*MET[:2]}
    why = "not a message of this schema: Object contains unknown field `of_newer_code`"
    first, *_, last = told(trial, "undecodable:0:0")
    assert (first.partition(" - at")[0], last) == (f"parked: {why}", "dropped")
    behind = "parked: waits behind the command at offset 0: "
    assert [answer for answer in told(trial, "c1") if not answer.startswith(behind)] == [
        "accepted as version 1",
        "accepted as version 1",
    ]


def test_upon_a_newer_event_nothing_is_decided_and_others_go_on() -> None:
    trial, outcome = ran(UPON)
    assert outcome.red == []
    assert outcome.verdicts["schemas"].checked == 2  # the newer command, and its event
    (upon1,), (upon2,) = told(trial, "upon1"), told(trial, "upon2")
    assert upon1.startswith("parked: version 1 cannot be folded (not a message of this schema: ")
    assert upon2.startswith("parked: waits behind the command at offset 1: version 1 cannot be ")
    assert told(trial, "c1") == ["accepted as version 1"]
    assert told(trial, "c2") == ["accepted as version 2"]
    assert [d["_id"] for d in trial.lab.store.find("orders.view.parked", {})] == ["of-newer-code"]


def test_a_run_of_other_schemas_can_be_verified() -> None:
    """The checkers gave up where the log had an event that this code does not know."""
    with Lab(backend="memory") as lab:
        NewerEvent("orders", "ahead").put(lab)
        history = History(lab.bus)
        history.send(ORDER)
        lab.handler.step(0)
        lab.projector.step(0)
        history.settle(0.1)
        verdicts = check_all(lab, history)
    assert {name: verdict.violations for name, verdict in verdicts.items() if not verdict.ok} == {}


@pytest.mark.parametrize("scenario", [ONE, structs.replace(ONE, log="mongodb"), OWN])
def test_in_many_seeds_each_is_met_and_nothing_goes_wrong(scenario: Scenario) -> None:
    found = explore(scenario, range(24), processes=1)
    assert found.red == {}
    assert not [cell for cell in found.missed if "schema" in cell]


def test_three_services_with_their_processes_go_on() -> None:
    assert explore(THREE, range(6), processes=1, tell=False).red == {}


# --- bugs


def _decides_upon_it(self: StreamState, commit: Commit[Any], reason: str) -> None:
    self.take(commit, lambda state, event: state)


def _refuses(arrival: Arrival, reason: str) -> Commit[Any]:
    return arrival.commit(None, "refused", reason)


def _wants_all_fields(arrival: Arrival, parsed: Any = decisions._parsed) -> Any:
    command = parsed(arrival)
    if not command.sent:
        raise DecodeError("not a message of this schema: `sent` is missing")
    return command


def _passes_over(self: Transaction, entry: LogEntry, reason: str) -> None:
    """The view is silent about what it cannot read."""


@pytest.mark.parametrize(
    ("plant", "right", "also"),
    [
        (partial(replace, StreamState, "skip", _decides_upon_it), "schemas", {"C1", "C9"}),
        (partial(replace, decisions, "_unreadable", _refuses), "schemas", set()),
        (partial(replace, decisions, "_parsed", _wants_all_fields), "C1", {"C2", "C9"}),
        (partial(replace, Transaction, "_park", _passes_over), "C1", set()),
    ],
)
@pytest.mark.parametrize("scenario", [ONE, OWN])
def test_a_bug_with_other_schemas_is_found(
    scenario: Scenario, plant: Callable[[], None], right: str, also: set[str]
) -> None:
    with planted_here(plant):
        found = explore(scenario, range(14), processes=1, tell=False)
    red = set(chain(*found.red.values()))
    assert right in red
    assert red <= {right, *also}


def test_the_story_tells_that_a_handler_was_newer() -> None:
    with planted_here(partial(replace, StreamState, "skip", _decides_upon_it)), quiet():
        bad = explore(ONE, range(25), processes=1, tell=False).red
        story = shortest(ONE, sorted(bad)[:1], checker="schemas")
    assert story.steps <= 20
    assert "a handler of newer code has decided version 1 of 'of-newer-code'" in story.reason[0]
    assert "upon version 1, whose events this code does not know" in story.reason[-1]
