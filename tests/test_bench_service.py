"""``labkit bench --service``: benches of a service of one's own, given by reference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from labkit import Service, stack
from labkit.cli import main
from labkit.errors import UsageError
from labkit.experiments.bench.decided import DecidedStreams, Share
from labkit.experiments.bench.long_streams import even_streams, one_stream
from labkit.experiments.bench.subject import subject
from labkit.run import references
from labkit.services import BENCHED
from labkit.services.bank import BANK, Deposit, OpenAccount, Withdraw

BENCHES = ("restart", "rebuild", "freshness", "cache", "latency", "memory", "growth")


def labkit(folder: Path, *command: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """The command, run in a folder of somebody's own."""
    return subprocess.run(
        [sys.executable, "-m", "labkit", *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It holds the service that ``labkit new`` writes."""
    made = tmp_path_factory.mktemp("own")
    assert labkit(made, "new", "desk").returncode == 0
    return made


@pytest.fixture
def desk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    return references.service("desk:DESK")


def without(**fields: Any) -> Service:
    """The bank, made anew without something."""
    parts = {"workload": BANK.workloads, "views": BANK.views} | fields
    return Service(
        "poor",
        decide=BANK.decide,
        events=BANK.events,
        evolve=BANK.evolve,
        state=BANK.state,
        **parts,
    )


# --- what is measured


@pytest.mark.parametrize("bench", BENCHED)
def test_each_bench_has_a_built_in_service(bench: str) -> None:
    name, workload, options = BENCHED[bench]
    found = subject(bench)
    assert (found.name, found.chosen.workload, found.chosen.options) == (name, workload, options)
    assert all(found.takes(option) for option in options)
    assert subject(bench, name) == found, "and it is the same if it is named"
    assert len(list(islice(found.all(1), 100))) == 100


def test_any_other_service_is_measured_by_its_first_workload(desk: Service) -> None:
    found = subject("rebuild", "desk:DESK")
    assert (found.service, found.chosen.workload, found.shown) == (desk, "default", "desk.tickets")
    assert subject("rebuild", desk) == found


def test_a_service_without_what_a_bench_needs_is_refused() -> None:
    with pytest.raises(UsageError, match="service 'poor' has no workload; the bench 'latency'"):
        subject("latency", without(workload=None))
    with pytest.raises(UsageError, match="service 'poor' has no views; the bench 'cache'"):
        subject("cache", without(views=[]))
    keyed = subject("freshness", without(views=BANK.views[1:]))
    with pytest.raises(UsageError, match="service 'poor' has no view with a document for each"):
        _ = keyed.first_view


def test_a_workload_that_ends_is_refused() -> None:
    found = subject("rebuild", without(workload=lambda random: iter([OpenAccount("a", "ann")])))
    with pytest.raises(UsageError, match="workload 'default' of service 'poor' ended"):
        list(found.all(1))


@pytest.mark.parametrize("bench", BENCHES)
@pytest.mark.parametrize(
    ("services", "named"),
    [
        (("orders", "desk:DESK"), "--service: a bench measures one service, got orders, desk:DESK"),
        (("owl",), "unknown service or process 'owl'"),
        (("desk:DECK",), "'desk:DECK': module 'desk' has no 'DECK'"),
    ],
)
def test_a_bench_measures_one_known_service(
    desk: Service,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bench: str,
    services: tuple[str, ...],
    named: str,
) -> None:
    options = [word for service in services for word in ("--service", service)]
    monkeypatch.setattr(sys, "argv", ["labkit", "bench", bench, *options])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2
    assert named in capsys.readouterr().err


# --- what becomes of its commands


def test_the_rules_say_which_commands_change_a_stream() -> None:
    streams = DecidedStreams(BANK)
    commands = [
        Withdraw("a", 1),
        OpenAccount("a", "ann"),
        OpenAccount("a", "bob"),
        Deposit("a", 5),
        Deposit("b", 5),
    ]
    found = list(streams.taken(commands))
    assert [(taken.command, taken.version) for taken in found] == [
        (commands[1], 1),
        (commands[3], 2),
    ]
    assert found[-1].state.balance == 5


def test_a_workload_of_refusals_is_given_up() -> None:
    with pytest.raises(UsageError, match="rules of service 'bank' accepted none of 100,000"):
        next(DecidedStreams(BANK).taken(Deposit("a", 5) for _ in range(200_000)))


def test_writers_share_the_streams_and_keep_their_order() -> None:
    commands = [Deposit(f"a{n % 5}", n + 1) for n in range(50)]
    first, rest = (Share(slots, 4) for slots in (range(1), range(1, 4)))
    mine, others = list(first.own(commands)), list(rest.own(commands))
    assert {command.stream for command in mine} == {"a0", "a4"}, "of four streams the first"
    assert sorted([*mine, *others], key=commands.index) == commands
    assert mine == [command for command in commands if command.stream in ("a0", "a4")]


def test_a_writer_without_streams_is_told() -> None:
    with pytest.raises(UsageError, match="the workload has 1 streams, too few for all writers"):
        next(Share(range(1, 2), 2).own(Deposit("a", 1) for _ in range(200_000)))


# --- long streams


def test_the_built_in_workload_has_one_long_stream() -> None:
    found = one_stream(subject("restart"), 300)
    assert [taken.version for taken in found] == list(range(1, 301))
    assert len({taken.stream for taken in found}) == 1


def test_even_streams_get_the_same_number_of_commands() -> None:
    found = even_streams(subject("restart"), 40, 6)
    assert len(set(found.streams)) == 40
    for times in (1, 5):
        commands = list(found.commands(times))
        assert sorted(t.version for t in commands) == sorted(list(range(1, times + 1)) * 40)
        after = found.next(found.streams[::8], times)
        assert [t.stream for t in after] == found.streams[::8]
        assert {t.version for t in after} == {times + 1}


def test_the_busiest_stream_of_any_workload_is_found() -> None:
    found = one_stream(subject("restart", "bank"), 400)
    assert {taken.stream for taken in found} == {"a1"}, "Zipf's first"
    assert [taken.version for taken in found] == list(range(1, 401))


def test_short_streams_are_refused(desk: Service) -> None:
    with pytest.raises(UsageError, match=r"service 'desk' brings its busiest stream.*101"):
        one_stream(subject("restart", desk), 101)
    with pytest.raises(UsageError, match=r"of service 'orders' 0 get 6 commands.* needs 50"):
        even_streams(subject("restart", "orders"), 50, 6)


# --- on real servers

TINY = {
    "latency": ("--rounds", "1", "--commands", "6"),
    "rebuild": ("--events", "600", "--rounds", "1", "--probes", "100"),
    "freshness": ("--tries", "15"),
}


@pytest.mark.servers
@pytest.mark.parametrize(
    "bench",
    ["freshness", *(pytest.param(name, marks=pytest.mark.slow) for name in ("latency", "rebuild"))],
)
def test_a_bench_of_a_service_of_ones_own(servers: stack.Servers, folder: Path, bench: str) -> None:
    file = folder / f"{bench}.json"
    options = (*TINY[bench], "--service", "desk:DESK", "--json", str(file))
    done = labkit(folder, "bench", bench, *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert found["ok"] is True
    assert found["settings"]["service"] == "desk"
    assert found["ignored_commits"] == 0
    match bench:
        case "latency":
            assert found["missed"] == 0
            assert all(ms > 0 for row in found["stages_ms"].values() for ms in row.values())
        case "rebuild":
            assert found["availability"] == 1.0
            assert found["checkers"]["C9"]["ok"] is None, "the desk has no reference model"
            assert all(found["checkers"][name]["ok"] for name in ("C1", "C2", "C6", "invariants"))
        case "freshness":
            for strategy in ("token", "version", "linearizable"):
                assert found["strategies"][strategy]["stale"] == 0


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.parametrize(
    ("bench", "options"),
    [
        ("cache", ("--queries", "200")),
        ("memory", ("--commands", "1000")),
        ("growth", ("--commands", "2000", "--small", "1000")),
        ("sweep", ("batch", "--rounds", "2", "--commands", "400")),
    ],
)
def test_the_other_benches_measure_it_too(
    servers: stack.Servers, folder: Path, bench: str, options: tuple[str, ...]
) -> None:
    done = labkit(folder, "bench", bench, *options, "--service", "desk:DESK")
    assert done.returncode == 0, done.stderr
