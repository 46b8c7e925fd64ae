"""When a run has come to rest, and what the checkers say of it then: in a world, and on servers."""

from __future__ import annotations

from contextlib import closing
from itertools import chain

from labkit.errors import DecodeError
from labkit.experiments.verify.checkers import check_run
from labkit.experiments.verify.evidence import Evidence, adopt_commands, gather
from labkit.experiments.verify.history import History
from labkit.experiments.verify.verdict import Verdict, together, verdict
from labkit.lab import Lab
from labkit.log.partition import read_partition
from labkit.messages import ReleaseParked
from labkit.service import Service
from labkit.simulation.clients import Client, Keeper
from labkit.simulation.reading import Readers

#: What may come of a command to a stream that nobody can fold.
HELD = ("parked", "repeated", "scheduled")


def lags(lab: Lab) -> dict[str, int]:
    """How much each role has not done yet."""
    return {
        f"{role} of {name}": lab.lag(role, name)
        for role in ("handler", "relay", "projector", "process")
        for name in lab.instances_of(role)
    }


def running(lab: Lab) -> list[str]:
    """The processes that have more to do."""
    return [n for n in lab.processes if lab.store.find(f"{n}.instances", {"ended": False})]


def waiting(lab: Lab, clients: list[Client], keeper: Keeper | None) -> str:
    """Who is not done."""
    late = [f"{name} ({lag})" for name, lag in lags(lab).items() if lag]
    late += ["keeper"] if keeper is not None and not keeper.done else []
    late += [f"client-{n}" for n, client in enumerate(clients) if not client.done]
    return ", ".join(late)


def judge(lab: Lab, history: History, readers: Readers, timeout: float = 0.0) -> dict[str, Verdict]:
    """What the checkers say of a run that has come to rest; on real servers an answer may still be
    on its way for ``timeout`` seconds."""
    while history.hear(0.0):
        pass
    history.settle(timeout)
    adopt_commands(lab, history)
    evidence = {name: gather(lab, name) for name in lab.services}
    return {
        **check_run(lab, history, evidence),
        "C10": readers.verdict,
        "schemas": together(schemas(lab, found) for found in evidence.values()),
    }


def schemas(lab: Lab, evidence: Evidence) -> Verdict:
    """What this code cannot read is held back, and nothing is decided upon it."""
    strange, releases = _unlike_commands(lab, evidence.service)
    wrong: list[str] = []
    seen: set[tuple[int, int]] = set()
    upon: dict[str, int] = {}
    for commit in evidence.chain:
        place, answer = (commit.partition, commit.offset), commit.answer
        if commit in evidence.unread:
            upon.setdefault(commit.stream, commit.last)
        elif place in strange:
            first = place not in seen and (commit.outcome != "parked" or not commit.reason)
            if first or commit.outcome not in ("parked", "dropped", "repeated"):
                wrong.append(f"what is no command, at {place}, was not parked but {answer}")
        elif commit.stream in upon and place not in releases and commit.outcome not in HELD:
            wrong.append(
                f"{commit.stream!r}: {commit.id} was {answer} upon version {upon[commit.stream]}, "
                "whose events this code does not know"
            )
        seen.add(place)
    return verdict(len(strange) + len(upon), wrong)


def _unlike_commands(
    lab: Lab, service: Service
) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """The places of what is no command of this code, and of releases."""
    strange, releases = set(), set()
    with closing(lab.log_broker.source(lab.topic_name(f"{service.name}.commands"))) as source:
        for partition in sorted(source.ends()):
            for record in chain.from_iterable(read_partition(source, partition)):
                try:
                    command = service.codec.decode_command(record.value).body
                except DecodeError:
                    strange.add((partition, record.offset))
                else:
                    if isinstance(command, ReleaseParked):
                        releases.add((partition, record.offset))
    return strange, releases
