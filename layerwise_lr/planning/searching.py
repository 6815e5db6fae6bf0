"""A regex of the user's, or of a file's, cannot hang: all searching of a grouping together has a time limit.

Python's own matcher may take exponential time, and asks for signals while it works: a timer of the process ends it. Only the
main thread can set one, and Windows has none; elsewhere the length of a regex is bounded alone.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .errors import UserError

SECONDS = 4.0
MOST = 1000
"""Letters of a regex."""


class _Late(BaseException):
    """No handler of errors on the way may take it for another."""


@contextmanager
def limited(where: str) -> Iterator[None]:
    """What is done inside ends within SECONDS.

    Raises:
        UserError: it would take longer; names `where`.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: Any) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    except _Late:
        raise UserError(
            f"{where}: its regexes take more than {SECONDS:g} s on this model's names; write them without a repeat in a "
            "repeat, such as (a+)+"
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def bounded(regex: str, where: str) -> str:
    """The regex itself.

    Raises:
        UserError: it is longer than anybody writes by hand.
    """
    if len(regex) > MOST:
        raise UserError(f"{where}: a regex of {len(regex):,} letters; at most {MOST:,}")
    return regex
