"""A home folder of its own for each test of the stack, on jars that all of them share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from labkit import stack
from tests.conftest import new_home


def down_all(home: Path) -> None:
    """Stop and delete every lab of a home, whatever a failed test left there."""
    for lock in (home / "labs").glob("*.lock"):
        stack.down(lock.stem, purge=True)


@pytest.fixture
def lab_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    home = new_home(tmp_path / "home")
    monkeypatch.setenv("LABKIT_HOME", str(home))
    monkeypatch.delenv("LABKIT_BOOTSTRAP", raising=False)
    monkeypatch.delenv("LABKIT_MONGO_URI", raising=False)
    yield home
    monkeypatch.setenv("LABKIT_HOME", str(home))
    down_all(home)


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, stack.Servers]]:
    """One lab that stays up for all tests of a module that only look at it."""
    home = new_home(tmp_path_factory.mktemp("standing"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_HOME", str(home))
        patch.delenv("LABKIT_BOOTSTRAP", raising=False)
        patch.delenv("LABKIT_MONGO_URI", raising=False)
        servers = stack.up("standing")
    yield home, servers
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_HOME", str(home))
        down_all(home)
