"""Is it alive, is it ready, and what it counts."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from labkit.api import openapi
from labkit.api.backend import PROBE_SECONDS, Here
from labkit.api.problems import problem_of
from labkit.errors import Unreachable

router = APIRouter(tags=["health"])

#: A worker that is so many offsets behind shows what was true long ago.
MAX_LAG = 100_000


class Live(BaseModel):
    """The process answers."""

    status: Literal["live"] = "live"


class Ready(BaseModel):
    """Kafka and MongoDB answer; ``lag`` is how many offsets the workers are behind, by role."""

    status: Literal["ready"] = "ready"
    kafka: str
    mongodb: str
    lag: dict[str, int]


@router.get("/health/live", operation_id="live", response_model=Live)
async def live() -> Live:
    """Whether this process answers."""
    return Live()


@router.get(
    "/health/ready",
    operation_id="ready",
    response_model=Ready,
    responses=openapi.problems(503),
)
def ready(here: Here) -> Ready:
    """Whether Kafka and MongoDB answer, and the workers are not far behind."""
    kafka = here.thread.call(here.lab.broker.version, PROBE_SECONDS)
    mongodb = here.lab.store.version()
    here.lab.check()
    lag = {f"{role}/{service}": n for (role, service), n in here.lags().items()}
    if late := [name for name, n in lag.items() if n > MAX_LAG]:
        raise problem_of(Unreachable(f"{', '.join(late)} are more than {MAX_LAG:,} behind"))
    return Ready(kafka=kafka, mongodb=mongodb, lag=lag)


@router.get(
    "/metrics",
    operation_id="metrics",
    response_class=PlainTextResponse,
    responses=openapi.problems(503),
)
def metrics(here: Here) -> Response:
    """For Prometheus."""
    return Response(here.metrics.text(here.lags()), media_type=CONTENT_TYPE_LATEST)
