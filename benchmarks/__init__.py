"""Benchmarks that need other frameworks. They are not in the wheel; labkit never imports them."""
