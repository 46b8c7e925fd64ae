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
    ├── Parked                      a reader holds this stream back; says why
    ├── Pending                     a transaction is being ended: ask again in the next step
    ├── TimedOut                    a wait ended; says what it waited for
    └── Fenced                      this worker is no longer the owner: close, rejoin, replay
        └── OutcomeUnknown          a commit timed out: it may have happened, or not
"""


class LabkitError(Exception):
    """The root: its text is one clear line that names the value and says what to do."""

    exit_code = 2


class UsageError(LabkitError):
    """An argument, a file or an environment variable that cannot be used."""


class StackError(LabkitError):
    """A server that is missing, busy, refuses, or cannot be started."""


class Unreachable(StackError):
    """A server that does not answer."""


class Unstorable(StackError):
    """A document that the store cannot hold."""


class CheckFailed(LabkitError):
    """A check that ran to its end and found a difference."""

    exit_code = 1


class DecodeError(LabkitError):
    """Bytes that are not a message of this schema."""


class Refused(LabkitError):
    """A business rule said no. ``str(error)`` is the reason that the caller gets."""


class Transient(LabkitError):
    """What a rule raises when it cannot decide *now*; the command is tried again after a while."""


class Conflict(LabkitError):
    """Another writer changed a shared document first; the whole transaction was undone."""


class TooSlow(LabkitError):
    """A transaction took longer than the server allows, and was undone: a smaller one may fit."""


class Duplicate(LabkitError):
    """An insert met a document that exists; the whole transaction was undone."""


class Parked(LabkitError):
    """A stream that a view holds back, since an event of it could not be applied."""

    exit_code = 1


class Pending(LabkitError):
    """What was asked for depends on a transaction that is being ended: ask again."""


class TimedOut(LabkitError):
    """A wait that ended without what it waited for."""

    exit_code = 1


class Fenced(LabkitError):
    """This worker lost its partitions or its epoch; the only way on is close and rejoin."""


class OutcomeUnknown(Fenced):
    """A commit that timed out: neither done nor undone can be assumed."""
