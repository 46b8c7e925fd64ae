"""The lab over HTTP: commands, queries, updates, health, metrics, and a live page. No logic.

::

    request thread ──command──> LabThread (owns the bus and all Kafka readers) ──> Kafka
          └────────query──────> Queries ──> MongoDB

All routes come from the services of the run: ``addresses.py`` lists them, ``forms.py`` makes a
request a command, ``queries.py`` makes one a query, ``answers.py`` makes an answer JSON, and
``fields.py`` has the schemas of the message types. ``paths.py`` writes and reads values in paths,
``docs.py`` serves Swagger UI and a page for each type of problem. ``app.py`` puts it together.
"""

from labkit.api.app import create_app

__all__ = ["create_app"]
