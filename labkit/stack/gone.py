"""Why a server of this machine is gone: the last words of its log, and the space on its disk."""

import re
import shutil

import msgspec

from labkit.stack import broker, mongod
from labkit.stack.ports import HOST
from labkit.stack.processes import find, last_error
from labkit.stack.state import LabState, home


def explained(text: str) -> str:
    """Return a message with what is known of each dead server whose address is in it."""
    reasons = [] if HOST not in text else _reasons(set(re.findall(rf"{HOST}:(\d+)", text)))
    return "; ".join([text, *reasons])


def _reasons(named: set[str]) -> list[str]:
    found = []
    for path in home().resolve().glob("labs/*/state.json"):
        try:
            state = msgspec.json.decode(path.read_bytes(), type=LabState)
        except (OSError, msgspec.MsgspecError):
            continue
        if not state.up or state.kind != "native":
            continue
        folder = path.parent
        for name, process, mark, log in (
            ("Kafka", state.kafka, broker.mark(folder), "kafka"),
            ("mongod", state.mongo, mongod.mark(folder), "mongo"),
        ):
            if process and str(process.port) in named and find(process, mark) is None:
                free = shutil.disk_usage(folder).free // 1_000_000
                error = last_error(folder / "logs" / f"{log}.log", process.log_from)
                found.append(
                    f"{name} of lab {folder.name!r} (pid {process.pid}) is gone, {free:,} MB are "
                    f"free on the disk of {folder}, and its log has "
                    + (f"this error: {error}" if error else "no error")
                )
    return found
