"""``labkit bench verdict``: the balance of CQRS, each claim with a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from labkit.cli.measure import Progress, Say, measure, table
from labkit.cli.options import JsonFile, LabName, Seed, option, result_file
from labkit.experiments.results import save
from labkit.stack.state import home


def verdict(
    seed: Seed = 1,
    anew: Annotated[bool, typer.Option("--anew", help="Measure what is known, too.")] = False,
    folder: Annotated[
        Path | None,
        typer.Option("--from", metavar="FOLDER", help="Of the results; default: of this seed."),
    ] = None,
    markdown: Annotated[
        Path | None, option("Write the table as Markdown.", result_file(".md"), "--markdown")
    ] = None,
    json_file: JsonFile = None,
    lab: LabName = "lab",
) -> None:
    """Judge each claim for and against CQRS by its figures; measure first what is missing.

    All experiments together take about an hour. A result of each is kept below the lab's home, and
    a second call only reads them.
    """
    from labkit.experiments.verdict import table as tables
    from labkit.experiments.verdict.claim import judge
    from labkit.experiments.verdict.claims import CLAIMS
    from labkit.experiments.verdict.experiments import EXPERIMENTS, collect

    place = folder or home() / "results" / "verdict" / f"seed-{seed}"

    def run(progress: Progress, say: Say) -> dict[str, Any]:
        results = collect(place, EXPERIMENTS, seed, lab, say, anew)
        found = [judge(claim, results) for claim in CLAIMS]
        save("--markdown", markdown, tables.markdown(found, seed).encode())
        return {"bench": "verdict", "seed": seed, "folder": str(place), "claims": found}

    measure(run, json_file, _show)


def _show(found: dict[str, Any]) -> str | None:
    rows = (
        [
            *(claim.side, claim.sentence if not number else "", case.what),
            *(str(case.figure), case.bound, claim.verdict if not number else ""),
        ]
        for claim in found["claims"]
        for number, case in enumerate(claim.cases)
    )
    columns = ("", "claim", "tried", "figure", "bound", "verdict")
    table("The balance of CQRS", columns, rows, left=6, prose=("claim", "tried", "verdict"))
    return None
