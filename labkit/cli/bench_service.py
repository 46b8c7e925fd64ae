"""The option ``--service`` of a bench, which measures one service."""

from __future__ import annotations

from typing import Annotated

import typer

from labkit.errors import UsageError


def _one(given: list[str] | None) -> list[str] | None:
    if given and len(given) > 1:
        raise UsageError(f"--service: a bench measures one service, got {', '.join(given)}")
    return given


#: Typer gives a repeated option as a list; ``named`` makes the one value of it.
Service = Annotated[
    list[str] | None,
    typer.Option(
        "--service",
        metavar="NAME|MODULE:ATTRIBUTE",
        help="The service to measure; default: a built-in one.",
        callback=_one,
    ),
]


def named(given: list[str] | None) -> str | None:
    """The service that the option names."""
    return given[0] if given else None
