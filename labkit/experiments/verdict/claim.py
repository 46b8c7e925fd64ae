"""A claim about CQRS, the cases in which it is tried, and the verdict that their figures give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct

from labkit.errors import UsageError
from labkit.experiments.verdict.figures import Figure

Side = Literal["problem", "for", "against"]
#: The JSON of each experiment, by its name.
Results = Mapping[str, Mapping[str, Any]]


class Case(Struct, frozen=True):
    """One try of a claim: it holds where the whole interval of ``figure`` is within the bounds.

    ``when`` completes "it holds if ..."; ``what`` says what the figure is. ``experiment`` is the
    name of the result that ``figure`` reads.
    """

    when: str
    what: str
    experiment: str
    figure: Callable[[Any], Figure]
    at_least: float | None = None
    at_most: float | None = None

    @property
    def bound(self) -> str:
        """The bounds in words."""
        least = "" if self.at_least is None else f"at least {self.at_least:g}"
        most = "" if self.at_most is None else f"at most {self.at_most:g}"
        return " and ".join(filter(None, (least, most)))

    def holds(self, found: Figure) -> bool:
        """Whether all of the interval is within the bounds."""
        least = self.at_least is None or found.low >= self.at_least
        return least and (self.at_most is None or found.high <= self.at_most)


class Claim(Struct, frozen=True):
    """A sentence of the balance, or a problem that CQRS is said to solve."""

    side: Side
    sentence: str
    cases: tuple[Case, ...]


class Tried(Struct, frozen=True):
    """A case with its figure."""

    when: str
    what: str
    experiment: str
    bound: str
    figure: Figure
    holds: bool


class Verdict(Struct, frozen=True):
    """A claim, its cases, and what they say together."""

    side: Side
    sentence: str
    cases: list[Tried]
    verdict: str


def judge(claim: Claim, results: Results) -> Verdict:
    """Raises ``UsageError`` where a result lacks the figure that a case needs."""
    cases = [_tried(claim, case, results) for case in claim.cases]
    return Verdict(claim.side, claim.sentence, cases, verdict(cases))


def verdict(cases: Sequence[Tried]) -> str:
    """``holds``, ``holds if ...`` or ``does not hold``."""
    held = [case.when for case in cases if case.holds]
    if len(held) == len(cases):
        return "holds"
    return f"holds if {' or if '.join(held)}" if held else "does not hold"


def _tried(claim: Claim, case: Case, results: Results) -> Tried:
    if case.experiment not in results:
        raise UsageError(f"{claim.sentence!r} needs the result {case.experiment!r}; measure it")
    try:
        figure = case.figure(results[case.experiment])
    except (LookupError, TypeError, ValueError, UsageError) as error:
        raise UsageError(
            f"{claim.sentence!r}: the result {case.experiment!r} does not say {case.what!r} "
            f"({type(error).__name__}: {error}); measure it again"
        ) from None
    return Tried(case.when, case.what, case.experiment, case.bound, figure, case.holds(figure))
