"""What every arm is given: the same service with one view, its rules, commands and model.

CRUD keeps one row a stream. So the service has only its first view, which holds one document a
stream; its second view is the one that is "added later".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from labkit.errors import UsageError
from labkit.experiments.bench.subject import Subject, subject
from labkit.messages import Command, Document
from labkit.service import ReferenceModel, Service, View
from labkit.services.ledger import differences


class OneView:
    """The reference model of a service, of which one view is compared: field by field."""

    def __init__(self, model: ReferenceModel, collection: str) -> None:
        self._model, self._collection = model, collection

    def apply(self, state: Document | None, command: Command) -> Document | None:
        return self._model.apply(state, command)

    def compare(self, streams: dict[str, Document], views: dict[str, list[Document]]) -> list[str]:
        fields = {field for document in streams.values() for field in document}
        shown = {d["_id"]: _only(fields, d) for d in views[self._collection]}
        wanted = {stream: _only(fields, document) for stream, document in streams.items()}
        return list(differences("document", wanted, shown))


def _only(fields: Iterable[str], document: Mapping[str, object]) -> Document:
    return {field: document.get(field) for field in sorted(fields)}


WHOLE = subject("cost").service
if WHOLE.model is None or WHOLE.first_view is None:
    raise UsageError(f"service {WHOLE.name!r} needs a model and a view, or arms cannot be judged")
#: The view that all arms keep.
VIEW: View = WHOLE.first_view


def _with(views: Iterable[View], fold: int = WHOLE.fold) -> Service:
    assert WHOLE.model is not None
    return Service(
        WHOLE.name,
        decide=WHOLE.decide,
        events=WHOLE.events,
        evolve=WHOLE.evolve,
        state=WHOLE.state,
        fold=fold,
        upcasts=WHOLE.upcasts,
        views=views,
        workload=WHOLE.workloads,
        invariants=WHOLE.invariants,
        audits=WHOLE.audits,
        model=OneView(WHOLE.model, WHOLE.collection(VIEW)),
    )


#: What is measured. Workers import it from here.
SERVICE = _with([VIEW])
#: The next release of its code: a second view, or states of another shape.
WITH_SECOND_VIEW = _with(WHOLE.views)
WITH_NEW_STATE = _with([VIEW], WHOLE.fold + 1)


def of(bench: str) -> Subject:
    """The service with the workload of ``bench``: "cost" or "agreement"."""
    return Subject(SERVICE, subject(bench).chosen)
