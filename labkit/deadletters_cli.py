"""``labkit dead-letters``: look at parked streams of a run, and let them go on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from labkit.deadletters import DeadLetter, DeadLetters
from labkit.errors import CheckFailed, Refused, UsageError
from labkit.handlers import CONTEXTS
from labkit.lab import Lab
from labkit.results import check_writable, save
from labkit.run import DEFAULTS, runs_folder
from labkit.runtime import read_registry

app = typer.Typer(help="Parked streams: list, show, replay, drop.", no_args_is_help=True)

RunOption = Annotated[str, typer.Option("--run", help="The run; `labkit status` lists them.")]
LabOption = Annotated[str, typer.Option("--lab", help="The lab (its servers).")]
ContextOption = Annotated[str, typer.Option("--context", help="The service.")]
Stream = Annotated[str, typer.Argument(help="As `list` shows it.")]


@app.command("list")
def list_(
    run: RunOption,
    lab: LabOption = "lab",
    context: Annotated[str | None, typer.Option(help="One service; all by default.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write them as JSON.")] = None,
) -> None:
    """The parked streams of a run, those that have waited longest first."""
    check_writable("--json", json_file)
    with _joined(lab, run, context) as joined:
        found: list[DeadLetter] = []
        for name in joined.contexts:
            with closing(joined.letters(name)) as letters:
                found += letters.parked()
    save("--json", json_file, msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    if not found:
        print(f"no stream of run {run} is parked")
        return
    table = Table("context", "stream", "waiting", "since (UTC)", "reason")
    for letter in found:
        since = f"{letter.since:%Y-%m-%d %H:%M:%S}"
        table.add_row(
            letter.context, _shown(letter.stream), f"{letter.waiting:,}", since, letter.reason
        )
    Console().print(table)


@app.command()
def show(
    stream: Stream,
    run: RunOption,
    lab: LabOption = "lab",
    context: ContextOption = "orders",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write it as JSON.")] = None,
) -> None:
    """What waits in a parked stream, in order."""
    check_writable("--json", json_file)
    with _letters(lab, run, context) as letters:
        letter, waiting = (
            letters.find(_name(letters, stream)),
            letters.waiting(_name(letters, stream)),
        )
    found: dict[str, Any] = {**msgspec.to_builtins(letter), "commands": waiting}
    save("--json", json_file, msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    print(f"{_shown(letter.stream)}: {letter.reason}")
    table = Table("offset", "command id", "command", "body")
    for command in waiting:
        body = command.body if isinstance(command.body, str) else str(command.body)
        table.add_row(f"{command.offset}", command.id, command.command, body)
    Console().print(table)
    if letter.waiting > len(waiting):
        print(f"and {letter.waiting - len(waiting):,} more")


@app.command()
def replay(
    run: RunOption,
    stream: Annotated[str | None, typer.Argument(help="As `list` shows it.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All streams of the context.")] = False,
    lab: LabOption = "lab",
    context: ContextOption = "orders",
) -> None:
    """Let a parked stream go on with all that waits; the next that is stuck parks it again."""
    if (stream is None) != every:
        raise UsageError(f"name one stream or give --all, got {stream!r} and --all={every}")
    with _letters(lab, run, context) as letters:
        names = (
            [letter.stream for letter in letters.parked()]
            if every
            else [_name(letters, stream or "")]
        )
        for name in names:
            _release(letters, name, drop=False)
    if every:
        print(f"{len(names)} streams go on")


@app.command()
def drop(
    stream: Stream,
    run: RunOption,
    lab: LabOption = "lab",
    context: ContextOption = "orders",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Let a parked stream go on without the first command, which never takes effect."""
    with _letters(lab, run, context) as letters:
        head = letters.waiting(_name(letters, stream), 1)[0]
        if not yes:
            if not sys.stdin.isatty():
                raise UsageError(f"give --yes to drop the command at offset {head.offset}")
            typer.confirm(f"drop {head.command or 'what is no command'} {head.body}?", abort=True)
        _release(letters, _name(letters, stream), drop=True)


def _release(letters: DeadLetters, stream: str, drop: bool) -> None:
    try:
        letters.release(stream, drop=drop)
    except Refused as no:
        raise CheckFailed(f"{no}; look again") from None
    print(f"{_shown(stream)} goes on{' without the first command' if drop else ''}")


@contextmanager
def _joined(lab: str, run: str, context: str | None) -> Iterator[Lab]:
    if context is not None and context not in CONTEXTS:
        raise UsageError(f"--context must be one of {', '.join(CONTEXTS)}, got {context!r}")
    registry = read_registry(runs_folder(lab) / f"{run}.json")
    client = DEFAULTS.client if registry is None else registry.client
    log = DEFAULTS.log if registry is None else registry.log
    with Lab(lab, run=run, contexts=list(CONTEXTS), start=False, client=client, log=log) as every:
        topics = set(every.log_broker.topics())
        present = [c for c in CONTEXTS if every.topic_name(f"{c}.commands") in topics]
    if not present or context not in (None, *present):
        there = f"it has {', '.join(present)}" if present else "`labkit status` lists the runs"
        raise UsageError(f"run {run!r} of lab {lab!r} has no {context or 'topics'}; {there}")
    names = [context] if context else present
    with Lab(lab, run=run, contexts=names, start=False, client=client, log=log) as joined:
        yield joined


@contextmanager
def _letters(lab: str, run: str, context: str) -> Iterator[DeadLetters]:
    with _joined(lab, run, context) as joined, closing(joined.letters(context)) as letters:
        yield letters


def _shown(stream: str) -> str:
    """A stream that no key can name has a name that begins with NUL, and is long: its beginning."""
    return f"~{stream[1:13]}" if stream.startswith("\0") else stream


def _name(letters: DeadLetters, shown: str) -> str:
    """The stream that was shown like this."""
    if shown.startswith("~"):
        for letter in letters.parked():
            if _shown(letter.stream) == shown:
                return letter.stream
    return shown
