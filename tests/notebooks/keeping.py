"""Keep what the cells that need servers show: ``python -m tests.notebooks.keeping 03 09``.

It runs whole notebooks on real servers, with the parameters that they state, and writes
``notebooks/kept/NAME.json``. Readers without servers see these results (``labkit.teaching.kept``).
"""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime

import nbformat
from nbclient import NotebookClient

from labkit.experiments.results import load_average, machine
from tests.notebooks.running import FOLDER, NAMES, load

KEPT = FOLDER / "kept"
#: One cell of a long measurement.
CELL_SECONDS = 1_800


def on_servers(notebook: nbformat.NotebookNode) -> dict[str, nbformat.NotebookNode]:
    """The cells that need servers, by the name of their result."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    named = [(re.findall(r'\bon_servers\("(.+?)"\)', cell.source), cell) for cell in cells]
    return {name: cell for names, cell in named for name in names}


def keep(name: str) -> None:
    notebook = load(name)
    settings = {"resources": {"metadata": {"path": str(FOLDER)}}, "timeout": CELL_SECONDS}
    NotebookClient(notebook, kernel_name="python3", **settings).execute()
    found = machine()
    busy = "busy " if load_average()[0] > found["cores"] else ""
    where = f"a {busy}machine with {found['cores']:g} cores, {datetime.now(UTC):%B %Y}"
    cells = {cell: _outputs(it) for cell, it in on_servers(notebook).items()}
    KEPT.mkdir(exist_ok=True)
    text = json.dumps({"measured": where, "cells": cells}, indent=1, ensure_ascii=False)
    (KEPT / f"{name}.json").write_text(text + "\n", encoding="utf-8")


#: What only the run itself says: its progress, its servers, the place of its files.
PASSING = re.compile(r"round \d+ of \d+: |is up already|^saved in ")


def _outputs(cell: nbformat.NotebookNode) -> list[dict[str, object]]:
    kept: list[dict[str, object]] = []
    for output in cell.outputs:
        if output.output_type != "stream":
            kept.append({"output_type": output.output_type, "data": output["data"]})
        elif output.name == "stdout":
            lines = output["text"].splitlines(keepends=True)
            if text := "".join(line for line in lines if not PASSING.search(line)).strip():
                kept.append({"output_type": "stream", "text": text + "\n"})
    return kept


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        for name in NAMES:
            if name.startswith(wanted):
                keep(name)
