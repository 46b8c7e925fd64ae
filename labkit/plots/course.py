"""The plots of the notebooks, in one place."""

from labkit.plots.reading import seen_through_a_rebuild, stale_against_waiting
from labkit.plots.windows import revenue_a_minute
from labkit.plots.writing import batch_sizes, money_on_its_way, through_versions

__all__ = [
    "batch_sizes",
    "money_on_its_way",
    "revenue_a_minute",
    "seen_through_a_rebuild",
    "stale_against_waiting",
    "through_versions",
]
