"""``labkit`` and ``python -m labkit``."""

import os
import sys


def main() -> None:
    """Run the command line; Ctrl-C is quiet before it is loaded and after it has ended, too.

    An exception would not do there: modules that are being loaded swallow it, or show it.
    """
    import signal

    by_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if by_default:
        signal.signal(signal.SIGINT, _leave)
    from labkit.cli.main import main as run

    try:
        run()
    finally:
        if by_default:
            signal.signal(signal.SIGINT, _leave)


def _leave(*_: object) -> None:
    os._exit(130)


if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the current folder, as with ``labkit``: see ``SAFE_PATH``
    main()
