"""The ground floor: what a service is made of."""

from labkit.messages import Command, Document, Event, Upcasts
from labkit.service.evidence import (
    Audit,
    Case,
    Operation,
    ReferenceModel,
    Status,
    Workload,
)
from labkit.service.process import (
    MAX_WAIT,
    Notices,
    Process,
    Send,
    Told,
    answers,
    begins,
    command_id,
)
from labkit.service.query import MAX_PAGE, Limit, Page, Query, Views, checked, kebab, made
from labkit.service.service import Service, route
from labkit.service.view import BY_ID, At, Documents, KeyedView, View

__all__ = [
    "BY_ID",
    "MAX_PAGE",
    "MAX_WAIT",
    "At",
    "Audit",
    "Case",
    "Command",
    "Document",
    "Documents",
    "Event",
    "KeyedView",
    "Limit",
    "Notices",
    "Operation",
    "Page",
    "Process",
    "Query",
    "ReferenceModel",
    "Send",
    "Service",
    "Status",
    "Told",
    "Upcasts",
    "View",
    "Views",
    "Workload",
    "answers",
    "begins",
    "checked",
    "command_id",
    "kebab",
    "made",
    "route",
]
