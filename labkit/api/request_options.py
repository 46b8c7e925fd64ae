"""What a request may ask for beside its body: waiting, versions, keys, freshness.

FastAPI reads these classes at run time, so their annotations must not be put off.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

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

#: The opaque part of each tag in a list; a tag may hold commas.
_TAGS = re.compile(r'(?:W/)?("[^"]*")')
_ETAG = re.compile(r'"([0-9]{1,18})"')
_WAIT = re.compile(r'(?:^|[,;\s])wait\s*=\s*"?([0-9]{1,9})\b', re.IGNORECASE)


def lines(request: Request, name: str) -> str:
    """A header that is a list: it may come in several lines, which are one (RFC 9110, 5.3)."""
    return ", ".join(request.headers.getlist(name))


@dataclass
class Options:
    """Of who sends a command that makes something new."""

    request: Request
    prefer: Prefer = None
    idempotency_key: IdempotencyKey = None

    @property
    def wait(self) -> int | None:
        """The seconds to wait for the answer; ``None``: not at all."""
        found = _WAIT.search(lines(self.request, "prefer"))
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
        given = lines(self.request, "if-match")
        tags = _TAGS.findall(given)
        if len(tags) > 1 or given.strip() == "*":
            raise UsageError(f"If-Match takes one ETag, got {given!r}")
        found = _ETAG.fullmatch(given.strip(" \t,"))
        if found is None:
            raise Problem("precondition", f"no version has the ETag {given!r}")
        return int(found[1])


@dataclass
class FreshOptions:
    """How fresh the answer must be."""

    request: Request
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
        given = lines(self.request, "if-none-match")
        return given.strip() == "*" or etag in _TAGS.findall(given)


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
