"""Typed options and arguments: each value is parsed once, before the command starts anything.

A parser takes the name of the option and the text as given. It returns the value, or raises
``UsageError``: one line with the name, the accepted values and the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from labkit.errors import UsageError
from labkit.experiments.results import check_writable
from labkit.run.settings import CLIENTS, LOGS
from labkit.stack.state import lab_folder

Parser = Callable[[str, str], Any]


def option(help: str, parser: Parser, *names: str, variable: str | None = None) -> Any:
    """An option of a command, for ``Annotated``; ``names`` default to the parameter's name.

    ``variable`` of the environment is its value where it is left out.
    """
    callback = _callback(parser)
    return typer.Option(*names, help=help, parser=str, callback=callback, envvar=variable)


def _callback(parser: Parser) -> Callable[[typer.CallbackParam, str | None], Any]:
    # Typer tells the name of the option to a callback, but not to a parser.
    def parse(param: typer.CallbackParam, given: str | None) -> Any:
        return None if given is None else parser(max(param.opts, key=len), given)

    return parse


def whole(least: int, most: int) -> Parser:
    """A whole number from ``least`` to ``most``."""
    return _bounded(int, least, most, f"a whole number from {least} to {most}")


def number(least: float, most: float) -> Parser:
    """A number from ``least`` to ``most``, which are finite."""
    return _bounded(float, least, most, f"a number from {least:.10g} to {most:.10g}")


def _bounded(convert: Callable[[str], float], least: float, most: float, what: str) -> Parser:
    def parse(name: str, given: str) -> float:
        with suppress(ValueError):
            if least <= (value := convert(given)) <= most:
                return value
        raise UsageError(f"{name} must be {what}, got {given!r}")

    return parse


def one_of(choices: Sequence[str]) -> Parser:
    """One of some words."""

    def parse(name: str, given: str) -> str:
        if given not in choices:
            raise UsageError(f"{name} must be one of {', '.join(choices)}, got {given!r}")
        return given

    return parse


def chosen(choices: Sequence[str]) -> Any:
    """A positional argument that is one of some words."""
    help, callback = f"{', '.join(choices)}.", _callback(one_of(choices))
    return typer.Argument(help=help, parser=str, callback=callback)


def choice(help: str, choices: Sequence[str], *names: str) -> Any:
    """An option that is one of some words."""
    return option(f"{help}: {', '.join(choices)}.", one_of(choices), *names)


def bug_of(bugs: Sequence[str]) -> Any:
    """The option that plants a bug."""
    return choice("Plant a bug that must be detected", bugs, "--plant")


def names(given: str) -> list[str]:
    """The names of an option that takes several, with commas between them."""
    return [name.strip() for name in given.split(",") if name.strip()]


def result_file(*suffixes: str) -> Parser:
    """A file that can be written, in a folder that is created; ``suffixes`` are its endings."""

    def parse(name: str, given: str) -> Path:
        file = Path(given)
        if suffixes and file.suffix not in suffixes:
            raise UsageError(f"{name} must end in {' or '.join(suffixes)}, got {given!r}")
        check_writable(name, file)
        return file

    return parse


def lab_name(name: str, given: str) -> str:
    """The name of a lab, which need not exist."""
    try:
        lab_folder(given)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None
    return given


#: Sweeps add the number of a run to the seed, and a plan's seed has 63 bits.
MOST_SEED = 2**62

LabName = Annotated[
    str, option("Name of the lab: a-z, 0-9 and '-'.", lab_name, variable="LABKIT_LAB")
]
RunName = Annotated[
    str | None, typer.Option("--run", help="The run; by default the only live one.")
]
Client = Annotated[str, choice("Kafka client", CLIENTS)]
Log = Annotated[str, choice("Where the log is kept", LOGS)]
Partitions = Annotated[int, option("Partitions of each topic.", whole(1, 1_000))]
BatchSize = Annotated[int, option("Commands in one transaction, at most.", whole(1, 1_000_000))]
Linger = Annotated[float, option("Seconds to wait for a batch to fill.", number(0, 60))]
Rounds = Annotated[int, option("Rounds; each runs every arm.", whole(2, 1_000))]
Seed = Annotated[int, option("Seed of all random choices.", whole(0, MOST_SEED))]
Services = Annotated[
    list[str] | None,
    typer.Option("--service", metavar="NAME|MODULE:ATTRIBUTE", help="A service; may be repeated."),
]
Processes = Annotated[
    list[str] | None,
    typer.Option(
        "--process", metavar="NAME|MODULE:ATTRIBUTE", help="A process manager; may be repeated."
    ),
]
JsonFile = Annotated[Path | None, option("Write the result as JSON.", result_file(), "--json")]
