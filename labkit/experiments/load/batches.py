"""The batches of a run, found again in its rows: commands with the same instant were one batch.

A handler takes all that waits into one transaction, and so does a projector. ``polled`` is the
instant at which a handler had its batch, ``fetched`` that of a projector.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components


def owners(commands: pd.DataFrame, begin: str) -> NDArray[np.int64]:
    """The worker of each command, by a number: partitions that were ever in one batch have one."""
    partitions = commands["partition"].to_numpy(np.int64)
    batch = pd.factorize(commands[begin])[0]
    shape = (int(batch.max()) + 1, int(partitions.max()) + 1)
    met = (coo_matrix((np.ones(len(batch)), (batch, partitions)), shape).tocsc() > 0).astype(float)
    _, owner = connected_components(met.T @ met, directed=False)
    return np.asarray(owner[partitions], np.int64)


class Part(NamedTuple):
    """Which instants tell of its batches: when it has one, when a command had come to it, when it
    begins to write, when that is done as far as is known, and when others saw it."""

    begin: str
    arrives: str
    writes: str
    done: str
    ends: str


#: ``logged``: the first that anybody heard of a commit, listener or projector. ``middle``: that of
#: ``stale`` and ``visible``.
HANDLER = Part("polled", "sent", "decided", "logged", "logged")
PROJECTOR = Part("fetched", "logged", "applied", "middle", "visible")


def marked(commands: pd.DataFrame) -> pd.DataFrame:
    """The commands with ``logged`` and ``middle``, which ``batches`` needs."""
    first = commands[["heard", "fetched"]].min(axis=1)
    unit = [commands["polled"], commands["partition"]]
    return commands.assign(
        logged=first.groupby(unit).transform("min"),
        middle=(commands["stale"] + commands["visible"]) / 2,
    )


def batches(commands: pd.DataFrame, part: Part) -> pd.DataFrame:
    """A row a batch of ``marked`` commands, in the order of each owner; instants in nanoseconds.

    Columns: ``owner``, ``begin``, ``size``, ``arrivals`` (how often something came), ``first`` and
    ``last`` (the first and last arrival in it), ``write``, ``done`` and ``end`` (see ``Part``),
    ``late`` (how long the listener took to hear of what was logged, in the mean), ``following``
    (when the owner's next batch began; NaN for the last). Whether its owner had to wait for it:
    ``pressed``, its first came before the batch before it began to write; ``idle``, it came after
    others had seen that one. In between nobody knows. ``presses``: the following is pressed.
    """
    begin, arrives, writes, done, ends = part
    at = commands.dropna(subset=[begin, arrives])
    at = at.assign(late=at["heard"] - at["logged"])
    keys = {"owner": owners(at, begin), "begin": at[begin].to_numpy()}
    found = (
        at.assign(**keys)
        .groupby(["owner", "begin"], as_index=False)
        .agg(
            size=(arrives, "size"),
            arrivals=(arrives, "nunique"),
            first=(arrives, "min"),
            last=(arrives, "max"),
            write=(writes, "max"),
            done=(done, "max"),
            end=(ends, "max"),
            late=("late", "mean"),
        )
    )
    own = found.groupby("owner")
    found["following"] = own["begin"].shift(-1)
    found["pressed"] = found["first"] <= own["write"].shift(1)
    found["idle"] = found["first"] > own["end"].shift(1)
    found["presses"] = own["first"].shift(-1) <= found["write"]
    return found
