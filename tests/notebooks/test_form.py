"""The form of the notebooks: their size, their words, their pictures; and no outputs."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from xml.etree import ElementTree

import nbformat
import pytest

from tests.notebooks.answers import SOLUTION, code_of
from tests.notebooks.keeping import KEPT, on_servers
from tests.notebooks.running import FOLDER, MORE, NAMES, START, STEPS, load, tagged

#: Clarity comes first: a cell that is easier to read on more lines gets them.
MAX_CELLS, MAX_LINES, MAX_CELL_LINES = 30, 150, 16


@pytest.mark.parametrize("name", NAMES)
def test_form(name: str) -> None:
    notebook = load(name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    lines = [len(cell.source.splitlines()) for cell in code]
    assert len(notebook.cells) <= MAX_CELLS
    assert sum(lines) <= MAX_LINES
    assert max(lines) <= MAX_CELL_LINES
    assert notebook.metadata.kernelspec == {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    }
    assert notebook.metadata.language_info == {"name": "python"}
    assert [cell.outputs for cell in code] == [[]] * len(code)
    assert {cell.execution_count for cell in code} == {None}
    assert re.match(r'BACKEND = "(kafka|memory)"  # ', tagged(notebook, "parameters").source)
    assert all("  # " in line for line in tagged(notebook, "parameters").source.splitlines())
    assert "raises-exception" in tagged(notebook, "exercise").metadata.tags
    assert tagged(notebook, "check").source.count("check(") == 1
    assert tagged(notebook, "solution").source.startswith("<details>")
    assert code[-1].source == "lab.drop()"
    assert notebook.cells[-1] is code[-1]


def faults(code: str) -> list[str]:
    """Private names of labkit, and changes of labkit that outlive their block."""
    tree = ast.parse(code)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    of_labkit = [i for i in imports if "labkit" in (getattr(i, "module", None) or i.names[0].name)]
    known = {name.asname or name.name for i in of_labkit for name in i.names}
    private = re.compile(r"_[^_]")
    found = [f"{name} is private" for name in known if private.match(name)]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        if private.match(node.attr):
            found.append(f"{node.attr} is private")
        if isinstance(node.ctx, ast.Store) and getattr(node.value, "id", "") in known:
            found.append(f"{node.attr} stays changed: use planted_here")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_code_leaves_labkit_as_it_is(name: str) -> None:
    notebook = load(name)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert faults("\n".join([*cells, code_of(notebook, SOLUTION)])) == []


@pytest.mark.parametrize(
    "code",
    [
        "lab._parts",
        "from labkit.lab import _readable",
        "from labkit.query import answer_cache as cache\ncache.notice = print",
        "from labkit.services.orders import Orders\nif True:\n    Orders.apply = print",
    ],
)
def test_a_fault_in_the_code_is_found(code: str) -> None:
    assert len(faults(code)) == 1
    assert faults("lab.parts; rules = {}; rules['a'] = row.value") == []


@pytest.mark.parametrize("name", NAMES)
def test_cells_that_need_servers_have_a_kept_result(name: str) -> None:
    """By their tag. A result that no cell shows any more is gone, too."""
    cells, file = on_servers(load(name)), KEPT / f"{name}.json"
    kept = json.loads(file.read_text("utf-8"))["cells"] if file.exists() else {}
    assert list(kept) == list(cells)
    assert all(cell.metadata.tags == [tag] for tag, cell in cells.items())
    assert all(f'OnServers(lab, "{name}")' in str(load(name)) for _ in cells)


@pytest.mark.parametrize("name", NAMES)
def test_words(name: str) -> None:
    notebook = load(name)
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    text = "\n\n".join(prose)
    title = prose[0].splitlines()[0]
    assert re.match(r"# [A-Z][a-z]+ (one|a|an|the) ", title), f"not a verb, then an object: {title}"
    for part in ("What you will do:", "What you will learn:", "What you need:", "Minutes:"):
        assert f"*{part}*" in prose[0]
    for heading in ("## On your own", "## In practice", "## Further reading"):
        assert text.count(f"\n{heading}\n") == 1
    assert text.count("A common misconception") == 1
    assert text.count("*Predict:*") >= 4
    (stated,) = re.findall(r"some ([\d,]+) words", prose[0])
    assert abs(int(stated.replace(",", "")) / len(text.split()) - 1) < 0.1
    assert f", {count_cells(notebook)} cells to run," in prose[0]
    for link in re.findall(r"\]\(((?!http)[^)#]+)", text):
        assert (FOLDER / link).exists(), link


#: Of a first reader: to read, to predict and run one cell, and to solve the exercise.
WORDS_A_MINUTE, CELL_MINUTES, EXERCISE_MINUTES = 200, 2, 5
#: As the notebooks state it for the computer.
COMPUTER_MINUTES = {"half a minute": 0.5, "one minute": 1, "two minutes": 2, "seven minutes": 7}
ROOT = FOLDER.parent


def count_cells(notebook: nbformat.NotebookNode) -> int:
    return sum(cell.cell_type == "code" for cell in notebook.cells)


def minutes(notebook: nbformat.NotebookNode) -> int:
    """Of a first reader, in steps of five."""
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    (computer,) = re.findall(r"and (\w+(?: a)? minutes?) for the computer", prose[0])
    read = len(" ".join(prose).split()) / WORDS_A_MINUTE + COMPUTER_MINUTES[computer]
    work = count_cells(notebook) * CELL_MINUTES + EXERCISE_MINUTES
    return 5 * round((read + work) / 5)


@pytest.mark.parametrize("name", NAMES)
def test_the_stated_minutes_are_those_of_a_first_reader(name: str) -> None:
    notebook = load(name)
    expected = minutes(notebook)
    assert f"*Minutes:* about {expected}: " in notebook.cells[0].source
    for readme in ("README.md", "README.zh-CN.md"):
        row = rf"\| \[`{name}`\]\(notebooks/{name}\.ipynb\) \| (\d+) \|"
        assert re.findall(row, (ROOT / readme).read_text("utf-8")) == [str(expected)], readme


@pytest.mark.parametrize("name", NAMES)
def test_the_first_cell_shows_a_picture_of_the_finding(name: str) -> None:
    (picture,) = re.findall(r"!\[.{40,}\]\((figures/.+\.svg)\)", load(name).cells[0].source)
    root = ElementTree.parse(FOLDER / picture).getroot()
    words = " ".join("".join(root.itertext()).split())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("role") == "img"
    # The picture shows what the findings above assert.
    claims = {START: ("2 orders", "1 order"), STEPS: ("nobody may read it", "once")}
    for claim in (claims | {one.NAME: one.CLAIMS for one in MORE})[name]:
        assert claim in words


@pytest.mark.parametrize("name", NAMES)
def test_committed_as_nbstripout_leaves_it(name: str) -> None:
    path = FOLDER / f"{name}.ipynb"
    done = subprocess.run(
        [sys.executable, "-m", "nbstripout", "--verify", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_kept_result_names_no_place_of_the_machine() -> None:
    for file in KEPT.glob("*.json"):
        assert not re.search(r"/root|/home/|/tmp/|saved in", file.read_text("utf-8")), file
