"""``labkit dead-letters``: look at parked streams of a run, and let them go on."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from labkit.cli.runs import joined
from labkit.errors import CheckFailed, Parked, Refused, UsageError
from labkit.experiments.results import check_writable, save, to_json
from labkit.log.dead_letter import DeadLetter
from labkit.write.dead_letters import DeadLetters, printable

app = typer.Typer(help="Parked streams: list, show, replay, drop.", no_args_is_help=True)

RunOption = Annotated[str, typer.Option("--run", help="The run; `labkit status` lists them.")]
LabOption = Annotated[str, typer.Option("--lab", help="The lab (its servers).")]
ServiceOption = Annotated[str, typer.Option("--service", help="The service.")]
Stream = Annotated[str, typer.Argument(help="As `list` shows it.")]
Patience = Annotated[
    float, typer.Option("--timeout", min=0, help="Seconds to wait for a handler's answer.")
]


@app.command("list")
def list_(
    run: RunOption,
    lab: LabOption = "lab",
    service: Annotated[str | None, typer.Option(help="One service; all by default.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write them as JSON.")] = None,
) -> None:
    """The parked streams of a run, those that have waited longest first.

    Handlers save what they know some tenths of a second after they have decided.
    """
    check_writable("--json", json_file)
    with joined(lab, run, service) as held:
        found = held.parked(service)
    save("--json", json_file, to_json(found))
    if not found:
        print(f"no stream of run {run} is parked")
        return
    _print(
        ["service", "stream", "by", "partition", "waiting", "since (UTC)", "reason"],
        [
            (
                letter.service,
                _shown(letter.stream),
                letter.by,
                f"{letter.partition}",
                f"{letter.waiting:,}",
                f"{letter.since:%Y-%m-%d %H:%M:%S}",
                letter.reason,
            )
            for letter in found
        ],
    )


@app.command()
def show(
    stream: Stream,
    run: RunOption,
    lab: LabOption = "lab",
    service: ServiceOption = "orders",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write it as JSON.")] = None,
) -> None:
    """What waits in a parked stream, in order."""
    check_writable("--json", json_file)
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
    run: RunOption,
    stream: Annotated[str | None, typer.Argument(help="As `list` shows it.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All streams of the service.")] = False,
    lab: LabOption = "lab",
    service: ServiceOption = "orders",
    by: Annotated[str, typer.Option(help="Who parked it: the handler, or a reader.")] = "handler",
    timeout: Patience = 30.0,
) -> None:
    """Let a parked stream go on with all that waits; the next that is stuck parks it again."""
    if (stream is None) != every:
        raise UsageError(f"name one stream or give --all, got {stream!r} and --all={every}")
    if by != "handler":
        _replay_reader(lab, run, by, stream)
        return
    with _letters(lab, run, service) as letters:
        chosen = letters.parked() if every else [_find(letters, stream or "")]
        refused = []
        for letter in chosen:
            try:
                letters.release(letter.stream, head=letter.head, timeout=timeout)
            except (Refused, UsageError) as no:  # by now it is another one, or none
                refused.append(f"{no}")
            else:
                print(f"{_shown(letter.stream)} goes on")
    if every and not chosen:
        print(f"no stream of {service} is parked")
    if refused:
        raise CheckFailed("; ".join(refused) + "; look again")


def _replay_reader(lab: str, run: str, by: str, stream: str | None) -> None:
    """The reader applies them here; its owner is fenced, and rejoins."""
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
    run: RunOption,
    lab: LabOption = "lab",
    service: ServiceOption = "orders",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    timeout: Patience = 30.0,
) -> None:
    """Let a parked stream go on without the first command, which never takes effect."""
    with _letters(lab, run, service) as letters:
        letter = _find(letters, stream)
        first = letters.waiting(letter.stream, 1)[0]
        if not yes:
            if not sys.stdin.isatty():
                raise UsageError(f"give --yes to drop the command at offset {first.offset}")
            what = f"{first.command or 'what is no command'} {first.body}"
            typer.confirm(f"drop {printable(what)}?", abort=True)
        try:
            letters.release(letter.stream, drop=True, head=first.offset, timeout=timeout)
        except Refused as no:
            raise CheckFailed(f"{no}; look again") from None
    print(f"{_shown(letter.stream)} goes on without the first command")


@contextmanager
def _letters(lab: str, run: str, service: str) -> Iterator[DeadLetters]:
    with joined(lab, run, service) as run_, closing(run_.letters(service)) as letters:
        yield letters


def _shown(stream: str) -> str:
    """A stream that no key can name has a name that begins with NUL, and is long: its beginning."""
    return f"~{stream[1:13]}" if stream.startswith("\0") else printable(stream)


def _find(letters: DeadLetters, shown: str) -> DeadLetter:
    """The parked stream of this name, or else the one that is shown like this."""
    parked = letters.parked()
    named = {_shown(letter.stream): letter for letter in parked}
    named |= {letter.stream: letter for letter in parked}
    return named.get(shown) or letters.find(shown)


def _print(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table of plain text: what others have sent is no markup and no code of the terminal."""
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console().print(table)
