"""A recorded run in a file, and what it is a run of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, structs

from labkit.errors import UsageError
from labkit.simulation.scenario import SCENARIOS, Scenario
from labkit.simulation.tape import VERSION


class _Versioned(Struct):
    version: int


class SavedTape(Struct, frozen=True, omit_defaults=True):
    """A recorded run, as a file keeps it; ``of`` is what decisions are counted by. ``settings`` of
    the scenario are set again when it is played."""

    version: int
    seed: int | str
    values: dict[str, list[int]]
    of: dict[str, list[str] | int]
    settings: dict[str, str] = {}

    @classmethod
    def made(cls, scenario: Scenario, seed: int | str, values: dict[str, list[int]]) -> SavedTape:
        """The tape of a run of this scenario."""
        return cls(VERSION, seed, values, counted_by(scenario), _settings(scenario))

    def fitting(self, scenario: Scenario) -> Scenario:
        """The scenario with the settings of the tape; raises ``UsageError`` if it is of another."""
        self.check(scenario)
        return structs.replace(scenario, **self.settings)

    def check(self, scenario: Scenario) -> None:
        """Raises ``UsageError`` if the tape is of another scenario."""
        for name, mine in counted_by(scenario).items():
            if (its := self.of.get(name)) != mine:
                raise UsageError(
                    f"the tape is of a run with {name} {_said(its)}, this scenario has "
                    f"{_said(mine)}: give the same scenario, --service, --process and sizes"
                )


def counted_by(scenario: Scenario) -> dict[str, list[str] | int]:
    """What a decision of a run means depends on these."""
    sizes = ("commands", "clients", "handlers", "projectors", "queries", "partitions")
    return {
        "services": names(scenario.services),
        "processes": names(scenario.processes),
        **{size: getattr(scenario, size) for size in sizes},
    }


def command_line(scenario: Scenario) -> str:
    """The scenario, as the command line names it."""
    mine = counted_by(scenario)
    options = [f"--service {service}" for service in names(scenario.services)]
    options += [f"--process {process}" for process in names(scenario.processes)]
    known = (
        name
        for name, one in SCENARIOS.items()
        if all(counted_by(one)[part] == mine[part] for part in ("services", "processes"))
    )
    name = next(known, " ".join(options))
    usual = SCENARIOS.get(name, Scenario()).commands
    more = f" --commands {scenario.commands}" if scenario.commands != usual else ""
    return f" {name}{more}"


def _settings(scenario: Scenario) -> dict[str, str]:
    """What its run is given that is not usual."""
    mine = {name: getattr(scenario, name) for name in ("delivery", "write_concern", "log")}
    return {name: value for name, value in mine.items() if value != getattr(Scenario(), name)}


def names(every: Sequence[Any]) -> list[str]:
    """Of services or processes, however they were given."""
    return [one if isinstance(one, str) else str(one.name) for one in every]


def _said(value: object) -> str:
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


def read_tape(file: Path) -> SavedTape:
    """A tape that a story has saved; raises ``UsageError`` where it is none, or of another time."""
    try:
        saved = file.read_bytes()
        if (version := msgspec.json.decode(saved, type=_Versioned).version) != VERSION:
            raise UsageError(
                f"tape {str(file)!r} is of version {version}; this labkit plays {VERSION}"
            )
        tape = msgspec.json.decode(saved, type=SavedTape)
    except OSError as error:
        raise UsageError(f"tape {str(file)!r} cannot be read: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(f"{str(file)!r} is no tape of a story: {error}") from None
    return tape
