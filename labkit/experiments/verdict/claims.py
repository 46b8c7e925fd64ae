"""The balance of the source article, for CQRS and against it, and the problems that it starts from.

Each case names its bound before it is measured; a verdict is what figures and bounds say, and
nobody's opinion. Where a bound could be another, the table shows the figure beside it. Ratios are
labkit to CRUD, or to the bare work of the same clients.
"""

from __future__ import annotations

from labkit.experiments.verdict import readers
from labkit.experiments.verdict.claim import Case, Claim

#: Wrong facts among those that a checker looks at, in percent: what none of 10,000 still allows.
NONE = 0.05

PROBLEMS = (
    Claim(
        "problem",
        "A slow network makes an order fail, or creates it twice",
        (
            Case(
                *("commands carry ids that the handler remembers", "facts that are wrong"),
                *("faults", readers.wrong("C1", "C2", "C6", "C9")),
                at_most=NONE,
            ),
            Case(
                *("every command is sent twice", "effects of a command that is sent twice"),
                *("cost", readers.cost("effects")),
                at_most=1,
            ),
            Case(
                "CRUD keeps the ids in the same transaction",
                *("the same, by CRUD", "cost", readers.cost("effects", "crud")),
                at_most=1,
            ),
        ),
    ),
    Claim(
        "problem",
        "Rules change often, and are spread over services",
        (
            Case(
                "the new rule needs what happened before",
                "states of a new shape can be about the past (1: they can)",
                *("cost", readers.cost("new_state_from_past")),
                at_least=1,
            ),
            Case(
                "it must be in force at once",
                "time until every state has the new shape, to CRUD",
                *("cost", readers.to_crud("new_state_s")),
                at_most=1,
            ),
        ),
    ),
    Claim(
        "problem",
        "It scales poorly, and no view unites what the services know",
        (
            Case(
                *("cores are idle", "throughput of 2 workers to 1"),
                *("workers", readers.workers("2 workers")),
                at_least=1.2,
            ),
            Case(
                *("a view is added later", "share of the past that a second view shows"),
                *("cost", readers.cost("second_past")),
                at_least=0.95,
            ),
        ),
    ),
    Claim(
        "problem",
        "In a burst the backlog of a queue brings the system down",
        (
            Case(
                "one asks what is lost",
                "commands lost of a peak of 20 times what the workers do",
                *("burst", readers.burst("lost", 20)),
                at_most=0,
            ),
            Case(
                *("one asks who can still read", "reads that failed in that peak"),
                *("burst", readers.burst("reads_failed", 20)),
                at_most=0,
            ),
            Case(
                "it protects itself",
                "seconds until a peak of 5 times is over, with all protections",
                *("burst", readers.protected("measured_s", "together")),
                at_most=5,
            ),
        ),
    ),
)

AGAINST = (
    Claim(
        "against",
        "There are windows in which a reader sees what is no longer true",
        (
            Case(
                *("a read does not wait", "reads just after an answer that do not show it"),
                *("freshness", readers.stale("eventual")),
                at_least=1,
            ),
            Case(
                *("a read waits for the token of the write", "the same, with the token"),
                *("freshness", readers.stale("token")),
                at_least=1,
            ),
        ),
    ),
    Claim(
        "against",
        "Two sides must talk",
        (
            Case(
                "somebody waits for the view",
                "one command until its view shows it, to a bare transaction",
                *("latency", readers.to_bare("visible")),
                at_least=1.5,
            ),
            Case(
                *("somebody waits for the answer", "one command until its answer, to the same"),
                *("latency", readers.to_bare("reply")),
                at_least=1.5,
            ),
        ),
    ),
    Claim(
        "against",
        "It is hard to understand and to practise",
        (
            Case(
                *("one counts what must be known", "concepts, to CRUD"),
                *("cost", readers.to_crud("concepts")),
                at_least=1.5,
            ),
            Case(
                *("one counts what goes wrong", "failure modes, to CRUD"),
                *("cost", readers.to_crud("failure_modes")),
                at_least=1.5,
            ),
            Case(
                *("one counts what runs", "kinds of servers and processes, to CRUD"),
                *("cost", readers.to_crud("kinds_running")),
                at_least=1.5,
            ),
        ),
    ),
    Claim(
        "against",
        "Communication between services is the bottleneck",
        (
            Case(
                *("two services must agree", "time until a reader sees that they agree, to CRUD"),
                *("cost", readers.to_crud("agreed_p50_ms")),
                at_least=1.5,
            ),
            Case(
                *("one service works alone", "answer to a write at a steady rate, p50, to CRUD"),
                *("cost", readers.to_crud("write_p50_ms")),
                at_least=1.5,
            ),
        ),
    ),
)

FOR = (
    Claim(
        "for",
        "It scales out",
        (
            Case(
                *("cores are idle", "throughput of 2 workers to 1"),
                *("workers", readers.workers("2 workers")),
                at_least=1.2,
            ),
            Case(
                *("all cores are taken", "throughput of 4 workers to 1"),
                *("workers", readers.workers("4 workers")),
                at_least=2,
            ),
            Case(
                *("16 write at once", "writes at saturation, to CRUD"),
                *("cost", readers.to_crud("writes_per_s")),
                at_least=1,
            ),
            Case(
                *("64 write at once", "writes at saturation, to CRUD"),
                *("cost", readers.to_crud("many_writes_per_s")),
                at_least=1,
            ),
            Case(
                *("64 write to one document", "writes to it, to CRUD"),
                *("cost", readers.to_crud("hot_64_per_s")),
                at_least=1,
            ),
            Case(
                "workers come and go with a shop's days",
                "worker seconds, to as many workers all the time",
                *("elasticity", readers.elastic("cost_to_many", "days", "by time lag")),
                at_most=0.9,
            ),
        ),
    ),
    Claim(
        "for",
        "Its parts are loosely coupled",
        (
            Case(
                "a view is added later",
                "share of the past that it shows, and the writer is not touched",
                *("cost", readers.cost("second_past")),
                at_least=0.95,
            ),
            Case(
                *("a part is killed or stands still", "commands that were lost or done twice"),
                *("faults", readers.wrong("C1", "C2")),
                at_most=NONE,
            ),
        ),
    ),
    Claim(
        "for",
        "It is consistent in the end",
        (
            Case(
                *("the load is steady", "lag at half of 300 commands a second, p99"),
                *("lag", readers.lag(0.5, "p99")),
                at_most=1_000,
            ),
            Case(
                *("workers are killed meanwhile", "documents that are wrong in the end"),
                *("faults", readers.wrong("C9")),
                at_most=NONE,
            ),
        ),
    ),
    Claim(
        "for",
        "Answers are faster",
        (
            Case(
                *("one reads", "read at a steady rate, p50, to CRUD"),
                *("cost", readers.to_crud("read_p50_ms")),
                at_most=1,
            ),
            Case(
                *("one reads beside many writers", "read beside writes, p99, to CRUD"),
                *("cost", readers.to_crud("beside_read_p99_ms")),
                at_most=1,
            ),
            Case(
                *("one writes", "answer to a write at a steady rate, p50, to CRUD"),
                *("cost", readers.to_crud("write_p50_ms")),
                at_most=1,
            ),
        ),
    ),
    Claim(
        "for",
        "There is less complexity and coupling",
        (
            Case(
                *("one counts what must be known", "concepts, to CRUD"),
                *("cost", readers.to_crud("concepts")),
                at_most=1,
            ),
            Case(
                *("one counts lines", "lines of code of the arm alone, to CRUD"),
                *("cost", readers.to_crud("own_lines")),
                at_most=1,
            ),
        ),
    ),
    Claim(
        "for",
        "It tolerates faults",
        (
            Case(
                "workers are killed, paused and replaced",
                *("facts that are wrong", "faults", readers.wrong("C1", "C2", "C3", "C6", "C9")),
                at_most=NONE,
            ),
        ),
    ),
    Claim(
        "for",
        "Strict queries in real time can be served",
        (
            Case(
                "they are linearizable",
                *("reads that are stale", "freshness", readers.stale("linearizable")),
                at_most=0.2,
            ),
            Case(
                "they wait for the token of a write",
                *("reads that are stale", "freshness", readers.stale("token")),
                at_most=0.2,
            ),
            Case(
                *(
                    "they do not wait",
                    "reads that are stale",
                    "freshness",
                    readers.stale("eventual"),
                ),
                at_most=0.2,
            ),
        ),
    ),
)

CLAIMS = (*PROBLEMS, *AGAINST, *FOR)
