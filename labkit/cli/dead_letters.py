"""``labkit dead-letters``: inspect, replay or drop what parked streams hold."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Annotated, Any

import msgspec
import typer
from rich.text import Text

from labkit.cli.measure import table
from labkit.cli.options import JsonFile, LabName, RunName, number, option
from labkit.cli.runs import joined
from labkit.errors import CheckFailed, Parked, Refused, UsageError
from labkit.experiments.results import save, to_json
from labkit.log.dead_letter import DeadLetter
from labkit.write.dead_letters import DeadLetters, printable

app = typer.Typer(help="Parked streams: list, show, replay, drop.", no_args_is_help=True)

ServiceOption = Annotated[
    str | None, typer.Option("--service", help="The service; by default the first of the run.")
]
Stream = Annotated[str, typer.Argument(help="The stream, as `list` shows it.")]
Timeout = Annotated[float, option("Seconds to wait for the handler's answer.", number(0, 3_600))]


@app.command("list")
def list_(
    run: RunName = None,
    lab: LabName = "lab",
    service: Annotated[str | None, typer.Option(help="One service; all by default.")] = None,
    json_file: JsonFile = None,
) -> None:
    """List the parked streams of a run, the longest waiting first.

    A handler saves its list some tenths of a second after it has parked a stream.
    """
    with joined(lab, run, service) as held:
        found, run = held.parked(service), held.run
    save("--json", json_file, to_json(found))
    if not found:
        print(f"no stream of run {run} is parked")
        return
    columns = ("service", "stream", "by", "partition", "waiting", "since (UTC)", "reason")
    rows = (
        [
            *(letter.service, _shown(letter.stream), letter.by, f"{letter.partition}"),
            *(f"{letter.waiting:,}", f"{letter.since:%Y-%m-%d %H:%M:%S}", letter.reason),
        ]
        for letter in found
    )
    _print(columns, rows)


@app.command()
def show(
    stream: Stream,
    run: RunName = None,
    lab: LabName = "lab",
    service: ServiceOption = None,
    json_file: JsonFile = None,
) -> None:
    """Show the waiting commands of a parked stream, in order."""
    with _letters(lab, run, service) as letters:
        letter = _find(letters, stream)
        waiting = letters.waiting(letter.stream)
    found: dict[str, Any] = {**msgspec.to_builtins(letter), "commands": waiting}
    save("--json", json_file, to_json(found))
    print(f"{_shown(letter.stream)}: {printable(letter.reason)}")
    _print(
        ["offset", "command id", "command", "body"],
        [(f"{c.offset}", c.id, c.command, str(c.body)) for c in waiting],
    )
    if letter.waiting > len(waiting):
        print(f"and {letter.waiting - len(waiting):,} more")


@app.command()
def replay(
    run: RunName = None,
    stream: Annotated[str | None, typer.Argument(help="The stream, as `list` shows it.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All streams of the service.")] = False,
    lab: LabName = "lab",
    service: ServiceOption = None,
    by: Annotated[str, typer.Option(help="What parked it: the handler, or a reader.")] = "handler",
    timeout: Timeout = 30.0,
) -> None:
    """Resume a parked stream with all its waiting commands; a failing one parks it again."""
    if (stream is None) != every:
        raise UsageError(f"name one stream or give --all, got {stream!r} and --all={every}")
    if by != "handler":
        _replay_reader(lab, run, by, stream)
        return
    with _letters(lab, run, service) as letters:
        chosen = letters.parked() if every else [_find(letters, stream or "")]
        stuck = []
        for letter in chosen:
            try:
                again = letters.let_go(letter.stream, head=letter.head, timeout=timeout)
            except (Refused, UsageError) as no:  # another command waits there by now, or none
                again = f"{no}; look again"
            if again:
                stuck.append(f"{_shown(letter.stream)}: {again}")
            else:
                print(f"{_shown(letter.stream)} goes on")
    if every and not chosen:
        print(f"no stream of {letters.service.name} is parked")
    if stuck:
        raise CheckFailed("; ".join(stuck))


def _replay_reader(lab: str, run: str | None, by: str, stream: str | None) -> None:
    """Apply the parked commits in this process; the owner of the reader is fenced, and rejoins."""
    with joined(lab, run) as held:
        parked = [letter.stream for letter in held.parked() if letter.by == by]
        stuck = []
        for name in parked if stream is None else [stream]:
            try:
                count = held.parts.replay_reader(by, name)
            except Parked as no:
                stuck.append(str(no))
            else:
                print(f"{_shown(name)} goes on in {by}: {count:,} commits applied")
    if stream is None and not parked:
        print(f"{by} holds back no stream")
    if stuck:
        raise CheckFailed("; ".join(stuck))


@app.command()
def drop(
    stream: Stream,
    run: RunName = None,
    lab: LabName = "lab",
    service: ServiceOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    timeout: Timeout = 30.0,
) -> None:
    """Resume a parked stream without its first waiting command, which never takes effect."""
    with _letters(lab, run, service) as letters:
        letter = _find(letters, stream)
        first = letters.waiting(letter.stream, 1)[0]
        if not yes:
            if not sys.stdin.isatty():
                raise UsageError(f"give --yes to drop the command at offset {first.offset}")
            what = f"{first.command or 'what is no command'} {first.body}"
            typer.confirm(f"drop {printable(what)}?", abort=True)
        try:
            again = letters.let_go(letter.stream, drop=True, head=first.offset, timeout=timeout)
        except Refused as no:
            raise CheckFailed(f"{no}; look again") from None
        if again:
            raise CheckFailed(f"{_shown(letter.stream)}: {again}")
    print(f"{_shown(letter.stream)} goes on without the first command")


@contextmanager
def _letters(lab: str, run: str | None, service: str | None) -> Iterator[DeadLetters]:
    with joined(lab, run, service) as run_, closing(run_.letters(service or run_.first)) as letters:
        yield letters


def _shown(stream: str) -> str:
    """A printable name. A stream without a valid key has a long name that begins with NUL."""
    return f"~{stream[1:13]}" if stream.startswith("\0") else printable(stream)


def _find(letters: DeadLetters, shown: str) -> DeadLetter:
    """The parked stream with this name, or else the one that `list` shows under this name."""
    parked = letters.parked()
    named = {_shown(letter.stream): letter for letter in parked}
    named |= {letter.stream: letter for letter in parked}
    return named.get(shown) or letters.find(shown)


def _print(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table of untrusted text: markup and terminal codes are not interpreted."""
    texts = ([Text(printable(cell)) for cell in row] for row in rows)
    table(None, columns, texts, left=len(columns), prose=("reason", "body"))
