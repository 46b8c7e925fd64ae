"""Real servers for the whole run, started once, on free ports, in a home of their own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import platformdirs
import pytest

from labkit import stack
from labkit.lab import Lab

os.environ["MPLBACKEND"] = "agg"


def pytest_configure() -> None:
    """A shell that starts a command in the background lets it, and all that it starts, ignore
    SIGINT; the tests that send one would wait in vain."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def jars_folder() -> Path:
    """Kafka's jars are downloaded once for all test runs of this user."""
    cache = os.environ.get("LABKIT_TEST_JARS") or platformdirs.user_cache_dir("labkit-tests")
    folder = Path(cache) / "jars"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def new_home(folder: Path) -> Path:
    """A LABKIT_HOME without data, but with the jars."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jars").symlink_to(jars_folder(), target_is_directory=True)
    return folder


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The session's LABKIT_HOME; also in the environment, so that child processes find it."""
    folder = new_home(tmp_path_factory.mktemp("home") / "labkit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_HOME", str(folder))
        for name in ("LABKIT_BOOTSTRAP", "LABKIT_MONGO_URI"):
            patch.delenv(name, raising=False)
        yield folder


@pytest.fixture(scope="session")
def servers(home: Path) -> Iterator[stack.Servers]:
    """Kafka and MongoDB of the lab named "lab"."""
    try:
        yield stack.up("lab")
    finally:
        stack.down("lab", purge=True)


@pytest.fixture
def topics_dropped(servers: stack.Servers) -> Iterator[None]:
    """The test leaves no topic behind that was not there before it."""
    before = _topics()
    yield
    assert _topics() <= before, "a run's topics stay behind"


def _topics() -> set[str]:
    with Lab(services=["orders"]) as lab:
        found = {name for name in lab.broker.topics() if lab.run not in name}
        lab.drop()
    return found
