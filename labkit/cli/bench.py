"""``labkit bench``: the list of its commands."""

import typer

from labkit.cli.bench_burst import burst
from labkit.cli.bench_reads import cache, freshness, rebuild, restart
from labkit.cli.bench_writes import growth, latency, memory, peers
from labkit.cli.lag import lag
from labkit.cli.sweep import sweep

app = typer.Typer(help="Measure ratios side by side, on real servers.", no_args_is_help=True)
WRITES = (peers, latency, memory, growth, lag, sweep, burst)
for command in (restart, freshness, rebuild, cache, *WRITES):
    app.command()(command)
