"""Every error of labkit at each of its edges; HTTP has its own walk in ``test_api.py``."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from labkit import errors
from labkit.cli import main
from labkit.errors import Conflict, LabkitError, UsageError
from labkit.lab import Lab
from labkit.services.orders import OrderById
from tests.test_api import kinds

#: The exit code of each error, and whether its text alone says what to do (else ``advice`` does).
EXPECTED = {
    "UsageError": (2, True),
    "StackError": (2, True),
    "Unreachable": (2, True),
    "Unstorable": (2, True),
    "CheckFailed": (1, True),
    "DecodeError": (2, False),
    "Refused": (1, True),
    "Transient": (2, False),
    "Duplicate": (2, False),
    "Conflict": (2, False),
    "TooSlow": (2, False),
    "Overloaded": (2, False),
    "Parked": (1, True),
    "Pending": (2, False),
    "TimedOut": (1, True),
    "Stopped": (1, True),
    "Fenced": (2, False),
    "OutcomeUnknown": (2, False),
}
EVERY = [kind for kind in kinds() if kind.__module__ == errors.__name__]


def test_the_table_has_every_error() -> None:
    assert sorted(EXPECTED) == sorted(kind.__name__ for kind in EVERY)
    for kind in EVERY:
        assert bool(kind.advice) != EXPECTED[kind.__name__][1], kind
        assert f"── {kind.__name__} " in str(errors.__doc__), "the tree shows it"


@pytest.mark.parametrize("kind", EVERY)
def test_the_command_line_says_it_in_one_line(
    kind: type[LabkitError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ("because\n  of this", ""):

        def app(text: str = text) -> None:
            raise kind(text)

        monkeypatch.setattr(main, "app", app)
        monkeypatch.setattr("signal.signal", lambda *_: None)
        with pytest.raises(SystemExit) as end:
            main.main()
        said = capsys.readouterr().err
        assert end.value.code == EXPECTED[kind.__name__][0]
        assert said.startswith("labkit: because of this" if text else f"labkit: {kind.__name__}")
        assert said.count("\n") == 1
        assert said.rstrip().endswith(kind.advice)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(backend="memory", services=["orders"]) as made:
        made.start(queries=1)
        yield made


class Derived(UsageError):
    """Of a service of somebody's own; no requester has it."""


# A query that meets a Conflict is read again.
@pytest.mark.parametrize("kind", [*(kind for kind in EVERY if kind is not Conflict), Derived])
def test_the_query_bus_gives_back_what_the_query_raised(
    kind: type[LabkitError], lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(self: OrderById, views: object) -> None:
        raise kind("because of \ud800")

    monkeypatch.setattr(OrderById, "read", read)
    with pytest.raises(LabkitError) as found:
        lab.query_bus.ask(OrderById(kind.__name__))
    assert type(found.value) is (UsageError if kind is Derived else kind)
    assert str(found.value) == r"because of \ud800"
    with pytest.raises(kind, match="because"):
        lab.ask(OrderById(kind.__name__))


@pytest.mark.parametrize("kind", EVERY)
def test_python_shows_what_to_do_below_the_error(kind: type[LabkitError]) -> None:
    shown = "".join(traceback.format_exception(kind("because")))
    assert shown == f"labkit.errors.{kind.__name__}: because\n" + (
        f"{kind.advice}\n" if kind.advice else ""
    )


def test_a_notebook_shows_what_to_do_below_the_error() -> None:
    shell = InteractiveShell()
    with capture_output() as shown:
        shell.run_cell("from labkit.errors import Fenced\nraise Fenced('because')")
    assert ": because\n" in shown.stdout
    assert errors.Fenced.advice in shown.stdout
