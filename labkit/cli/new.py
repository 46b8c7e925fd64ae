"""``labkit new``: a service of one's own, with its tests, that runs everywhere at once."""

from __future__ import annotations

import importlib.util
import keyword
from importlib import resources
from pathlib import Path
from string import Template
from typing import Annotated

import typer
from rich import print

from labkit.errors import UsageError
from labkit.service.service import NAME, RESERVED

FILES = {"service.txt": "{name}.py", "service_test.txt": "{name}_test.py"}


def new(
    name: Annotated[str, typer.Argument(help="Name of the service: a-z, 0-9 and _.")],
) -> None:
    """Write a service (a support desk) and its tests into the current folder."""
    if not NAME.fullmatch(name) or name in RESERVED or keyword.iskeyword(name):
        raise UsageError(
            f"a service is named by lower-case letters, digits and _, at most 31, and not like a "
            f"word of Python or one of {', '.join(sorted(RESERVED))}; got {name!r}"
        )
    texts = {
        file.format(name=name): Template(_read(template)).substitute(name=name, NAME=name.upper())
        for template, file in FILES.items()
    }
    if there := [file for file in texts if Path(file).exists()]:
        raise UsageError(f"{', '.join(there)} exists here already; remove it or take another name")
    if importlib.util.find_spec(name):
        raise UsageError(f"{name!r} is a module that Python imports already; take another name")
    for file, text in texts.items():
        try:
            Path(file).write_text(text, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{file} cannot be written: {error.strerror}") from error
    reference = f"{name}:{name.upper()}"
    print(
        f"{name}.py and {name}_test.py are written. Next:\n"
        f"  pytest {name}_test.py\n"
        f"  labkit verify write --service {reference} --commands 20000\n"
        f"  labkit load --service {reference} --rate 0.5\n"
        f"  labkit api --service {reference}"
    )


def _read(template: str) -> str:
    return resources.files("labkit.cli").joinpath("templates", template).read_text("utf-8")
