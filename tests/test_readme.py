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


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_first_python_block_says_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    said = re.findall(r"print\(.*\)  # (.*)", code)
    assert capsys.readouterr().out.splitlines() == said
    assert len(said) == 2


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


@pytest.mark.parametrize("text", [README, CHINESE], ids=["en", "zh"])
def test_every_link_leads_somewhere(text: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_the_translation_has_the_same_blocks() -> None:
    assert blocks("sh", CHINESE) == blocks("sh")
    assert blocks("console", CHINESE) == blocks("console")
    assert blocks("python", CHINESE)[1:] == blocks("python")[1:]
    assert CHINESE.count("\n## ") == README.count("\n## ")


def test_every_notebook_is_in_the_table() -> None:
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"(notebooks/{notebook.name})" in README
        assert f"(notebooks/{notebook.name})" in CHINESE
