"""The pipelines on real servers: their results equal pandas over the same log, whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psutil
import pytest

from labkit import stack
from labkit.errors import StackError, TimedOut, UsageError
from labkit.experiments import sales as tills
from labkit.lab import Lab
from labkit.ports.store import Writes
from labkit.streams import pipelines, streams
from labkit.streams.documents import DocumentSink
from labkit.streams.sales import PAY_WITHIN, REVENUE, TOP, Window

pytestmark = pytest.mark.servers

ORDERS = 1_500
WINDOWS = {"revenue": REVENUE, "top": TOP}
ALL = ("validate", "revenue", "top", "settle")


@pytest.fixture
def lab(servers: stack.Servers) -> Iterator[Lab]:
    with Lab("lab", services=[], partitions=2) as lab:
        raw, payments = tills.tills(11, ORDERS)
        lab.streams.send("raw", raw)
        lab.streams.send("payments", payments)
        yield lab
    # Some tests have dropped it themselves.
    with suppress(UsageError), Lab("lab", run=lab.run, start=False) as again:
        again.drop()


def values(lab: Lab, topic: str) -> list[Any]:
    return [json.loads(record.value) for record in lab.streams.records(topic)]


def documents(lab: Lab, name: str) -> list[dict[str, Any]]:
    return lab.store.find(f"streams.{name}", {}, [("_id", 1)])


def differences(lab: Lab) -> set[str]:
    """Which results in MongoDB, or in Kafka, are not what pandas says about the raw topics."""
    raw = [record.value for record in lab.streams.records("raw")]
    payments = [record.value for record in lab.streams.records("payments")]
    orders = tills.valid_orders(raw)
    found = set()
    if sorted(value["id"] for value in values(lab, "orders")) != sorted(orders["id"]):
        found.add("orders")
    if len(values(lab, "rejects")) != len(raw) - len(orders):
        found.add("rejects")
    for name, window in WINDOWS.items():
        if not _windows_equal(lab, name, window, orders):
            found.add(name)
    expected = tills.settlements(orders, payments, PAY_WITHIN).astype(object)
    wanted = [tuple(None if v != v else v for v in row) for row in expected.itertuples(index=False)]
    settled = documents(lab, "settled")
    if [(d["order"], d["due"], d["paid"], d["status"]) for d in settled] != sorted(wanted):
        found.add("settled")
    for name in streams.COLLECTIONS:  # the newest of each id in the topic is the document
        newest = {value["id"]: value for value in values(lab, name)}
        if newest != {
            d["_id"]: {k: v for k, v in d.items() if k != "_id"} for d in documents(lab, name)
        }:
            found.add(f"{name} in the topic")
    return found


def _windows_equal(lab: Lab, name: str, window: Window, orders: Any) -> bool:
    sums, late = tills.windows(orders, window.width, window.step, window.grace)
    fields = ("window", "product", "orders", "quantity", "cents")
    shown = {tuple(d[f] for f in fields) for d in documents(lab, name)}
    missed = [d for d in documents(lab, "late") if d["of"] == name]
    return shown == set(sums.itertuples(index=False, name=None)) and sorted(
        (d["window"], d["order"], d["product"], d["cents"]) for d in missed
    ) == sorted(late.itertuples(index=False, name=None))


def repeated(lab: Lab, topic: str, *fields: str) -> int:
    """How many records of a topic say what another one said already."""
    seen = Counter(tuple(value[f] for f in fields) for value in values(lab, topic))
    return sum(count - 1 for count in seen.values())


def run_all(lab: Lab) -> None:
    for name in ALL:
        lab.streams.run(name)


def test_results_equal_pandas_to_the_cent_and_nothing_is_left(lab: Lab) -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    valid = len(tills.valid_orders([r.value for r in lab.streams.records("raw")]))
    payments = len(lab.streams.records("payments"))
    assert [lab.streams.run(name) for name in ALL] == [ORDERS, valid, valid, valid + payments]
    assert differences(lab) == set()
    assert len(documents(lab, "late")) > 30
    assert len(documents(lab, "rejects")) > 15
    assert [lab.streams.run(name) for name in ALL] == [0, 0, 0, 0]
    assert not lab.of.streams_folder().exists()
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= before
    mine = [topic for topic in lab.broker.topics() if lab.run in topic]
    assert sum(topic.startswith("changelog__") for topic in mine) == 3
    (lab.streams.folder / "left by a dead one").mkdir(parents=True)
    lab.drop()
    assert not lab.of.streams_folder().exists()
    with Lab("lab", services=[]) as other:
        assert [topic for topic in other.broker.topics() if lab.run in topic] == []
        other.drop()


def test_a_pipeline_goes_on_where_it_stopped_with_its_state(lab: Lab) -> None:
    run_all(lab)
    more, paid = tills.tills(12, 300)  # an hour that is over by the windows' clocks
    lab.streams.send("raw", [(key, value.replace(b"order-", b"again-")) for key, value in more])
    lab.streams.send(
        "payments",
        [(k.replace("order-", "again-"), v.replace(b"order-", b"again-")) for k, v in paid],
    )
    run_all(lab)
    assert differences(lab) == set()


#: What is planted into the process that dies.
NOTHING = ""
AT_LEAST_ONCE = """
import os, time
streams.GUARANTEE = 'at-least-once'
kill = os.kill
os.kill = lambda *call: (time.sleep(1), kill(*call))  # what it had in hand is sent by then
"""
DIES_WITH_ITS_DOCUMENTS_WRITTEN = """
import os, signal
from labkit.streams.documents import DocumentSink
write, batches = DocumentSink.write, []
def killing(sink, batch):
    write(sink, batch)
    batches.append(batch)
    if len(batches) == 3:  # after some commits; the transaction of these is open
        os.kill(os.getpid(), signal.SIGKILL)
DocumentSink.write = killing
"""


def killed(lab: Lab, name: str, after: int, planted: str = NOTHING) -> None:
    """Run a pipeline in a process of its own that dies by SIGKILL, and commits every 200."""
    program = f"""
from labkit.streams import streams
from labkit.lab import Lab
from labkit.ports.store import Writes
streams.COMMIT_EVERY = 200
{planted}
with Lab({lab.name!r}, run={lab.run!r}, start=False) as lab:
    lab.streams.run({name!r}, streams.dying({after}))
"""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=lab.of.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "planted",
    [NOTHING, DIES_WITH_ITS_DOCUMENTS_WRITTEN],
    ids=["between two commits", "between MongoDB and Kafka"],
)
def test_killed_in_the_middle_results_equal_pandas_and_nothing_is_twice(
    lab: Lab, planted: str
) -> None:
    lab.streams.run("validate") if planted else killed(lab, "validate", 700)
    lab.streams.run("validate")
    for name in ("revenue", "settle"):
        killed(lab, name, 700, planted)
        assert lab.streams.run(name) > 0
    lab.streams.run("top")
    assert differences(lab) == set()
    assert repeated(lab, "orders", "id") == 0
    assert repeated(lab, "late", "id") == 0
    assert repeated(lab, "revenue", "id", "orders") == 0
    lab.drop()
    assert not lab.of.streams_folder().exists()


@pytest.mark.slow
def test_at_least_once_says_things_twice(lab: Lab) -> None:
    """The twin of the test above: without exactly-once its last lines turn red."""
    killed(lab, "validate", 700, AT_LEAST_ONCE)
    lab.streams.run("validate")
    assert repeated(lab, "orders", "id") > 0


def without_clocks(patch: pytest.MonkeyPatch) -> None:
    """Windows go by the instant at which Kafka got a record."""
    from quixstreams.dataframe import StreamingDataFrame

    patch.setattr(StreamingDataFrame, "set_timestamp", lambda frame, _: frame)


_exact = pipelines._total


def _rounded(found: Any, product: str, *rest: Any) -> Any:
    total = _exact(found, product, *rest)
    return total | {"cents": total["cents"] // 100 * 100}


def _insert(sink: Any, batch: Any) -> None:
    """The documents are inserted and never replaced."""
    first = {
        item.value["id"]: {"_id": item.value["id"], **item.value} for item in reversed(list(batch))
    }
    known = sink._store.load(sink._collection, first)
    new = [d for id, d in first.items() if id not in known]
    sink._store.advance("streams.checkpoints", [], Writes(inserts={sink._collection: new}))


TWINS = {
    "late records are dropped without a word": (
        lambda patch: patch.setattr(pipelines.Missed, "note", lambda *_: False),
        {"revenue", "top"},
    ),
    "windows go by the broker's clock": (without_clocks, {"revenue", "top"}),
    "cents are rounded": (
        lambda patch: patch.setattr(pipelines, "_total", _rounded),
        {"revenue", "top"},
    ),
    "the first total stays": (
        lambda patch: patch.setattr(DocumentSink, "write", _insert),
        {
            *("revenue", "top", "settled"),
            *(f"{name} in the topic" for name in ("revenue", "top", "settled")),
        },
    ),
    "any amount is an order": (
        lambda patch: (
            patch.setattr("labkit.streams.sales.MOST_PIECES", 10**9)
            or patch.setattr("labkit.streams.sales.EARLIEST", 0)
        ),
        {"orders", "rejects", "revenue", "top", "settled"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("bug", TWINS)
def test_a_planted_bug_is_seen(lab: Lab, bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, expected = TWINS[bug]
    plant(monkeypatch)
    run_all(lab)
    assert differences(lab) == expected


def test_no_key_stops_a_pipeline_and_a_payment_under_another_key_is_a_reject(lab: Lab) -> None:
    payment = b'{"order": "order-000001", "at": 1769850000001, "cents": 5}'
    lab.streams.send("payments", [("order-000002", payment), ("order-000003", b"?")])
    sender = lab.broker.sender()
    sender.send(lab.streams.topic_name("payments"), b"\xff", payment)
    sender.send(lab.streams.topic_name("raw"), b"\xff", b"\xff")  # as poor as a key can be
    sender.flush(10)
    sender.close()
    assert lab.streams.run("validate") == ORDERS + 1
    lab.streams.run("settle")
    found = [value for value in values(lab, "rejects") if value["id"].startswith("payments:")]
    assert sorted(value["reason"] for value in found)[1:] == [
        "the key is '\\\\xff', the order 'order-000001'",
        "the key is 'order-000002', the order 'order-000001'",
    ]


def test_a_signal_stops_a_pipeline_and_the_next_run_goes_on(lab: Lab) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    left = iter(range(400))

    def each() -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(
        TimedOut, match=r"pipeline 'validate' ended before it had read all records: .* left: "
    ):
        lab.streams.run("validate", each)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not lab.of.streams_folder().exists()
    run_all(lab)
    assert differences(lab) == set()
    assert repeated(lab, "orders", "id") == 0


def test_what_cannot_run_says_so(lab: Lab) -> None:
    with pytest.raises(UsageError, match="no pipeline 'sum'; there are validate, revenue"):
        lab.streams.run("sum")
    with pytest.raises(StackError, match="'revenue' was to be killed, but ended: it had nothing"):
        tills.kill(lab, "revenue", 1)
    assert tills.kill(lab, "validate", 300) > 0
    with Lab(backend="memory") as memory, pytest.raises(UsageError, match="real Kafka only"):
        memory.streams  # noqa: B018
