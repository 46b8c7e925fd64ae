"""The lab over HTTP: commands, queries, updates, health, metrics, and a live page. No logic.

::

    request thread ──command──> Desk (one thread: the bus and all Kafka readers) ──> Kafka
          └────────query──────> Queries ──> MongoDB

``app.py`` puts it together; what a request may say and is answered is in ``schema.py``.
"""

from labkit.api.app import create_app

__all__ = ["create_app"]
