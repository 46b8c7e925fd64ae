"""Exercises: check a solution, try given-when-then sentences."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence


def try_out(sentences: Sequence[Callable[[], None]]) -> dict[int, str]:
    """Print which sentences (given, when, then) hold.

    Returns the stories of the false sentences, by their number.
    """
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


def check(solved: Callable[[], bool], hint: str, praise: str) -> None:
    """Print whether an exercise is solved.

    An answer that makes ``solved`` raise an exception is open, and the exception is shown. Raises
    ``AssertionError`` for an open exercise if ``LABKIT_STRICT`` is set, as in the tests.
    """
    try:
        done = bool(solved())
    except Exception as error:
        done, hint = False, f"{hint} (Your answer leads to {type(error).__name__}: {error})"
    if not done and os.environ.get("LABKIT_STRICT"):
        raise AssertionError(f"not yet: {hint}")
    print(f"Solved. {praise}" if done else f"Not yet. Hint: {hint}")
