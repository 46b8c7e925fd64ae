"""Benches: ratios measured side by side on real servers."""
