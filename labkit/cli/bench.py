"""``labkit bench``: the list of its commands."""

import typer

from labkit.cli.bench_burst import burst
from labkit.cli.bench_cost import cost
from labkit.cli.bench_elasticity import elasticity
from labkit.cli.bench_reads import cache, freshness, rebuild, restart
from labkit.cli.bench_writes import growth, latency, memory, peers
from labkit.cli.lag import lag
from labkit.cli.sweep import sweep
from labkit.cli.verdict import verdict

WRITES = (peers, latency, memory, growth, lag, sweep)
MANY = (burst, elasticity, cost, verdict)

app = typer.Typer(help="Measure ratios side by side, on real servers.", no_args_is_help=True)
for command in (restart, freshness, rebuild, cache, *WRITES, *MANY):
    app.command()(command)
