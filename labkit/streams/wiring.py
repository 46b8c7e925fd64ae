"""The topics of stream analysis, and how a recipe reads and writes them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from labkit.ports.store import Store
from labkit.streams.documents import DocumentSink

with warnings.catch_warnings(record=True):  # an import of authlib warns about itself
    from quixstreams import Application

if TYPE_CHECKING:
    from quixstreams.dataframe import StreamingDataFrame
    from quixstreams.models import Topic

#: All topics; clients write ``raw`` and ``payments``, the pipelines write the others.
TOPICS = ("raw", "payments", "orders", "sales", "rejects", "revenue", "top", "late", "settled")
#: The topics that are also kept as documents: the newest record of each id.
COLLECTIONS = ("rejects", "revenue", "top", "late", "settled")


class Wiring:
    """Gives a recipe the topics of its run by their short names."""

    def __init__(self, app: Application, topic_name: Callable[[str], str], store: Store) -> None:
        self._app, self._topic_name, self._store = app, topic_name, store

    def read(
        self,
        name: str,
        values: Literal["json", "bytes"] = "json",
        keys: Literal["str", "bytes"] = "bytes",
    ) -> StreamingDataFrame:
        """The records of a topic; read records of clients as bytes and validate them."""
        topic = self._topic_name(name)
        return self._app.dataframe(
            self._app.topic(topic, key_deserializer=keys, value_deserializer=values)
        )

    def write(self, frame: StreamingDataFrame, name: str, key: str = "id") -> None:
        """Write to a topic, keyed by a field, and to the collection of the topic, if it has one."""
        topic: Topic = self._app.topic(self._topic_name(name), key_serializer="str")
        frame = frame.to_topic(topic, lambda value: value[key])
        if name in COLLECTIONS:
            frame.sink(DocumentSink(self._store, f"streams.{name}"))
