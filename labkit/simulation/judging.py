"""When a run has come to rest, and what the checkers say of it then: in a world, and on servers."""

from __future__ import annotations

from labkit.experiments.verify.checkers import check_run
from labkit.experiments.verify.evidence import adopt_commands, gather
from labkit.experiments.verify.history import History
from labkit.experiments.verify.verdict import Verdict
from labkit.lab import Lab
from labkit.simulation.clients import Client, Keeper
from labkit.simulation.reading import Readers


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
    return {**check_run(lab, history, evidence), "C10": readers.verdict}
