"""The README's blocks run as they stand."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from labkit import stack
from labkit.lab import Lab
from labkit.services import BUILT_IN, PROCESSES
from tests.serving import serving

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CHINESE = (ROOT / "README.zh-CN.md").read_text()


#: What runs each block, by a text that is in this block alone.
RUN_BY = {
    "make demo": "test_every_make_target_exists; what it starts is run by test_demo.py",
    "make lab": "test_every_make_target_exists; a browser would open",
    "PayOrder": "test_a_python_block_says_what_it_prints",
    "OrdersOf": "test_a_python_block_says_what_it_prints",
    "labkit new desk": "test_new.py::test_the_commands_of_the_readme_run; the API, test_api_served",
    "DESK = Service(": "test_new.py::test_the_readme_shows_the_file, and runs it",
    "labkit doctor": "test_the_commands_run_as_they_stand",
    "$ curl": "test_the_first_requests_over_http_are_answered_as_they_say",
    "CommandBus.send ──>": "nothing: it is a drawing",
}
LANGUAGES = pytest.mark.parametrize("text", [README, CHINESE], ids=["en", "zh"])


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@LANGUAGES
def test_no_block_is_left_out(text: str) -> None:
    known = [[name for name in RUN_BY if name in block] for block in blocks("[a-z]*", text)]
    assert sorted(known) == sorted([name] for name in RUN_BY)


def printing(text: str) -> list[str]:
    return [code for code in blocks("python", text) if "print(" in code]


@LANGUAGES
def test_a_python_block_says_what_it_prints(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(printing(text)) == 2
    for code in printing(text):
        exec(compile(code, "README.md", "exec"), {})
        said = re.findall(r"print\(.*\)  # (.*)", code)
        assert capsys.readouterr().out.splitlines() == said != []


@pytest.mark.servers
def test_the_python_blocks_hold_on_real_servers(
    servers: stack.Servers, capsys: pytest.CaptureFixture[str]
) -> None:
    for code in printing(README):
        real = code.replace('Lab(backend="memory")', "Lab()")
        assert real != code
        exec(compile(real, "README.md", "exec"), {})
        assert capsys.readouterr().out.splitlines() == re.findall(r"print\(.*\)  # (.*)", code)


def test_every_make_target_exists() -> None:
    used = {
        line.split()[1]
        for block in blocks("sh")
        for line in block.splitlines()
        if line.startswith("make ")
    }
    assert used == {"demo", "test", "lab"}
    for target in used:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.servers
def test_the_commands_run_as_they_stand(tmp_path: Path, servers: stack.Servers) -> None:
    """In a lab of their own name, so that `down` does not end the suite's servers."""
    (commands,) = [block for block in blocks("sh") if "labkit doctor" in block]
    scripts = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    try:
        for command in commands.splitlines():
            own = command if "doctor" in command else f"{command} --lab readme"
            done = subprocess.run(
                own.split(),
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=200,
            )
            assert done.returncode == 0, (own, done.stderr)
        assert (tmp_path / "out" / "demo.svg").read_text().lstrip().startswith("<?xml")
    finally:
        stack.down("readme", purge=True)


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on the PATH")
def test_the_first_requests_over_http_are_answered_as_they_say() -> None:
    """In memory, on a port of its own; a command's id is drawn each time."""
    (block,) = blocks("console")
    with Lab(backend="memory", services=BUILT_IN, processes=PROCESSES) as lab:
        lab.start()
        with serving(lab) as served:
            for request, said in re.findall(
                r"^\$ (curl (?:.*\\\n)*.*)\n(.*)\n", block, re.MULTILINE
            ):
                own = request.replace("localhost:8000", served.url.removeprefix("http://"))
                done = subprocess.run(
                    own.replace("curl", "curl --silent --noproxy '*'", 1),
                    shell=True,
                    capture_output=True,
                    text=True,
                    timeout=60,
                )
                found, expected = json.loads(done.stdout), json.loads(said)
                assert found | {"command_id": ""} == expected | {"command_id": ""}, request
    assert block.count("$ curl") == 3


@LANGUAGES
def test_every_link_leads_somewhere(text: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def without_comments(text: str) -> list[str]:
    return [re.sub("  # .*", "", code) for code in blocks("python", text)]


def test_the_translation_has_the_same_blocks() -> None:
    assert blocks("sh", CHINESE) == blocks("sh")
    assert blocks("console", CHINESE) == blocks("console")
    assert without_comments(CHINESE) == without_comments(README)
    assert CHINESE.count("\n## ") == README.count("\n## ")


def test_every_notebook_is_in_the_table() -> None:
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"(notebooks/{notebook.name})" in README
        assert f"(notebooks/{notebook.name})" in CHINESE
