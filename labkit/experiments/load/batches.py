"""Recover the batches of a run from its rows: commands with the same instant form one batch.

A handler takes everything that waits into one transaction, and so does a projector. ``polled`` is
the instant at which a handler got its batch, ``fetched`` that of a projector.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components


def owners(commands: pd.DataFrame, begin: str) -> NDArray[np.int64]:
    """A worker number for each command: partitions that ever share a batch share a worker."""
    partitions = commands["partition"].to_numpy(np.int64)
    batch = pd.factorize(commands[begin])[0]
    shape = (int(batch.max()) + 1, int(partitions.max()) + 1)
    met = (coo_matrix((np.ones(len(batch)), (batch, partitions)), shape).tocsc() > 0).astype(float)
    _, owner = connected_components(met.T @ met, directed=False)
    return np.asarray(owner[partitions], np.int64)


class Part(NamedTuple):
    """The columns of a worker's instants: it gets a batch, a command arrives, it starts to write,
    it is done writing (as far as known), and others see the batch."""

    begin: str
    arrives: str
    writes: str
    done: str
    ends: str


#: ``logged``: the first instant at which the listener or the projector read a commit. ``middle``:
#: the middle between ``stale`` and ``visible``.
HANDLER = Part("polled", "sent", "decided", "logged", "logged")
PROJECTOR = Part("fetched", "logged", "applied", "middle", "visible")


def marked(commands: pd.DataFrame) -> pd.DataFrame:
    """Add the columns ``logged`` and ``middle``, which ``batches`` needs."""
    first = commands[["heard", "fetched"]].min(axis=1)
    unit = [commands["polled"], commands["partition"]]
    return commands.assign(
        logged=first.groupby(unit).transform("min"),
        middle=(commands["stale"] + commands["visible"]) / 2,
    )


def batches(commands: pd.DataFrame, part: Part) -> pd.DataFrame:
    """One row for each batch of ``marked`` commands, ordered by owner; instants in nanoseconds.

    Columns: ``owner``, ``begin``, ``size``, ``arrivals`` (distinct arrival instants), ``first`` and
    ``last`` (the first and last arrival), ``write``, ``done`` and ``end`` (see ``Part``), ``late``
    (the mean delay of the listener after ``logged``), ``following`` (the begin of the owner's next
    batch; NaN for the last). ``pressed``: the first command arrived before the owner wrote its
    previous batch, so the owner was busy. ``idle``: it arrived after others had seen that batch, so
    the owner was waiting. In between, neither is known. ``presses``: the next batch is pressed.
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
