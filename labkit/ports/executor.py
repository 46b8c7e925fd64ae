"""An executor that works at once, in the thread of the caller."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

T = TypeVar("T")


class AtOnce(Executor):
    """Does it here and now; what that raises comes out of ``submit``."""

    def submit(self, call: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """A future that is done."""
        done: Future[T] = Future()
        done.set_result(call(*args, **kwargs))
        return done
