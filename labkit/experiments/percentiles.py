"""Latency histograms of one range, so that they can be merged, and their percentiles."""

from __future__ import annotations

from hdrh.histogram import HdrHistogram

#: Microseconds from 1 to 100 s, with three significant digits.
RANGE = (1, 100_000_000, 3)
PERCENTILES = {"p50": 50.0, "p95": 95.0, "p99": 99.0, "p999": 99.9}


def percentiles(times: HdrHistogram) -> dict[str, float]:
    """Percentiles in milliseconds, of a histogram in microseconds."""
    at = {name: times.get_value_at_percentile(p) for name, p in PERCENTILES.items()}
    return {f"{name}_ms": value / 1e3 for name, value in at.items()} | {
        "max_ms": times.get_max_value() / 1e3
    }
