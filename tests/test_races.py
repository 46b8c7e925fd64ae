"""Two writers race on one expected version, a thousand times on each log: one wins each time."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from labkit.experiments.verify.checkers import check_all
from labkit.experiments.verify.history import History
from labkit.lab import Lab
from labkit.messages import Answer
from labkit.services.bank import Deposit, OpenAccount
from labkit.write.bus import CommandBus

STREAMS = 50
ROUNDS = 20

#: By writer, round and stream: what it was told.
Told = dict[tuple[int, int, int], Answer]


def opened(lab: Lab) -> History:
    history = History(lab.bus)
    for stream in range(STREAMS):
        history.send(OpenAccount(f"a{stream}", "ann"))
    history.settle()
    return history


def race(
    history: History, writer: int, told: Told, together: Callable[[], object] = lambda: None
) -> None:
    """One writer's side of all rounds; ``together`` waits for the other."""
    for number in range(ROUNDS):
        together()
        sent = [
            history.send(Deposit(f"a{stream}", writer + 1), expected_version=1 + number)
            for stream in range(STREAMS)
        ]
        history.settle()
        for stream, operation in enumerate(sent):
            assert operation.answer is not None, f"{operation} in round {number}: {operation.why}"
            told[writer, number, stream] = operation.answer
        together()


def judge(lab: Lab, told: Told) -> Counter[int]:
    """How often each writer won; of each race exactly one."""
    wins: Counter[int] = Counter()
    for number in range(ROUNDS):
        for stream in range(STREAMS):
            answers = [told[writer, number, stream] for writer in (0, 1)]
            winners = [writer for writer, answer in enumerate(answers) if answer.accepted]
            assert len(winners) == 1, f"round {number}, stream {stream}: {answers}"
            wins[winners[0]] += 1
            assert answers[winners[0]].version == number + 2
            loser = answers[1 - winners[0]]
            assert loser.outcome == "refused"
            assert f"expected version {number + 1}, it is {number + 2}" in loser.reason
    for stream in range(STREAMS):
        won = [w for n in range(ROUNDS) for w in (0, 1) if told[w, n, stream].accepted]
        state = lab.log("bank").state(f"a{stream}")
        assert state.balance == sum(writer + 1 for writer in won)
    return wins


def test_on_the_twin() -> None:
    with Lab(backend="memory", services=["bank"]) as lab:
        lab.start()
        opened(lab)
        told: Told = {}
        histories = [History(lab.bus), History(lab.bus)]
        for number in range(ROUNDS):
            sent = {}
            for writer in (number % 2, 1 - number % 2):
                for stream in range(STREAMS):
                    command = Deposit(f"a{stream}", writer + 1)
                    sent[writer, number, stream] = histories[writer].send(
                        command, expected_version=1 + number
                    )
            for key, operation in sent.items():
                token = operation.token or histories[key[0]]._sent.pop(0)[1].token()
                told[key] = lab.bus.answer(token)
        assert judge(lab, told) == {0: STREAMS * ROUNDS // 2, 1: STREAMS * ROUNDS // 2}


@pytest.mark.servers
@pytest.mark.parametrize(
    "settings",
    [
        {"client": "kafka-python"},
        pytest.param({"client": "confluent"}, marks=pytest.mark.slow),
        {"log": "mongodb"},
    ],
    ids=["kafka-python", "confluent", "mongodb"],
)
def test_on_real_servers(servers: Any, settings: dict[str, str]) -> None:
    with Lab(services=["bank"], start=False, **settings) as lab:
        lab.start()
        first = opened(lab)
        told: Told = {}
        barrier = threading.Barrier(2, timeout=60)
        failed: list[BaseException] = []

        def second_writer() -> None:
            try:
                with Lab(run=lab.run, start=False) as other:
                    history = History(bus := other.bus)
                    assert isinstance(bus, CommandBus)
                    bus.listen("bank")
                    race(history, 1, told, barrier.wait)
            except BaseException as error:
                failed.append(error)
                barrier.abort()

        thread = threading.Thread(target=second_writer)
        thread.start()
        try:
            race(first, 0, told, barrier.wait)
        except threading.BrokenBarrierError:
            pass  # the other one says why
        finally:
            thread.join(60)
        assert not failed, failed
        wins = judge(lab, told)
        assert min(wins[0], wins[1]) > 0, f"it was no race: {wins}"
        verdicts = check_all(lab, first, "bank")
        assert verdicts["C6"].ok, verdicts["C6"].violations
        assert lab.ignored_commits() == 0
        lab.drop()
