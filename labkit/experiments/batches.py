"""The batches of a run, found again in its rows: commands with the same instant were one batch.

A handler takes all that waits into one transaction, and so does a projector. ``polled`` is the
instant at which a handler had its batch, ``fetched`` that of a projector.
"""

from __future__ import annotations

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


def batches(commands: pd.DataFrame, begin: str, arrives: str, ends: str) -> pd.DataFrame:
    """A row a batch, in the order of each owner; instants in nanoseconds.

    Columns: ``owner``, ``begin``, ``size``, ``first`` and ``last`` (the first and last arrival in
    it), ``end`` (the latest), ``following`` (when the owner's next batch began; NaN for the last),
    ``pressed`` (whether that one waited already when this one ended), ``pressed_before`` (the same
    of the batch before).
    """
    at = commands.dropna(subset=[begin, arrives])
    keys = {"owner": owners(at, begin), "begin": at[begin].to_numpy()}
    found = (
        at.assign(**keys)
        .groupby(["owner", "begin"], as_index=False)
        .agg(
            size=(arrives, "size"), first=(arrives, "min"), last=(arrives, "max"), end=(ends, "max")
        )
    )
    after = found.groupby("owner")
    found["following"] = after["begin"].shift(-1)
    found["pressed"] = after["first"].shift(-1) <= found["end"]
    found["pressed_before"] = found.groupby("owner")["pressed"].shift(1, fill_value=True)
    return found
