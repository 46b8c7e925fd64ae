"""Kafka and MongoDB in containers, through ``docker compose``."""

import os
import shutil
import subprocess
from pathlib import Path

from labkit.errors import StackError
from labkit.stack.ports import HOST
from labkit.stack.state import LabState, Report

FILE = Path(__file__).resolve().parents[2] / "docker" / "compose.yaml"
KAFKA_PORT = 9092
MONGO_PORT = 27017


def start(lab: str, state: LabState, kafka_port: int, mongo_port: int, report: Report) -> None:
    """Start the containers of profile ``core`` and wait until they are healthy.

    Raises:
        StackError: the Docker client, its engine or the compose plug-in is missing, or a
            container fails.
    """
    if not FILE.is_file():
        raise StackError(
            f"{FILE} does not exist (only the source tree has it, not the installed package): "
            "clone the repository and run `make install`"
        )
    engine()
    state.kafka_port = kafka_port or KAFKA_PORT
    state.mongo_port = mongo_port or MONGO_PORT
    report(
        f"docker compose starts Kafka and MongoDB on ports {state.kafka_port} and "
        f"{state.mongo_port}; the first time it downloads about 500 MB of images"
    )
    _compose(lab, state, "up", "-d", "--wait")
    state.bootstrap = f"{HOST}:{state.kafka_port}"
    # A direct connection, because the replica set names the port inside the container.
    state.mongo_uri = f"mongodb://{HOST}:{state.mongo_port}/?directConnection=true"


def shut_down(lab: str, state: LabState, purge: bool) -> bool:
    """Stop and remove the containers; with ``purge``, remove their volumes too."""
    _compose(lab, state, "down", *(["--volumes"] if purge else []))
    return True


def engine() -> str:
    """Return the version of the Docker engine.

    Raises:
        StackError: the client is missing, or the engine does not answer.
    """
    docker = shutil.which("docker")
    todo = "start it, or omit `--kind compose` (the native servers need no Docker)"
    if docker is None:
        raise StackError(f"no `docker` in the PATH: install Docker and {todo}")
    try:
        done = subprocess.run(
            [docker, "version", "--format", "{{.Server.Version}}"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StackError(f"the Docker client {docker} does not run ({error}): {todo}") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise StackError(f"{docker} reaches no engine ({said}): {todo}")
    return done.stdout.strip()


def _compose(lab: str, state: LabState, *arguments: str) -> None:
    env = os.environ | {
        "LABKIT_KAFKA_PORT": str(state.kafka_port or KAFKA_PORT),
        "LABKIT_MONGO_PORT": str(state.mongo_port or MONGO_PORT),
    }
    done = subprocess.run(
        [
            "docker",
            "compose",
            "-p",
            f"labkit-{lab}",
            "-f",
            str(FILE),
            "--profile",
            "core",
            *arguments,
        ],
        env=env,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise StackError(f"docker compose {arguments[0]} failed: {said}")
