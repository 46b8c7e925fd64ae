"""The checkers of ``verify`` for an arm without a log: by what clients are told and read.

==========  ======================================================================
C1          what was accepted is shown
C2          a command id has one answer, however often it was sent
C6          no version of a stream was told to two commands
C9          the documents are what the model makes of the accepted commands: an effect
            that was lost, or done twice, is one that the model does not explain
invariants  of each state that the rules decide on, as it is at the end
==========  ======================================================================

C3 and the audits of a service read a log, so they judge labkit alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import structs

from labkit.errors import said
from labkit.experiments.verify.checkers import History, check, gather
from labkit.experiments.verify.duplicates import duplicates
from labkit.experiments.verify.evidence import Evidence
from labkit.experiments.verify.lost_writes import lost_writes
from labkit.experiments.verify.reference import views
from labkit.experiments.verify.verdict import Verdict, verdict
from labkit.experiments.verify.versions import versions
from labkit.lab import Lab
from labkit.messages import Document
from labkit.read.projection import streams_of
from labkit.service import Operation, Service


def judged(
    service: Service,
    operations: Sequence[Operation],
    documents: Sequence[Document],
    states: Sequence[Document],
) -> dict[str, Verdict]:
    """The verdicts at quiet: no command is under way, and ``documents`` will not change."""
    told = [structs.replace(o, token=None) for o in operations]  # no log, so no place in it
    evidence = Evidence(
        service=service,
        commits=[],
        chain=[],
        unread=[],
        misfits=[],
        checkpoints=[],
        states={},
        saved={},
        views={streams_of(service): list(documents)},
        lag={},
        aborted=[],
    )
    return {
        "C1": lost_writes(told, evidence),
        "C2": duplicates(told, evidence),
        "C6": versions(told, evidence),
        "C9": views(told, evidence),
        "invariants": _invariants(service, states),
    }


def judged_by_the_log(lab: Lab, operations: Sequence[Operation]) -> dict[str, Verdict]:
    """All checkers of labkit's own arm, by the log too, at quiet. What processes sent is among the
    operations."""
    history = History()
    history.operations = list(operations)
    return check(gather(lab), history)


def _invariants(service: Service, states: Sequence[Document]) -> Verdict:
    wrong = list[str]()
    for document in states:
        try:
            state: Any = msgspec.convert(document, service.state)
            failed = [name for name, holds in service.invariants.items() if not holds(state)]
        except Exception as error:  # whatever stands in a service
            failed = [said(error)]
        wrong += [f"{name!r} does not hold of {document}" for name in failed]
    return verdict(len(states) * len(service.invariants), wrong)
