"""A term that a notebook sets in bold has an entry in the glossary."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
GLOSSARY = ROOT / "docs" / "glossary.md"


def entries(text: str) -> list[str]:
    return re.findall(r"^### (.+)$", text, re.MULTILINE)


def bold_terms(markdown: str) -> list[str]:
    """Without code, whose asterisks mean something else."""
    prose = re.sub(r"```.*?```|`[^`]*`", "", markdown, flags=re.DOTALL)
    return [" ".join(term.split()) for term in re.findall(r"\*\*(.+?)\*\*", prose, re.DOTALL)]


def forms(term: str) -> set[str]:
    """A term as it may stand in a sentence: any case, plural, third person."""
    term = term.lower()
    return {term, term.removesuffix("s"), term.removesuffix("es"), re.sub("ies$", "y", term)}


def missing(markdown: str, glossary: str) -> list[str]:
    known = {entry.lower() for entry in entries(glossary)}
    return [term for term in bold_terms(markdown) if not forms(term) & known]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_bold_terms_have_an_entry(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    prose = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert bold_terms(prose), "a notebook for newcomers introduces at least one term"
    assert missing(prose, GLOSSARY.read_text("utf-8")) == []


def test_entries_are_sorted_unique_and_say_something() -> None:
    text = GLOSSARY.read_text("utf-8")
    found = entries(text)
    assert found == sorted(set(found), key=str.lower)
    bodies = re.split(r"^### .+$", text, flags=re.MULTILINE)[1:]
    assert all(len(body.split()) >= 2 for body in bodies)


def test_see_also_points_somewhere() -> None:
    text = GLOSSARY.read_text("utf-8")
    known = {entry.lower() for entry in entries(text)}
    pointers = re.findall(r"(?:See|Compare|called) \*(.+?)\*", text)
    assert [term for term in pointers if term.lower() not in known] == []


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("a **topic** and two **Partitions**", []),
        ("it **replays**; there are **checkpoints**", []),
        ("the **flux capacitor**", ["flux capacitor"]),
        ("`2**3` is **not here**\n```\n**kwargs, **more\n```", ["not here"]),
    ],
)
def test_a_missing_entry_is_found(markdown: str, expected: list[str]) -> None:
    glossary = "### Checkpoint\n\n### Partition\n\n### Replay\n\n### Topic\n"
    assert missing(markdown, glossary) == expected
