"""The databases of a MongoDB server."""

from __future__ import annotations

import re
from contextlib import closing

from labkit.adapters.mongo_client import connect, translated
from labkit.ports.store import Document


def databases(uri: str, prefix: str, collection: str, id: str) -> dict[str, tuple[int, Document]]:
    """Bytes on disk of each database whose name begins with ``prefix`` and that has a collection;
    and a document of it, empty where it is missing."""
    client, _ = connect(uri, "admin")
    found: dict[str, tuple[int, Document]] = {}
    with closing(client), translated("list databases"):
        for database in client.list_databases(filter={"name": re.compile(f"^{re.escape(prefix)}")}):
            name = database["name"]
            if collection in client[name].list_collection_names(filter={"name": collection}):
                document = client[name][collection].find_one({"_id": id})
                found[name] = (int(database["sizeOnDisk"]), document or {})
    return found
