"""``labkit bench cache``, tiny, on real servers: shape and what must hold; no times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labkit import stack
from tests.test_cli import labkit, labkit_here, refused


def test_bad_options_are_said_before_the_run(home: Path, tmp_path: Path) -> None:
    refused(labkit_here("bench", "cache", "--queries", "99"), "--queries", "99")
    refused(labkit_here("bench", "cache", "--client", "owl"), "owl", "kafka-python")
    refused(labkit_here("bench", "cache", "--json", str(tmp_path)), str(tmp_path))


@pytest.mark.servers
@pytest.mark.slow
def test_a_tiny_bench(servers: stack.Servers, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    done = labkit("bench", "cache", "--queries", "200", "--json", str(file))
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    off, on = found["sides"]["off"], found["sides"]["on"]
    for side in (off, on):
        assert (side["asked"], side["looked"], side["failed"]) == (100, 100, 0)
        assert len(side["rates"]) == found["settings"]["rounds"]
        assert side["answers_per_second"] in side["rates"]
        assert 0 < side["p50_ms"] <= side["p99_ms"] <= side["max_ms"]
    assert off["cached"] == off["stale"] == 0
    assert on["cached"] > 0
    assert found["load"]["on"] > 0
    assert found["speedup"] > 0
    assert "cache hits" in done.stdout


@pytest.mark.servers
@pytest.mark.slow
def test_a_cache_that_hears_of_no_change_is_seen(
    servers: stack.Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABKIT_PLANT", "deaf-cache")
    file = tmp_path / "c.json"
    labkit("bench", "cache", "--queries", "1000", "--json", str(file), timeout=300)
    sides = json.loads(file.read_text())["sides"]
    assert sides["off"]["stale"] == 0
    assert sides["on"]["stale"] > sides["on"]["looked"] / 10
