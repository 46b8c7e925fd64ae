"""What a plot needs of the Universal Scalability Law and of its fit."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


class Law(Protocol):
    """The throughput of N workers; see ``labkit.experiments.bench.scaling.Law``."""

    @property
    def rate(self) -> float: ...
    @property
    def sigma(self) -> float: ...
    @property
    def kappa(self) -> float: ...
    @property
    def peak(self) -> float | None: ...
    def at(self, workers: float, /) -> float: ...


@runtime_checkable
class Scaling(Protocol):
    """A fitted law with its confidence band."""

    @property
    def law(self) -> Law: ...
    @property
    def error(self) -> float: ...
    @property
    def level(self) -> float: ...
    def band(self, workers: float, /) -> tuple[float, float]: ...
