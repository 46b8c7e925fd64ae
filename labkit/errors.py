"""Every error that labkit raises on purpose.

::

    LabkitError                     one line for the user: the value, and what to do
    ├── UsageError                  a bad argument or file                (exit code 2)
    ├── StackError                  a server is missing, busy or refuses  (exit code 2)
    │   ├── Unreachable             it was there, or should be, and does not answer
    │   └── Unstorable              a document that the store cannot hold
    ├── CheckFailed                 the run went through, its result is wrong (exit code 1)
    ├── DecodeError                 bytes that are not a message of this schema
    ├── Refused                     a business rule said no; carries the reason
    ├── Transient                   a rule could not decide now: try again after a while
    ├── Duplicate                   an insert met a document that exists; all of it was undone
    ├── Conflict                    another writer changed a shared document first; all undone
    ├── TooSlow                     a transaction took longer than is allowed; all undone
    ├── Overloaded                  too much is under way: nothing was sent; try again
    ├── Parked                      a reader holds this stream back; says why
    ├── Pending                     a transaction is being ended: ask again in the next step
    ├── TimedOut                    a wait ended; says what it waited for
    │   └── Stopped                 a query did not end, and was stopped
    └── Fenced                      this worker is no longer the owner: close, rejoin, replay
        └── OutcomeUnknown          a commit timed out: it may have happened, or not
"""


class LabkitError(Exception):
    """The root: its text is one clear line that names the value and says what to do.

    Where the text cannot say what to do, since that is the same each time, ``advice`` does: Python
    and notebooks show it below the error, the command line behind it.
    """

    exit_code = 2
    advice = ""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        if self.advice:
            self.add_note(self.advice)

    @property
    def line(self) -> str:
        """All of it in one line."""
        text = " ".join(str(self).split()) or type(self).__name__
        return f"{text}; {self.advice}" if self.advice else text


class UsageError(LabkitError):
    """An argument, a file or an environment variable that cannot be used."""


class StackError(LabkitError):
    """A server that is missing, busy, refuses, or cannot be started."""


class Unreachable(StackError):
    """A server that does not answer; ``server`` is its name, where a circuit breaker found out."""

    server = ""


class Unstorable(StackError):
    """A document that the store cannot hold."""


class CheckFailed(LabkitError):
    """A check that ran to its end and found a difference."""

    exit_code = 1


class DecodeError(LabkitError):
    """Bytes that are not a message of this schema."""

    advice = "compare the record with the classes of its service; `labkit dead-letters` lists such"


class Refused(LabkitError):
    """A business rule said no. ``str(error)`` is the reason that the caller gets."""

    exit_code = 1


class Transient(LabkitError):
    """What a rule raises when it cannot decide *now*; the command is tried again after a while."""

    advice = "try again after a while"


class Conflict(LabkitError):
    """Another writer changed a shared document first; the whole transaction was undone."""

    advice = "nothing was changed: try again"


class TooSlow(LabkitError):
    """A transaction took longer than the server allows, and was undone: a smaller one may fit."""

    advice = "nothing was changed: try again with less at once"


class Duplicate(LabkitError):
    """An insert met a document that exists; the whole transaction was undone."""

    advice = "nothing was changed: read the document that exists, or take another id"


class Overloaded(LabkitError):
    """Too much is under way already. It is no acknowledgement: nothing was sent."""

    advice = "nothing was sent: send it again in a moment, with the same id"


class Parked(LabkitError):
    """A stream that a view holds back, since an event of it could not be applied."""

    exit_code = 1


class Pending(LabkitError):
    """What was asked for depends on a transaction that is being ended: ask again."""

    advice = "ask again in a moment"


class TimedOut(LabkitError):
    """A wait that ended without what it waited for."""

    exit_code = 1


class Stopped(TimedOut):
    """A query of a service that did not end, and was stopped."""


class Fenced(LabkitError):
    """This worker lost its partitions or its epoch; the only way on is close and rejoin."""

    advice = "another worker is the owner now: close this one and start another"


class OutcomeUnknown(Fenced):
    """A commit that timed out: neither done nor undone can be assumed."""

    advice = "it may have happened or not: close this worker and start another, which finds out"


def said(error: BaseException) -> str:
    """The name of an exception and what it says; a client's error may say its name itself."""
    name, text = type(error).__name__, str(error)
    return text if name in text else f"{name}: {text}" if text else name
