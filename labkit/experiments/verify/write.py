"""``labkit verify write``: the write side under all that may happen to it, then the checkers.

Services and processes run on real servers. A client sends the mixture of ``mixture.py`` and writes
down what it sees (``client.py``); meanwhile workers join, are killed, paused past their session,
and leave (``faulty_workers.py``). Parked streams are released midway and at the end, as a person
would do it. Then, at quiet, the checkers judge by what the client saw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import structs

from labkit import stack
from labkit.errors import UsageError
from labkit.experiments.demo import Progress
from labkit.experiments.intervals import quotient
from labkit.experiments.results import archive, machine, versions
from labkit.experiments.scratch import scratch_run
from labkit.experiments.verify.checkers import check_run, meanings
from labkit.experiments.verify.client import Client
from labkit.experiments.verify.evidence import adopt_commands, gather
from labkit.experiments.verify.faulty_workers import FaultyWorkers, faulty_workers
from labkit.experiments.verify.history import History
from labkit.experiments.verify.mixture import Mixture, workload_of
from labkit.experiments.verify.planting import planted
from labkit.experiments.verify.verdict import to_report
from labkit.lab import Lab
from labkit.run import references
from labkit.run.worker import calm_gc
from labkit.service import Process, Service
from labkit.services import VERIFIED, VERIFIED_PROCESSES

#: What may be planted, and so must be seen.
PLANTS = ("no-dedupe", "early-offsets", "no-fence", "checkpoint-apart", "random-saga-ids")


def verify_write(
    name: str,
    client: str,
    count: int,
    plant: str | None,
    seed: int,
    progress: Progress,
    report: Callable[[str], None],
    services: Sequence[str | Service] = (),
    processes: Sequence[str | Process] = (),
) -> dict[str, Any]:
    """Run it on real servers; the result is the JSON.

    ``services`` and ``processes`` as for ``Lab``; without services, three built-in ones and their
    processes take part. Starts servers that are not up, and stops what it started. Raises
    ``UsageError`` for an unknown plant or service and for a service without a workload,
    ``StackError`` where servers or workers cannot be had.
    """
    if plant not in (None, *PLANTS):
        raise UsageError(f"--plant must be one of {', '.join(PLANTS)}, got {plant!r}")
    if plant == "no-fence" and client != "kafka-python":
        raise UsageError("--plant no-fence is for --client kafka-python; librdkafka always fences")
    if not services:
        services, processes = VERIFIED, processes or VERIFIED_PROCESSES
    for service in services:  # before servers are started
        workload_of(references.service(service))
    calm_gc()
    delivery = "at_most_once" if plant == "early-offsets" else "exactly_once"
    with stack.borrowed(name, report), planted("brittle", plant) as marks:
        parts = {"services": services, "processes": processes}
        with scratch_run(name, client=client, delivery=delivery, **parts) as lab:
            history = History(lab.bus)
            history.listen(*lab.services)
            load = Mixture(list(lab.services.values()), count, seed)
            lab.start()
            report(f"run {lab.run}: {count:,} commands")
            faulty = FaultyWorkers(lab, marks, faulty_workers(lab))
            sender = Client(lab, history, faulty, progress)
            try:
                sender.send(load, marks)
                quiet = sender.wait_for_quiet()
            finally:
                faulty.stop()
            report(f"{'quiet' if quiet else 'NOT quiet'}; the checkers look at it")
            found = _judge(lab, history)
            found |= structs.asdict(sender.counts) | {
                "commands": count,
                "quiet": quiet,
                "commands_per_second": round(quotient(count, sender.counts.seconds), 1),
                "faults": faulty.report(),
                "plant": plant,
                "seed": seed,
                "client": client,
                "run": lab.run,
                "settings": structs.asdict(lab.settings),
                "versions": versions(lab.server_versions(), lab.settings.client),
                "machine": machine(),
            }
            found["ok"] = (
                quiet
                and faulty.struck
                and not found["parked"]
                and not found["ignored_commits"]
                and not red(found)
            )
    found["folder"] = str(archive("verify-write", found))
    return found


def red(found: dict[str, Any]) -> list[str]:
    """The checkers that found something wrong; those that could not judge are not among them."""
    return [name for name, verdict in found["checkers"].items() if verdict["ok"] is False]


def _judge(lab: Lab, history: History) -> dict[str, Any]:
    adopted = adopt_commands(lab, history)
    evidence = {name: gather(lab, name) for name in lab.services}
    outcomes = Counter(c.outcome for e in evidence.values() for c in e.commits)
    parked = (lab.store.find(s.states, {"dead": True}) for s in lab.services.values())
    return {
        "checkers": to_report(check_run(lab, history, evidence)),
        "meanings": meanings(lab.services.values()),
        "services": list(lab.services),
        "processes": list(lab.processes),
        "parked": sum(map(len, parked)),
        "ignored_commits": lab.ignored_commits(),
        "process_commands": adopted,
        "commits": sum(len(e.commits) for e in evidence.values()),
        "aborted_commits": sum(len(e.aborted) for e in evidence.values()),
        "outcomes": dict(sorted(outcomes.items())),
        "streams": {name: len(each.states) for name, each in evidence.items()},
        "instances": {name: len(lab.store.find(f"{name}.instances", {})) for name in lab.processes},
    }


__all__ = ["PLANTS", "adopt_commands", "red", "verify_write"]
