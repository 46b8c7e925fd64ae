"""What a request may ask for beside its body: waiting, versions, keys, freshness.

FastAPI reads these classes at run time, so their annotations must not be put off.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends

from labkit.api.problems import Problem
from labkit.api.schema import (
    MAX_WAIT_SECONDS,
    AtVersion,
    Freshness,
    IdempotencyKey,
    IfMatch,
    IfNoneMatch,
    Prefer,
    Timeout,
    Tokens,
)
from labkit.errors import UsageError
from labkit.read.freshness import WAIT_SECONDS

_ETAG = re.compile(r'"([0-9]{1,18})"')
_WAIT = re.compile(r'(?:^|[,;\s])wait\s*=\s*"?([0-9]{1,9})\b', re.IGNORECASE)


@dataclass
class Options:
    """Of who sends a command that makes something new."""

    prefer: Prefer = None
    idempotency_key: IdempotencyKey = None

    @property
    def wait(self) -> int | None:
        """The seconds to wait for the answer; ``None``: not at all."""
        found = _WAIT.search(self.prefer or "")
        return min(int(found[1]), MAX_WAIT_SECONDS) if found else None

    @property
    def expected_version(self) -> int | None:
        """The version that the command is meant for; what is new has none."""
        return None


@dataclass
class ChangeOptions(Options):
    """Of who sends a command to something that is there."""

    if_match: IfMatch = None

    @property
    def expected_version(self) -> int | None:
        """Of the ``ETag`` that the sender has seen.

        Raises a problem: 412 for what no ``ETag`` of ours is, ``UsageError`` for more than one.
        """
        if self.if_match is None:
            return None
        if "," in self.if_match or self.if_match.strip() == "*":
            raise UsageError(f"If-Match takes one ETag, got {self.if_match!r}")
        found = _ETAG.fullmatch(self.if_match.strip())
        if found is None:
            raise Problem(412, "precondition", f"no version has the ETag {self.if_match!r}")
        return int(found[1])


@dataclass
class FreshOptions:
    """How fresh the answer must be."""

    freshness: Freshness = None
    token: Tokens = None
    timeout: Timeout = WAIT_SECONDS


@dataclass
class OneOptions(FreshOptions):
    """The same of one thing, and what of it the caller holds."""

    version: AtVersion = None
    if_none_match: IfNoneMatch = None

    def holds(self, etag: str) -> bool:
        """Whether the caller has this already (RFC 9110: compared weakly)."""
        tags = {tag.strip().removeprefix("W/") for tag in (self.if_none_match or "").split(",")}
        return bool(tags & {etag, "*"})


Create = Annotated[Options, Depends()]
Change = Annotated[ChangeOptions, Depends()]
Many = Annotated[FreshOptions, Depends()]
One = Annotated[OneOptions, Depends()]


def derived(what: str, key: str, principal: str = "anonymous") -> str:
    """An id that belongs to a principal and its idempotency key, and to no other.

    Until there is authentication, every principal is anonymous.
    """
    parts = "\0".join((what, principal, key))
    return hashlib.sha256(parts.encode()).hexdigest()[:32]
