"""The stream that a record is about, and the id of a command that nobody can read."""

from __future__ import annotations

import hashlib

from labkit.messages import MAX_ID
from labkit.ports.broker import Record


def stream_id(key: bytes) -> str:
    """A key as the id of a stream; empty where it cannot be one."""
    try:
        id = key.decode()
    except UnicodeDecodeError:
        return ""
    return id if len(id) <= MAX_ID and not id.startswith("\0") else ""


def nameless(record: Record) -> str:
    """A name that no key can have: of what has no place in a stream."""
    return "\0" + hashlib.sha256(b"%d:%b" % (record.partition, record.key)).hexdigest()


def undecodable_id(record: Record) -> str:
    """The id that the commit of a record has, where the record has none."""
    return f"undecodable:{record.partition}:{record.offset}"
