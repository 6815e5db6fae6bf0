"""Asked to stop: Ctrl-C, SIGTERM and SIGHUP end a training at the end of a step, so that a checkpoint can be written."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE = 15.0
"""Seconds until a run stops wherever it is; a sweep kills its jobs some seconds later."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """Whether the run has been asked to stop."""

    asked = False

    def hear(self, number: int, frame: FrameType | None) -> None:
        """A signal: the first asks; Ctrl-C again, and the time that is up, raise KeyboardInterrupt at once."""
        if not self.asked:
            self.asked = True
            signal.setitimer(signal.ITIMER_REAL, GRACE)
        elif number in (signal.SIGINT, signal.SIGALRM):
            raise KeyboardInterrupt


@contextmanager
def listening() -> Iterator[Stop]:
    """Signals are heard by the Stop that is given; one that was ignored (nohup) stays so. Only a main thread can hear."""
    stop, before = Stop(), {}
    if threading.current_thread() is threading.main_thread():
        heard = [s for s in SIGNALS if signal.getsignal(s) not in (signal.SIG_IGN, None)]
        before = {s: signal.signal(s, stop.hear) for s in (*heard, signal.SIGALRM)}
    try:
        yield stop
    finally:
        if before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
