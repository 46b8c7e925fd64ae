"""TODO."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def try_out(sentences: Sequence[Callable[[], None]]) -> dict[int, str]:
    """Say which sentences (given, when, then) hold; the stories of the others, by their number."""
    stories: dict[int, str] = {}
    for number, sentence in enumerate(sentences, 1):
        try:
            sentence()
        except AssertionError as story:
            stories[number] = str(story)
        print(f"sentence {number}", "is false:" if number in stories else "holds")
        if number in stories:
            print(stories[number])
    return stories


def check(solved: bool, hint: str, praise: str) -> None:
    """Say whether an exercise is solved; the tests set ``LABKIT_STRICT`` to get an error instead.

    Raises ``AssertionError`` in the tests only.
    """
    if not solved and os.environ.get("LABKIT_STRICT"):
        raise AssertionError(f"not yet: {hint}")
    print(f"Solved. {praise}" if solved else f"Not yet. Hint: {hint}")
