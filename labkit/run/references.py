"""Services and processes by name, so that every worker of a run can import them.

``orders`` is a built-in service, ``desk:DESK`` the attribute ``DESK`` of the module ``desk``. No
code is sent to a worker: it imports what the run's settings name.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
from msgspec import Struct

from labkit.errors import UsageError, said
from labkit.service import Process, Service

BUILT_IN = "labkit.services"


class Reference(Struct, frozen=True, omit_defaults=True):
    """``module:ATTRIBUTE``, the folder that the module was found in, and a process's settings."""

    at: str
    folder: str = ""
    fields: dict[str, Any] | None = None


def services(what: Sequence[str | Service]) -> list[Service]:
    """All of a list; raises ``UsageError``."""
    return [service(one) for one in _listed("services", what)]


def processes(what: Sequence[str | Process]) -> list[Process]:
    """All of a list; raises ``UsageError``."""
    return [process(one) for one in _listed("processes", what)]


def _listed(name: str, what: Any) -> Any:
    if isinstance(what, str) or not isinstance(what, Iterable):
        raise UsageError(f"{name} must be a list, got {what!r}: write {name}=[{what!r}]")
    return what


def service(what: str | Service | Reference) -> Service:
    """A service by its name, its reference, or itself; raises ``UsageError``."""
    if isinstance(what, Service):
        return what
    found = _find(what)
    if isinstance(found, Service):
        return found
    raise UsageError(f"{_shown(what)} is no Service, but {found!r:.100}")


def process(what: str | Process | Reference) -> Process:
    """A process by its name, its reference, or itself; raises ``UsageError``."""
    if isinstance(what, Process):
        return what
    found = _find(what)
    fields = what.fields if isinstance(what, Reference) else None
    if isinstance(found, type) and issubclass(found, Process):
        try:
            return msgspec.convert(fields or {}, found)
        except msgspec.ValidationError as error:
            raise UsageError(f"{_shown(what)}: {error}") from error
    if isinstance(found, Process):
        return found
    raise UsageError(f"{_shown(what)} is no Process, but {found!r:.100}")


def to_service(service: Service) -> Reference:
    """How a worker finds a service; raises ``UsageError`` if it cannot."""
    module = _module(service.module, f"service {service.name!r}")
    for name, value in vars(module).items():
        if value is service:
            return Reference(f"{service.module}:{name}", _folder(module))
    raise UsageError(
        f"service {service.name!r} is no attribute of the module {service.module!r}, so worker "
        "processes cannot import it: give it a name there"
    )


def to_process(process: Process) -> Reference:
    """How a worker finds a process, with its settings; raises ``UsageError`` if it cannot."""
    kind = type(process)
    module = _module(kind.__module__, f"process {process.name!r}")
    if _attribute(module, kind.__qualname__) is not kind:
        raise UsageError(
            f"the class {kind.__qualname__} of process {process.name!r} is no attribute of the "
            f"module {kind.__module__!r}, so worker processes cannot import it: define it there"
        )
    return Reference(
        f"{kind.__module__}:{kind.__qualname__}", _folder(module), msgspec.to_builtins(process)
    )


def _find(what: Any) -> Any:
    at = what.at if isinstance(what, Reference) else what
    if not isinstance(at, str):
        raise UsageError(
            "a service or process is given as an object, by its name or as module:ATTRIBUTE, "
            f"got {what!r:.100}"
        )
    folder = what.folder if isinstance(what, Reference) else ""
    name, colon, attribute = at.partition(":")
    if not colon:
        known = name in _built_in()
        name, attribute = f"{BUILT_IN}.{name}", name.upper()
        if not known or not hasattr(_import(name, at), attribute):
            raise UsageError(
                f"unknown service or process {at!r}; built in are {', '.join(_built_in())}; "
                "one of your own is named module:ATTRIBUTE"
            )
    else:
        # At the end: a `kafka.py` or `random.py` of a learner hides no module that others import.
        if (folder := folder or os.getcwd()) not in sys.path:
            sys.path.append(folder)
    module = _import(name, at)
    if (found := _attribute(module, attribute)) is None:
        file = getattr(module, "__file__", "a notebook or a script")
        has = [n for n, v in vars(module).items() if isinstance(v, (Service, Process))]
        raise UsageError(
            f"{at!r}: module {name!r} has no {attribute!r}; "
            f"its services and processes: {', '.join(has) or 'none'}; it is {file}"
        )
    return found


def _attribute(module: ModuleType, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _import(name: str, at: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # whatever stands in a module of somebody else's
        raise UsageError(
            f"{at!r}: cannot import {name!r} ({said(error)}); it was looked for "
            f"in {os.getcwd()} and in the installed packages"
        ) from error


def _module(name: str, what: str) -> ModuleType:
    if name == "__main__":
        raise UsageError(
            f"{what} is defined in __main__ (a notebook cell or a script), which worker processes "
            "cannot import: write it to a file (%%writefile desk.py) and import it from there"
        )
    return sys.modules[name]


def _folder(module: ModuleType) -> str:
    """Where the top of the module's package lies; empty for what is built in."""
    if module.__name__.startswith(f"{BUILT_IN}.") or not module.__file__:
        return ""
    depth = module.__name__.count(".") + module.__file__.endswith("__init__.py")
    return str(Path(module.__file__).resolve().parents[depth])


def _built_in() -> list[str]:
    room = importlib.import_module(BUILT_IN).__path__
    return sorted(p.name for folder in room for p in Path(folder).iterdir() if _is_package(p))


def _is_package(path: Path) -> bool:
    return (path / "__init__.py").exists()


def _shown(what: str | Reference) -> str:
    return repr(what.at if isinstance(what, Reference) else what)
