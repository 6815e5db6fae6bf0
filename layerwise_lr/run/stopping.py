"""Asked to stop: Ctrl-C, SIGTERM and SIGHUP end a training at the end of a step, so that a checkpoint can be written.

A terminal that is closed sends SIGHUP twice, and whoever stops a machine may send SIGTERM again: what is asked twice is
heard once, until the run's folder says how it ended. Ctrl-C again is a person in a hurry.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE = 15.0
"""Seconds until a run stops wherever it is; a sweep kills its jobs some seconds later."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Pruned(Exception):
    """Whoever searches gave the run up: it would not be among the best."""


class Stop:
    """Whether this process has been asked to stop."""

    asked = False
    _trains = False

    def hear(self, number: int, frame: FrameType | None) -> None:
        """A signal: the first raises KeyboardInterrupt, or where a step is to end first only asks for it; Ctrl-C again,
        and the time that is up, raise it at once; nothing else is heard any more."""
        first, self.asked = not self.asked, True
        if first and self._trains:
            signal.setitimer(signal.ITIMER_REAL, GRACE)
        elif first or number in (signal.SIGINT, signal.SIGALRM):
            raise KeyboardInterrupt

    @contextmanager
    def after_a_step(self) -> Iterator[None]:
        """Inside, the first signal only asks."""
        self._trains = True
        try:
            yield
        finally:
            self._trains = False
            if self.asked:
                signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def listening(always: tuple[signal.Signals, ...] = ()) -> Iterator[Stop]:
    """The Stop that hears this process's signals: the one that does already, or one for as long as this takes. Only a
    main thread can hear; a signal that was ignored (nohup) stays so.

    Args:
        always: these are heard in any case.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Stop()
        return
    already = [getattr(signal.getsignal(s), "__self__", None) for s in SIGNALS]
    if found := next((stop for stop in already if isinstance(stop, Stop)), None):
        yield found
        return
    stop = Stop()
    heard = [s for s in SIGNALS if s in always or signal.getsignal(s) not in (signal.SIG_IGN, None)]
    before = {s: signal.signal(s, stop.hear) for s in (*heard, signal.SIGALRM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
