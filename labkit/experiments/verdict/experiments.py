"""The experiments behind the verdicts: each a command of labkit, run once for a seed and kept."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from labkit.errors import StackError, UsageError
from labkit.run.registry import write_whole

#: By name, the arguments of the command; the seed, the lab and the file of the result are added.
EXPERIMENTS: Mapping[str, str] = {
    "latency": "bench latency --rounds 10",
    "freshness": "bench freshness --tries 2000",
    "workers": "bench sweep workers",
    "lag": "bench lag rate",
    "faults": "verify write --commands 20000",
    "cost": "bench cost",
    "burst": "bench burst",
    "elasticity": "bench elasticity",
}


def collect(
    folder: Path,
    names: Iterable[str],
    seed: int,
    lab: str,
    say: Callable[[str], None],
    anew: bool = False,
) -> dict[str, dict[str, Any]]:
    """The results of ``folder``; what is missing is measured first, or all of it ``anew``.

    Raises ``StackError`` where an experiment did not come to a result, ``UsageError`` for a file
    that cannot be used. A result whose check failed is a result: its claim shows it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in names:
        file = folder / f"{name}.json"
        if anew or not file.exists():
            _run(name, file, seed, lab, say)
        found[name] = _read(file)
    return found


def command_line(name: str, seed: int) -> str:
    """What a reader types to see one experiment alone."""
    return f"labkit {EXPERIMENTS[name]} --seed {seed}"


def _run(name: str, file: Path, seed: int, lab: str, say: Callable[[str], None]) -> None:
    line = command_line(name, seed)
    say(line)
    new = file.with_suffix(".new.json")  # an interrupted experiment leaves the last result alone
    arguments = [*line.split()[1:], "--lab", lab, "--json", str(new)]
    done = subprocess.run([sys.executable, "-m", "labkit", *arguments], stdout=subprocess.DEVNULL)
    if done.returncode not in (0, 1) or not new.exists():
        raise StackError(
            f"`{line}` ended with exit code {done.returncode} and no result; what it said is above"
        )
    write_whole(file, new.read_bytes())
    new.unlink()


def _read(file: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(f"{str(file)!r} holds no result: {error}; remove it") from None
