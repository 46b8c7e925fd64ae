"""How fresh an answer must be: chosen by the caller, who waits for no more than that.

::

    lab.ask(query)                                        # what the view holds now
    lab.ask(query, fresh=Fresh("token", (token,)))        # with this command
    lab.ask(query, fresh=Fresh("version", (version,)))    # with this version of a stream
    lab.ask(query, fresh=LINEARIZABLE)                    # with all that was committed until now

Every strategy comes down to *goals* (a token, a stream's version, a position in the log), which
``Queries.until`` waits for. What a wait costs, and what goes wrong without it, is shown by ``labkit
bench freshness``.
"""

from __future__ import annotations

from typing import Literal, get_args

from msgspec import Struct

from labkit.errors import UsageError
from labkit.messages import Token

#: How long a query waits for its freshness, unless it says so.
WAIT_SECONDS = 5.0

Strategy = Literal["eventual", "token", "version", "linearizable"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


class Version(Struct, frozen=True):
    """A version of a stream: where its view has it, the answer to a command shows."""

    service: str
    stream: str
    version: int


class Position(Struct, frozen=True):
    """A place in the events of a service: ``offset`` is the next one to be read."""

    service: str
    partition: int
    offset: int


Goal = Token | Version | Position


class Fresh(Struct, frozen=True):
    """How fresh an answer must be, and how many seconds the caller waits for it.

    ============  ====================================================================
    eventual      what the view holds now
    token         what the commands of ``goals`` (tokens) led to, or more
    version       these versions of streams (``goals``), or later ones
    linearizable  all that was committed before the call, by whomever
    ============  ====================================================================

    A token is there as soon as a command is acknowledged, a version when it is answered. On every
    log a command leaves its commit in the partition of its own number, so tokens hold there too; a
    version says the same without knowing of partitions. Raises ``UsageError``.
    """

    strategy: Strategy = "eventual"
    goals: tuple[Token | Version, ...] = ()
    timeout: float = WAIT_SECONDS

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise UsageError(
                f"freshness must be one of {', '.join(STRATEGIES)}, got {self.strategy!r}"
            )
        kinds = {"token": Token, "version": Version}
        kind = kinds.get(self.strategy)
        fit = all(kind is not None and isinstance(goal, kind) for goal in self.goals)
        if not fit or (kind is not None and not self.goals):
            what = f"a {kind.__name__}" if kind else "nothing to wait for"
            raise UsageError(f"freshness {self.strategy!r} takes {what}, got {self.goals!r}")


EVENTUAL = Fresh()
LINEARIZABLE = Fresh("linearizable")


def checked_fresh(fresh: Fresh) -> Fresh:
    """The same; raises ``UsageError``."""
    if not isinstance(fresh, Fresh):
        raise UsageError(f"fresh must be LINEARIZABLE or Fresh(...), got {fresh!r}")
    return fresh


def words(goal: Goal) -> str:
    """What is waited for, in an error."""
    match goal:
        case Token():
            return f"command {goal.offset} of partition {goal.partition}"
        case Version():
            return f"version {goal.version} of {goal.stream!r}"
    return f"position {goal.offset} of partition {goal.partition}"
